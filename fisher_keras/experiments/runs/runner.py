"""Executes the runs of an experiment that are not finished."""

import contextlib
from collections.abc import Sequence

from fisher_keras.experiments.runs.engine import EngineOptions, execute_all, run_environments
from fisher_keras.experiments.runs.progress import RunProgress
from fisher_keras.experiments.runs.store import ExperimentStore, Record, Run, RunFunction


def run_experiment(
    runs: Sequence[Run],
    function: RunFunction,
    store: ExperimentStore,
    options: EngineOptions,
    *,
    gpus: Sequence[str] = (),
    dry_run: bool = False,
    run_estimate_s: float | None = None,
) -> list[Record]:
    """Executes those of an experiment's runs that are not in its store yet.

    It can be killed and started again at any time: in the end each run has been executed once.

    Args:
        runs: The runs of the experiment, in the order to start them.
        function: Called with a run and its directory, which holds what an earlier call left that
            was cut; it goes on from there and returns the result, for JSON. A `wall_time_s` in it
            is the time of all the calls, in seconds; without it, that of the last one is recorded.
            Each run is executed in a process of its own: see `ExperimentStore.write_definition`.
            Its output goes to `store.log(run)`.
        store: Where the runs are.
        options: Where the runs are executed, and how many at once.
        gpus: This machine's, as `CUDA_VISIBLE_DEVICES` names them.
        dry_run: Only print the plan, and how long it takes.
        run_estimate_s: Seconds that a run takes, as long as the store has none to tell by.

    Returns:
        The records of the runs, in the order of `runs`; with `dry_run` of those that are finished.

    Raises:
        ValueError: If an argument cannot be used, or another command works on the store.
        OSError: If the store cannot be read or written, or Dask is out of reach.
        FailedRunsError: If runs raised errors or their processes died. It names them. They are
            tried again when the experiment is started again.
        KeyboardInterrupt: After Ctrl-C, with the runs stopped.
    """
    if len({run.key for run in runs}) < len(runs):
        raise ValueError("the runs must differ in their settings or seeds, but one is there twice")
    if dry_run:
        num_at_once = 1 if options.scheduler else len(run_environments(options, gpus))
        RunProgress(runs, store.records(), run_estimate_s).print_plan(num_at_once)
    else:
        with store.locked():
            store.write_plan(runs)
            _execute_missing(runs, function, store, options, gpus, run_estimate_s)
    records = {record.key: record for record in store.records()}
    return [records[run.key] for run in runs if run.key in records]


def _execute_missing(
    runs: Sequence[Run],
    function: RunFunction,
    store: ExperimentStore,
    options: EngineOptions,
    gpus: Sequence[str],
    run_estimate_s: float | None,
) -> None:
    progress = RunProgress(runs, store.records(), run_estimate_s)
    print(f"{progress.state()}.", flush=True)
    remaining = iter(progress.remaining())
    try:
        with progress:
            ended = execute_all(
                lambda: next(remaining, None), function, store, options, gpus, progress.show
            )
            with contextlib.closing(ended):
                for run, record in ended if progress.remaining() else ():
                    progress.end(run, record)
    except KeyboardInterrupt:
        print(f"Stopped, {progress.state()}: the same command goes on.", flush=True)
        raise
    finally:
        store.write_lines()
