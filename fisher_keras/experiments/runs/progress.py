"""Progress of an experiment, and the time that is left."""

import datetime
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Self

import tqdm

from fisher_keras.experiments.runs.store import ExperimentStore, Record, Run

_REPORT_S = 300.0
_TAIL = 4096  # Bytes of a log.
_WIDTH = 100  # Of a line of a log.


class ProgressLine:
    """A line over a whole experiment: on a terminal, and nowhere else.

    A subclass has two methods: `left(num_at_once)` returns the time that is left in words, and
    `end(run, record)` takes note of a run that has ended, without a record if it has failed.

    Attributes:
        num_finished: How many things are done.
    """

    def __init__(self, total: int, unit: str, num_finished: int) -> None:
        """Makes the line, which is shown in a `with` block.

        Args:
            total: Number of things to do.
            unit: Their name.
            num_finished: How many of them are done already.
        """
        self.num_finished = num_finished
        self._total, self._unit = total, unit
        self._running = 1

    @property
    def is_finished(self) -> bool:
        """True if nothing is left to do."""
        return self.num_finished == self._total

    def __enter__(self) -> Self:
        self._line = tqdm.tqdm(
            total=self._total,
            unit=self._unit,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} {unit}s, {elapsed} so far{postfix}",
            leave=False,
            dynamic_ncols=True,
            disable=None,  # Where there is no terminal.
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()

    def show(self, running: int) -> None:
        """Brings the line up to date while so many things are being done."""
        self._running = max(1, running)
        self._line.n = self.num_finished
        self._line.set_postfix_str(f"{running} running, {self.left(self._running)}")

    def state(self) -> str:
        """Returns how many are finished, in words."""
        return f"{self.num_finished} of {self._total} {self._unit}s are finished"


class RunProgress(ProgressLine):
    """Prints a line a run with the time left.

    The time of a run is the median of its configuration's other seeds. Where there are none, it is
    what was measured for a plan, or the median of all the experiment's runs.
    """

    def __init__(self, runs: Sequence[Run], records: Sequence[Record]) -> None:
        """Reads which runs are finished.

        Args:
            runs: The runs of the experiment, in order.
            records: Of the finished runs, among them perhaps some of `runs`.
        """
        self._records = list(records)
        finished = {record.key for record in records}
        self._remaining = {run.key: run for run in runs if run.key not in finished}
        self._measured: Mapping[str, float] = {}
        super().__init__(len(runs), "run", len(runs) - len(self._remaining))

    def remaining(self) -> list[Run]:
        """Returns the runs that are neither finished nor have failed."""
        return list(self._remaining.values())

    def without_time(self) -> list[Run]:
        """Returns the remaining runs of which no other seed is finished."""
        return [run for run in self.remaining() if not self._same(run)]

    def print_plan(self, num_at_once: int, measured: Mapping[str, float]) -> None:
        """Prints the runs to execute and how long they take.

        Args:
            num_at_once: Runs that are executed at once.
            measured: Seconds by key, for runs of which no other seed is finished.
        """
        self._measured = measured
        print(f"{self.state()}; to carry out:")
        for run in self.remaining():
            print(f"{duration(self._seconds(run)):>12}  {run.label}")
        print(f"{self.left(num_at_once)}, {num_at_once} at once.", flush=True)

    def end(self, run: Run, record: Record | None) -> None:
        """Prints the line of a run that has ended, unless it has failed and has no record."""
        del self._remaining[run.key]
        if record is None:
            return
        self._records.append(record)
        self.num_finished += 1
        place = f"{self.num_finished:>{len(str(self._total))}}/{self._total}"
        seconds, left = duration(record.wall_time_s), self.left(self._running)
        tqdm.tqdm.write(f"run {place}  {run.label}  {seconds}, {left}")

    def left(self, num_at_once: int) -> str:
        """Returns the time that is left, in words."""
        seconds = [self._seconds(run) for run in self._remaining.values()]
        if None in seconds:
            return "time left unknown"
        longest = max(seconds, default=0.0)
        # However many are executed at once, it takes no less than the longest run. Runs at work
        # count in full, as nobody knows how far they are.
        return f"{duration(max(sum(seconds) / num_at_once, longest))} left"

    def _seconds(self, run: Run) -> float | None:
        same = self._same(run)
        if not same and run.key in self._measured:
            return self._measured[run.key]
        records = [r for r in self._records if r.experiment == run.experiment]
        times = [record.wall_time_s for record in same or records]
        return statistics.median(times) if times else None

    def _same(self, run: Run) -> list[Record]:
        return [
            record
            for record in self._records
            if (record.experiment, record.config) == (run.experiment, run.config)
        ]


class RunReports:
    """Prints a line where a run begins or fails, and one for each that runs every few minutes.

    Attributes:
        failures: The runs that have failed, with their errors.
    """

    def __init__(self, store: ExperimentStore) -> None:
        """Starts the clock.

        Args:
            store: Of the runs.
        """
        self.failures: list[str] = []
        self._store = store
        self._last = time.monotonic()

    def begin(self, run: Run) -> None:
        """Prints that a run begins, and its log."""
        tqdm.tqdm.write(f"begun: {run.label} (log: {self._store.log(run)})")

    def fail(self, run: Run, error: str) -> None:
        """Prints that a run has failed."""
        self.failures.append(f"{run.label}: {error}")
        tqdm.tqdm.write(f"failed: {self.failures[-1]}")

    def print_due(self, running: Sequence[Run]) -> None:
        """Prints a line a run, if it is time to."""
        if time.monotonic() < self._last + _REPORT_S:
            return
        self._last = time.monotonic()
        for run in running:
            tqdm.tqdm.write(f"running: {run.label}: {last_line(self._store.log(run))}")


def last_line(log: pathlib.Path) -> str:
    """Returns the last line of a log that says something, cut to a width that can be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            # The first byte may be the middle of a character, which is no error.
            lines = file.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return ""
    # What is indented only continues a line, as the code that Python shows below a warning.
    begun = (line for line in reversed(lines) if line.strip() and not line.startswith(" "))
    return next(begun, "").strip()[:_WIDTH]


def duration(seconds: float | None) -> str:
    """Returns a time in words, "unknown" for None."""
    return "unknown" if seconds is None else str(datetime.timedelta(seconds=round(seconds)))
