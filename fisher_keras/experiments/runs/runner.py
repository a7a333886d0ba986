"""Executes the runs of an experiment that are not finished."""

import contextlib
import functools
from collections.abc import Callable, Generator, Sequence

from fisher_keras.experiments.runs.engine import EngineOptions, execute_all, run_environments
from fisher_keras.experiments.runs.process import execute
from fisher_keras.experiments.runs.progress import ProgressLine, RunProgress
from fisher_keras.experiments.runs.store import ExperimentStore, Record, Run, RunFunction


def run_experiment(
    runs: Sequence[Run],
    function: RunFunction,
    store: ExperimentStore,
    options: EngineOptions | None,
    gpus: Sequence[str] = (),
) -> None:
    """Executes those of an experiment's runs that are not in its store yet.

    It can be killed and started again at any time: in the end each run has been executed once.

    Args:
        runs: The runs of the experiment, in the order to start them.
        function: Called with a run and its directory, which holds what an earlier call left that
            was cut; it goes on from there and returns the result, for JSON. A `wall_time_s` in it
            is the time of all the calls, in seconds; without it, that of the last one is recorded.
            Each run is executed in a process of its own: see `ExperimentStore.write_definition`.
            Its output goes to `run.log` there.
        store: Where the runs are.
        options: Where the runs are executed, and how many at once; None for one after the other in
            this process, where the function may have arguments of any kind.
        gpus: This machine's, as `CUDA_VISIBLE_DEVICES` names them.

    Raises:
        ValueError: If an argument cannot be used, or another command works on the store.
        OSError: If the store cannot be read or written, or Dask is out of reach.
        FailedRunsError: If runs raised errors or their processes died. It names them. They are
            tried again when the experiment is started again.
        KeyboardInterrupt: After Ctrl-C, with the runs stopped.
    """
    _check_different(runs)
    with store.locked():
        store.write_plan(runs)
        progress = RunProgress(runs, store.records())
        print(f"{progress.state()}.", flush=True)
        next_run = functools.partial(next, iter(progress.remaining()), None)
        execute_missing(next_run, function, store, options, gpus, progress)


def _check_different(runs: Sequence[Run]) -> None:
    # One key is one folder: of two runs with the same key, only one would ever be executed.
    if len({run.key for run in runs}) < len(runs):
        raise ValueError("the runs must differ in their settings or seeds, but one is there twice")


def print_plan(
    runs: Sequence[Run],
    store: ExperimentStore,
    options: EngineOptions | None,
    gpus: Sequence[str],
    measure: bool,
    data_dir: str | None,
) -> None:
    """Prints the runs that are not finished, and the time that they take on this machine.

    Args:
        runs: As for `run_experiment`.
        store: Likewise.
        options: Likewise.
        gpus: Likewise.
        measure: Whether steps are measured, which takes as long as the smallest experiments.
        data_dir: Where the data of these steps are, see `load_dataset`.
    """
    _check_different(runs)
    # Without the lock: one may ask for the plan while the experiment is at work.
    progress = RunProgress(runs, store.records())
    alone = options is None or options.scheduler
    environments = [{}] if alone else run_environments(options, gpus)
    measured = {}
    if measure:
        # Here, as executing runs needs no TensorFlow in this process.
        from fisher_keras.experiments.runs.step_times import measured_seconds

        measured = measured_seconds(progress.without_time(), environments[0], data_dir)
    progress.print_plan(len(environments), measured)
    if measured:
        print("These times are of training alone, from steps measured here.", flush=True)


def execute_missing(
    next_run: Callable[[], Run | None],
    function: RunFunction,
    store: ExperimentStore,
    options: EngineOptions | None,
    gpus: Sequence[str],
    progress: ProgressLine,
) -> None:
    """Executes runs until there are none; the other arguments are those of `run_experiment`.

    Args:
        next_run: See `execute_all`.
        function: Executes a run.
        store: Where the runs are.
        options: Where they are executed.
        gpus: This machine's.
        progress: Its `end` is called with each run that has ended, and its record, None if it has
            failed.
    """
    try:
        with progress:
            if options is None:
                ended = _execute_here(next_run, function, store)
            else:
                ended = execute_all(next_run, function, store, options, gpus, progress.show)
            # After Ctrl-C the runs are ended here. Without this they would go on until Python
            # happens to collect the generator.
            with contextlib.closing(ended):
                # A generator does nothing before its first item: where all is finished, no cluster
                # is started.
                for run, record in () if progress.is_finished else ended:
                    progress.end(run, record)
    except KeyboardInterrupt:
        print(f"Stopped. {progress.state()}. To continue, run the same command.", flush=True)
        raise
    finally:
        store.write_lines()


def _execute_here(
    next_run: Callable[[], Run | None], function: RunFunction, store: ExperimentStore
) -> Generator[tuple[Run, Record | None]]:
    """Executes runs in this process; yields each with its record."""
    while run := next_run():
        # Only the name of the function is written: its arguments are in this process.
        execute(store.write_definition(run, getattr(function, "func", function)), function)
        yield run, store.record(run)
