"""How far an experiment is, and how long it will still take."""

import datetime
import statistics
from collections.abc import Sequence
from typing import Any, Self

import tqdm

from fisher_keras.experiments.runs.store import Run


class RunProgress:
    """Prints a line a run with the time left and, on a terminal, a bar of the whole experiment.

    The time of a run is the median of its configuration's other seeds; where there are none, of
    all the experiment's runs.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        records: list[dict[str, Any]],
        num_workers: int,
        run_estimate_s: float | None = None,
    ) -> None:
        """Looks at what there is.

        Args:
            runs: what is to be carried out, in order.
            records: of the finished runs, among them perhaps some of `runs`.
            num_workers: runs that are carried out at once.
            run_estimate_s: seconds that a run takes, as long as no record tells.
        """
        self._records = list(records)
        finished = {record["key"] for record in records}
        self._remaining = {run.key: run for run in runs if run.key not in finished}
        self._total = len(runs)
        self._finished = self._total - len(self._remaining)
        self._num_workers = num_workers
        self._run_estimate_s = run_estimate_s
        self._waiting_for = 0

    def __enter__(self) -> Self:
        print(f"{self.state()}.", flush=True)
        self._bar = tqdm.tqdm(
            total=self._total,
            initial=self._finished,
            unit="run",
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} runs, {elapsed} so far{postfix}",
            leave=False,
            dynamic_ncols=True,
            disable=None,  # Where there is no terminal.
        )
        self._bar.set_postfix_str(self._left())
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def state(self) -> str:
        """Returns how many runs are finished, in words."""
        return f"{self._finished} of {self._total} runs are finished"

    def remaining(self) -> list[Run]:
        """Returns what is neither finished nor has failed."""
        return list(self._remaining.values())

    def print_plan(self) -> None:
        """Prints the runs to carry out and how long they take."""
        print(f"{self.state()}; to carry out:")
        for run in self.remaining():
            print(f"{_duration(self._seconds(run)):>12}  {run.label}")
        print(f"{self._left()} with --num_workers={self._num_workers}.", flush=True)

    def finish(self, run: Run, record: dict[str, Any]) -> None:
        """Prints the line of a run that is finished."""
        del self._remaining[run.key]
        self._records.append(record)
        self._finished += 1
        self._bar.update()
        self._bar.set_postfix_str(self._left())
        place = f"{self._finished:>{len(str(self._total))}}/{self._total}"
        tqdm.tqdm.write(
            f"run {place}  {run.label}  {_duration(record['wall_time_s'])}, {self._left()}"
        )

    def fail(self, run: Run, error: str) -> None:
        """Prints the line of a run that has failed."""
        del self._remaining[run.key]
        tqdm.tqdm.write(f"failed: {run.label}: {error}")

    def refresh(self) -> None:
        """Moves the bar's clock."""
        self._bar.refresh()

    def wait_for(self, count: int) -> None:
        """Prints that all that is left is being carried out elsewhere; once for each number."""
        if count != self._waiting_for:
            tqdm.tqdm.write(f"Waiting for runs that other processes carry out: {count}.")
        self._waiting_for = count

    def _left(self) -> str:
        seconds = [self._seconds(run) for run in self._remaining.values()]
        if None in seconds:
            return "time left unknown"
        longest = max(seconds, default=0.0)
        return f"{_duration(max(sum(seconds) / self._num_workers, longest))} left"

    def _seconds(self, run: Run) -> float | None:
        records = [r for r in self._records if r["experiment"] == run.experiment]
        same = [r for r in records if r["config"] == run.config]
        times = [record["wall_time_s"] for record in same or records]
        return statistics.median(times) if times else self._run_estimate_s


def _duration(seconds: float | None) -> str:
    return "unknown" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))
