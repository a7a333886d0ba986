"""Carries out the runs of an experiment: in several processes, each run once, to the last."""

import heapq
import random
import time
from collections.abc import Sequence
from multiprocessing import connection
from typing import Any

from fisher_keras.experiments.runs.progress import RunProgress
from fisher_keras.experiments.runs.store import ExperimentStore, Run
from fisher_keras.experiments.runs.worker import CarryOut, Outcome, Worker, stop_workers

_POLL_S = 2.0  # Between two looks at a run that another process has claimed.


class FailedRunsError(RuntimeError):
    """Some runs of an experiment raised an error; all others are finished."""


def run_experiment(
    runs: Sequence[Run],
    carry_out: CarryOut,
    store: ExperimentStore,
    *,
    num_workers: int = 1,
    shard: tuple[int, int] = (1, 1),
    dry_run: bool = False,
    run_estimate_s: float | None = None,
) -> list[dict[str, Any]]:
    """Carries out those of an experiment's runs that are not in its store yet.

    It can be killed and started again at any time, and started several times at once on one
    folder: in the end each run has been carried out once. A run that another process has claimed
    is waited for, and carried out here should that process die.

    Args:
        runs: the runs of the experiment, in the order to start them.
        carry_out: called with a run and its directory, which holds what an earlier call left that
            was cut; it goes on from there and returns the result, for JSON. A `wall_time_s` in it
            is the time of all the calls, in seconds; without it, that of the last one is recorded.
            It is called in another process, there for one run after the other: a function of a
            module, or a `functools.partial` of one. What it prints goes to `store.log(run)`.
        store: where the runs are.
        num_workers: processes that carry out runs.
        shard: (i, n) for the i-th of n parts of the runs, i from 1 on, see `parse_shard`.
        dry_run: only print what would be done, and how long that takes.
        run_estimate_s: seconds that a run takes, as long as the store has none to tell by.

    Returns:
        The records of the runs of the shard, in the order of `runs`; with `dry_run` of those that
        are finished.

    Raises:
        ValueError: if an argument cannot be used.
        OSError: if the store cannot be read or written.
        FailedRunsError: if runs raised errors or their processes died. It names them. They are
            tried again when the experiment is started again.
        KeyboardInterrupt: after Ctrl-C, with the workers stopped.
    """
    if num_workers < 1:
        raise ValueError(f"--num_workers must be at least 1, got {num_workers}")
    if len({run.key for run in runs}) < len(runs):
        raise ValueError("the runs must differ in their settings or seeds, but one is there twice")
    _check_shard(*shard, given=shard)
    runs = runs[shard[0] - 1 :: shard[1]]
    progress = RunProgress(runs, store.records(), num_workers, run_estimate_s)
    if dry_run:
        progress.print_plan()
        failures = {}
    else:
        try:
            with progress:
                failures = _carry_out_all(progress, carry_out, store, num_workers)
        except KeyboardInterrupt:
            print(f"Stopped, {progress.state()}: the same command goes on.", flush=True)
            raise
        finally:
            store.write_lines()
    records = {record["key"]: record for record in store.records()}
    # Another machine may have finished one that failed here.
    failed = [run for run in runs if run.key in failures and run.key not in records]
    if failed:
        errors = "; ".join(f"{run.label}: {failures[run.key]}" for run in failed)
        raise FailedRunsError(f"{len(failed)} of {len(runs)} runs failed: {errors}")
    return [records[run.key] for run in runs if run.key in records]


def parse_shard(text: str) -> tuple[int, int]:
    """Returns (i, n) for "i/n".

    Raises:
        ValueError: if the text is something else.
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        index, count = 0, 0
    _check_shard(int(index), int(count), given=text)
    return int(index), int(count)


def _check_shard(index: int, count: int, given: object) -> None:
    if not 1 <= index <= count:
        raise ValueError(f"--shard must be i/n with i from 1 to n, such as 2/4, got {given!r}")


def _carry_out_all(
    progress: RunProgress, carry_out: CarryOut, store: ExperimentStore, num_workers: int
) -> dict[str, str]:
    """Carries out or waits for what is missing; returns the errors of runs, by their keys."""
    failures: dict[str, str] = {}
    # A heap: when to try the run, and its place in the order.
    due = [(0.0, place, run) for place, run in enumerate(progress.remaining())]
    idle: list[Worker] = []
    busy: dict[connection.Connection, tuple[Worker, int, Run]] = {}
    try:
        while due or busy:
            while due and due[0][0] <= time.monotonic() and len(busy) < num_workers:
                _, place, run = heapq.heappop(due)
                worker = idle.pop() if idle else Worker(store, carry_out)
                busy[worker.connection] = worker, place, run
                worker.give(run)
            for ready in connection.wait(list(busy), timeout=_POLL_S / 4):
                worker, place, run = busy.pop(ready)
                outcome, error = worker.answer()
                if worker.is_alive():
                    idle.append(worker)
                if outcome is Outcome.FINISHED:
                    progress.finish(run, store.record(run))
                elif outcome is Outcome.FAILED:
                    failures[run.key] = f"{error} (see {store.log(run)})"
                    progress.fail(run, failures[run.key])
                else:  # Tried again, not in the same moment as by others that wait for it.
                    later = time.monotonic() + _POLL_S * random.uniform(0.5, 1.5)
                    heapq.heappush(due, (later, place, run))
            progress.refresh()
            if not busy and due and due[0][0] > time.monotonic():
                progress.wait_for(len(due))
    finally:
        stop_workers([*idle, *(worker for worker, _, _ in busy.values())])
    return failures
