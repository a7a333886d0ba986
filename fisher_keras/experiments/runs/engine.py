"""Executes runs with Dask: each in a process of its own, on this machine or on many.

Dask decides where and when; the state of the runs stands in the store's folder alone. A
task starts `python -m fisher_keras.experiments.runs.process`, waits for it, and ends it if the run
is no longer wanted. So TensorFlow's memory, its settings and its crashes are one run's alone, and
Dask's workers have nothing to do that could stop them.
"""

import contextlib
import importlib.util
import json
import logging
import os
import pathlib
import queue
import signal
import subprocess
import sys
import time
import urllib.parse
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence

import dask
import distributed
from dask.system import cpu_count

from fisher_keras.experiments.runs.progress import RunReports
from fisher_keras.experiments.runs.run_options import EngineOptions
from fisher_keras.experiments.runs.store import ExperimentStore, Record, Run, RunFunction

_POLL_S = 0.2  # Between two looks whether a run is still wanted.
_TICK_S = 1.0
_VISIBLE_S = 60.0  # That a network file system may take to show a new file.
_CONNECT_S = 10.0
_LOOPBACK = "127.0.0.1"
_THREADS = (
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)
_LOCAL_CLUSTER = {
    # A machine that was asleep has not lost its workers: they are threads of this process.
    "distributed.scheduler.worker-ttl": None,
    "distributed.worker.profile.enabled": False,
}


class FailedRunsError(RuntimeError):
    """Some runs raised an error, or their processes died; all others are finished."""


def execute_all(
    next_run: Callable[[], Run | None],
    function: RunFunction,
    store: ExperimentStore,
    options: EngineOptions,
    gpus: Sequence[str],
    tick: Callable[[int], object],
) -> Generator[tuple[Run, Record | None]]:
    """Executes runs until there are none, as many at once as there are workers for.

    Args:
        next_run: Called when there is room for a run. None means that there is none now; it is
            asked again when the caller has dealt with the end of another.
        function: Executes a run, see `ExperimentStore.write_definition`.
        store: Where the runs are.
        options: Where they are executed, and how many at once.
        gpus: This machine's, as `CUDA_VISIBLE_DEVICES` names them.
        tick: Called each second with the number of runs that are being executed.

    Yields:
        Each run that has ended, with its record; None if it has failed.

    Raises:
        ValueError: If an option cannot be used.
        OSError: If the store cannot be written, or a worker or the scheduler is out of reach.
        FailedRunsError: At the end, if runs failed. It names them.
    """
    running: dict[str, tuple[Run, distributed.Future]] = {}  # What is not referred to ends.
    ended: queue.SimpleQueue[distributed.Future] = queue.SimpleQueue()
    reports = RunReports(store)
    with _connected(options, gpus) as (client, environments):

        def submit(run: Run) -> None:
            # A key of its own each time: Dask does not execute a task again whose key it knows.
            folder, key = store.write_definition(run, function), f"{run.label}-{uuid.uuid4()}"
            future = client.submit(_execute, str(folder), environments, key=key)
            running[key] = run, future
            # Dask calls it in another thread. The queue brings the end back to this one, which
            # alone changes `running` and yields.
            future.add_done_callback(ended.put)

        while True:
            # No more than the workers have room for: the death of one is then not put down to
            # runs that were not even begun.
            num_at_once = sum(client.nthreads().values())
            # One even where there is no worker yet: it waits in Dask until one has come.
            while len(running) < max(1, num_at_once) and (run := next_run()):
                submit(run)
                reports.begin(run)
            if not running:
                break
            tick(min(len(running), num_at_once))
            reports.print_due([run for run, _ in running.values()])
            with contextlib.suppress(queue.Empty):
                future = ended.get(timeout=_TICK_S)
                run, _ = running.pop(future.key)
                try:
                    outcome = future.result()
                except distributed.KilledWorker:
                    submit(run)  # One worker after the other died. That is never a run's doing.
                    continue
                # A run's own error comes back as text: what `result` raises is about Dask or its
                # workers, and ends the whole experiment.
                if isinstance(outcome, str):
                    reports.fail(run, outcome)
                yield run, None if isinstance(outcome, str) else outcome
    if failed := reports.failures:
        raise FailedRunsError(f"{len(failed)} runs failed: {'; '.join(failed)}")


@contextlib.contextmanager
def _connected(
    options: EngineOptions, gpus: Sequence[str]
) -> Iterator[tuple[distributed.Client, list[dict[str, str]] | None]]:
    """Starts Dask on this machine, or connects to where it runs.

    Yields:
        The connection, and the environment variables for the run of each local worker, or None.
        At the end of the block nothing is left of both, and runs are ended.
    """
    for name in ("distributed", "distributed.client"):  # Each has its own level.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Before anything is started, as it may refuse the options.
    environments = None if options.scheduler else run_environments(options, gpus)
    # It closes the client before the cluster, to which the client still speaks as it closes.
    with contextlib.ExitStack() as stack:
        address = options.scheduler or stack.enter_context(
            _local_cluster(len(environments), options.dashboard)
        )
        try:
            client = stack.enter_context(distributed.Client(address, timeout=_CONNECT_S))
        except OSError as error:
            raise OSError(f"there is no Dask scheduler at --scheduler={address}") from error
        if options.dashboard:
            page = urllib.parse.urlsplit(client.dashboard_link)
            host = page.hostname if options.scheduler else _LOOPBACK
            print(f"Dask's page: http://{host}:{page.port}{page.path}", flush=True)
        if not client.nthreads():
            print(f"Waiting for workers of {address}.", flush=True)
        try:
            yield client, environments
        except (distributed.CancelledError, distributed.comm.CommClosedError) as error:
            raise ConnectionError(
                f"the Dask scheduler at {address} is gone. Finished runs are kept: start the "
                "scheduler again, and then run the same command"
            ) from error


@contextlib.contextmanager
def _local_cluster(num_workers: int, dashboard: bool) -> Iterator[distributed.LocalCluster]:
    """Starts a scheduler and workers in threads of this process.

    As they only wait for the runs' processes, threads do, and nothing is left of them, however
    this process ends.
    """
    if dashboard and not importlib.util.find_spec("bokeh"):
        raise ValueError("--dashboard needs another package: pip install bokeh")
    with dask.config.set(_LOCAL_CLUSTER), warnings.catch_warnings():
        # It happens on any busy machine.
        warnings.filterwarnings("ignore", "Creating scratch directories is taking")
        with distributed.LocalCluster(
            n_workers=num_workers,
            threads_per_worker=1,
            processes=False,
            # Else Dask would judge its workers by the memory of this process, in which they are.
            memory_limit=0,
            # Else their pages are there for the whole network.
            dashboard_address=f"{_LOOPBACK}:{8787 if dashboard else 0}",
            worker_dashboard_address=f"{_LOOPBACK}:0",
            silence_logs=logging.CRITICAL,
        ) as cluster:
            yield cluster


def run_environments(options: EngineOptions, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Returns the environment variables of each of the runs that are executed at once.

    Args:
        options: How many these are.
        gpus: This machine's, as `CUDA_VISIBLE_DEVICES` names them.

    Returns:
        For each run its GPU, and its share of the cores as the number of its threads.

    Raises:
        ValueError: If there are more runs than the GPUs take, or no GPUs for runs to share.
    """
    if options.runs_per_gpu > 1 and not gpus:
        raise ValueError("--runs_per_gpu has no effect without GPUs: give --num_workers instead")
    room = len(gpus) * options.runs_per_gpu
    num_runs = options.num_workers or room or 1
    if gpus and num_runs > room:
        raise ValueError(
            f"--num_workers={num_runs} is more than --runs_per_gpu={options.runs_per_gpu} on each "
            f"of {len(gpus)} GPUs: raise --runs_per_gpu"
        )
    environments = [_threads(cpu_count() // num_runs) for _ in range(num_runs)]
    for index, environment in enumerate(environments if gpus else ()):
        # In turn: no GPU gets a second run before each has one.
        environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        if options.runs_per_gpu > 1:  # Else TensorFlow takes all of the GPU's memory.
            environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    return environments


def _threads(number: int) -> dict[str, str]:
    return dict.fromkeys(_THREADS, str(max(1, number)))


def _execute(folder: str, environments: Sequence[dict] | None) -> Record | str:
    """Executes the run in a folder: the task of a Dask worker.

    Returns:
        The run's record, or its error in one line.
    """
    worker = distributed.get_worker()
    key = worker.get_current_task()
    _wait_for_folder(folder, worker)
    if environments:
        # The names of a local cluster's workers are their numbers, from 0.
        environment = environments[worker.name]
    else:  # The threads of a worker are its runs at once, which share the cores that it may use.
        environment = _threads(cpu_count() // worker.state.nthreads)
    with _process(folder, environment) as process:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
            if not _is_wanted(worker, key):
                raise distributed.Reschedule  # Where there is still somebody who waits for it.
        # Read only at the end: as the run prints to its log, the pipe does not fill meanwhile.
        error = process.stderr.read().decode(errors="replace").strip()
    log = pathlib.Path(folder, "run.log")
    if process.returncode == -signal.SIGTERM:
        # So a cluster takes a machine back. The run goes on elsewhere.
        raise distributed.Reschedule
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return f"its process was ended by {name} (see {log})"
    if process.returncode:
        return f"{error.splitlines()[-1] if error else process.returncode} (see {log})"
    return Record(**json.loads(pathlib.Path(folder, "record.json").read_text(encoding="utf-8")))


def _wait_for_folder(folder: str, worker: distributed.Worker) -> None:
    deadline = time.monotonic() + _VISIBLE_S
    while not pathlib.Path(folder, "definition.json").exists():
        if time.monotonic() > deadline:
            raise FileNotFoundError(
                f"the Dask worker {worker.address} does not see {folder}: --output_dir must be on "
                "a file system that all workers share"
            )
        time.sleep(_POLL_S)


@contextlib.contextmanager
def _process(folder: str, environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """Starts the process of a run. It ends with the block, or with this process."""
    # -P: what lies in the working directory does not stand in for what is installed.
    command = [sys.executable, "-P", "-m", "fisher_keras.experiments.runs.process", folder]
    process = subprocess.Popen(
        [*command, "--end_with_stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | environment,
        process_group=0,  # Ctrl-C is the command's alone.
    )
    with process:
        try:
            yield process
        finally:
            # Before the outer block waits for the end of the process, which may be hours away.
            process.kill()


def _is_wanted(worker: distributed.Worker, key: str) -> bool:
    """Returns whether a task is still to be executed by the worker that it runs on."""
    task = worker.state.tasks.get(key)
    going = worker.status not in (distributed.Status.closing, distributed.Status.closed)
    return going and task is not None and task.state == "executing"
