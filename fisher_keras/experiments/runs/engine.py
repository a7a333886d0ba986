"""Carries out runs with Dask: each in a process of its own, on this machine or on many.

Dask decides where and when; what is done and what is left stands in the store's folder alone. A
task starts `python -m fisher_keras.experiments.runs.run`, waits for it, and ends it if the run is
no longer wanted. So TensorFlow's memory, its settings and its crashes are one run's alone, and
Dask's workers have nothing to do that could stop them.
"""

import contextlib
import dataclasses
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
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dask
import distributed
from dask.system import cpu_count

from fisher_keras.experiments.flags import check_options, option
from fisher_keras.experiments.runs.store import CarryOut, ExperimentStore, Run

_POLL_S = 0.2  # Between two looks whether a run is still wanted.
_TICK_S = 1.0
_VISIBLE_S = 60.0  # That a network file system may take to show a new file.
_CONNECT_S = 10.0
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


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """Where runs are carried out, and how many at once; the fields' texts are those of --help."""

    num_workers: int | None = option(
        None,
        "Runs at once; by default --runs_per_gpu on each GPU, or 1 without GPUs.",
        group="runs",
        least=1,
    )
    runs_per_gpu: int = option(1, "Runs that share a GPU.", group="runs", least=1)
    scheduler: str | None = option(
        None,
        "Address of a Dask scheduler, such as tcp://HOST:8786, whose workers carry out the runs; "
        "by default they are carried out on this machine.",
        group="runs",
    )
    dashboard: bool = option(False, "Show Dask's page, and print its address.", group="runs")

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
            ValueError: If a value cannot be used.
        """
        check_options(self)
        if self.scheduler is not None and self.num_workers is not None:
            raise ValueError(
                "--num_workers has no effect with --scheduler, whose workers decide: leave it out"
            )


class Engine:
    """Carries out runs. Made by `open_engine`."""

    def __init__(self, client: distributed.Client, environments: Sequence[dict] | None) -> None:
        """Wraps a connection to Dask.

        Args:
            client: The connection.
            environments: What the run of each local worker gets in its environment; None if the
                workers are elsewhere.
        """
        self._client = client
        self._environments = environments
        self._ended: queue.SimpleQueue[distributed.Future] = queue.SimpleQueue()

    def num_at_once(self) -> int:
        """Returns how many runs can be carried out at once now; 0 if no worker is there."""
        return sum(self._client.nthreads().values())

    def carry_out(
        self,
        next_run: Callable[[], Run | None],
        function: CarryOut,
        store: ExperimentStore,
        tick: Callable[[int], object],
    ) -> Iterator[tuple[Run, dict[str, Any] | str]]:
        """Carries out runs until there are none, as many at once as there are workers for.

        Args:
            next_run: Called when there is room for a run. None means that there is none now; it
                is asked again when the caller has dealt with the end of another.
            function: Carries out a run, see `ExperimentStore.define`.
            store: Where the runs are.
            tick: Called each second with the number of runs that are being carried out.

        Yields:
            Each run that has ended, with its record, or with its error in one line.

        Raises:
            OSError: If the store cannot be written, or a worker or the scheduler is out of reach.
        """
        # Dask has no queue of its own this way: the death of a worker is not put down to runs
        # that were not even begun.
        running: dict[str, tuple[Run, distributed.Future]] = {}
        while True:
            at_once = self.num_at_once()
            while len(running) < max(1, at_once) and (run := next_run()):
                folder = store.define(run, function)
                self._submit(run, folder, running)
            if not running:
                return
            tick(min(len(running), at_once))
            with contextlib.suppress(queue.Empty):
                future = self._ended.get(timeout=_TICK_S)
                run, _ = running.pop(future.key)
                try:
                    outcome = future.result()
                except distributed.KilledWorker:
                    # Its workers died one after the other. That is never a run's own doing.
                    self._submit(run, store.run_directory(run), running)
                else:
                    yield run, outcome

    def _submit(self, run: Run, folder: pathlib.Path, running: dict) -> None:
        key = f"{run.label}-{uuid.uuid4()}"
        future = self._client.submit(
            _carry_out, str(folder), self._environments, key=key, pure=False
        )
        running[key] = run, future
        future.add_done_callback(self._ended.put)


@contextlib.contextmanager
def open_engine(options: EngineOptions, gpus: Sequence[str] = ()) -> Iterator[Engine]:
    """Starts Dask on this machine, or connects to where it runs.

    Args:
        options: Where, and how many runs at once.
        gpus: This machine's, as `CUDA_VISIBLE_DEVICES` names them.

    Yields:
        The engine. At the end of the block nothing of it is left, and runs are ended.

    Raises:
        ValueError: If an option cannot be used.
        OSError: If there is no scheduler at the address, or it is lost on the way.
    """
    for name in ("distributed", "distributed.client"):  # Each has its own level.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    environments = None if options.scheduler else run_environments(options, gpus)
    if options.dashboard and not options.scheduler and not importlib.util.find_spec("bokeh"):
        raise ValueError("--dashboard needs another package: pip install bokeh")
    with contextlib.ExitStack() as stack:
        if options.scheduler:
            address = options.scheduler
        else:
            stack.enter_context(dask.config.set(_LOCAL_CLUSTER))
            stack.enter_context(warnings.catch_warnings())
            # It happens on any busy machine.
            warnings.filterwarnings("ignore", "Creating scratch directories is taking")
            # Threads of this process, which only wait: nothing is left of them, however it ends.
            address = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=len(environments),
                    threads_per_worker=1,
                    processes=False,
                    memory_limit=0,
                    # Else their pages are there for the whole network.
                    dashboard_address=f"127.0.0.1:{8787 if options.dashboard else 0}",
                    worker_dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                )
            )
        try:
            client = stack.enter_context(distributed.Client(address, timeout=_CONNECT_S))
        except OSError as error:
            raise OSError(
                f"there is no Dask scheduler at --scheduler={address}: {error}"
            ) from error
        if options.dashboard:
            link = client.dashboard_link
            if not options.scheduler:
                port = client.scheduler_info()["services"]["dashboard"]
                link = f"http://127.0.0.1:{port}/status"
            print(f"Dask's page: {link}", flush=True)
        if not client.nthreads():
            print(f"Waiting for workers of {address}.", flush=True)
        try:
            yield Engine(client, environments)
        except (distributed.CancelledError, distributed.comm.CommClosedError) as error:
            raise ConnectionError(
                f"the Dask scheduler at {options.scheduler} is gone; what is finished is kept: "
                "start it again, and the same command goes on"
            ) from error


def run_environments(options: EngineOptions, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Returns what each of the runs that are carried out at once gets in its environment.

    Args:
        options: How many these are.
        gpus: This machine's, as `CUDA_VISIBLE_DEVICES` names them.

    Returns:
        For each run its GPU, and its share of the cores as the number of its threads.

    Raises:
        ValueError: If there are more runs than the GPUs take.
    """
    room = len(gpus) * options.runs_per_gpu
    num_runs = options.num_workers or room or 1
    if gpus and num_runs > room:
        raise ValueError(
            f"--num_workers={num_runs} is more than --runs_per_gpu={options.runs_per_gpu} on each "
            f"of {len(gpus)} GPUs: raise --runs_per_gpu"
        )
    environments = [_threads(cpu_count() // num_runs) for _ in range(num_runs)]
    for index, environment in enumerate(environments if gpus else ()):
        environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        if options.runs_per_gpu > 1:  # Else TensorFlow takes all of the GPU's memory.
            environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    return environments


def _threads(number: int) -> dict[str, str]:
    return dict.fromkeys(_THREADS, str(max(1, number)))


def _carry_out(folder: str, environments: Sequence[dict] | None) -> dict[str, Any] | str:
    """Carries out the run in a folder: what a Dask worker does.

    Returns:
        The run's record, or its error in one line.
    """
    worker = distributed.get_worker()
    key = worker.get_current_task()
    _wait_for_folder(folder, worker)
    if environments:
        environment = environments[worker.name]
    else:  # The threads of a worker are its runs at once, which share the cores that it may use.
        environment = _threads(cpu_count() // worker.state.nthreads)
    with _process(folder, environment) as process:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
            if not _is_wanted(worker, key):
                raise distributed.Reschedule  # Where there is still somebody who waits for it.
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
    return json.loads(pathlib.Path(folder, "record.json").read_text(encoding="utf-8"))


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
    command = [sys.executable, "-P", "-m", "fisher_keras.experiments.runs.run", folder]
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
            process.kill()


def _is_wanted(worker: distributed.Worker, key: str) -> bool:
    """Returns whether a task is still to be carried out by the worker that it runs on."""
    task = worker.state.tasks.get(key)
    going = worker.status not in (distributed.Status.closing, distributed.Status.closed)
    return going and task is not None and task.state == "executing"
