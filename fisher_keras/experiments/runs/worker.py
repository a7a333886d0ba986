"""The processes that carry out runs."""

import contextlib
import enum
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from multiprocessing import connection
from typing import Any

from fisher_keras.experiments.runs.store import ExperimentStore, Run

CarryOut = Callable[[Run, pathlib.Path], dict[str, Any]]

_SPAWN = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork.
_LOST_CLAIM = os.EX_TEMPFAIL  # Exit code of a worker whose run became another process's.
_STOP_S = 10.0  # That workers get to end by themselves.


class Outcome(enum.Enum):
    """What became of a run that a worker was given."""

    FINISHED = enum.auto()  # Here or elsewhere: its record is there.
    FAILED = enum.auto()
    CLAIMED = enum.auto()  # By another process.


class Worker:
    """A process that carries out one run after the other, as they are given to it.

    Attributes:
        connection: can be waited for: it is ready when there is an answer.
    """

    def __init__(self, store: ExperimentStore, carry_out: CarryOut) -> None:
        """Starts the process.

        Args:
            store: where the runs are.
            carry_out: see `run_experiment`.
        """
        self.connection, runs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(runs, store, carry_out), daemon=True)
        # Ctrl-C reaches all processes of a terminal; this one alone deals with it.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._process.start()
        finally:
            signal.signal(signal.SIGINT, previous)
        runs.close()

    def give(self, run: Run) -> None:
        """Has a run carried out."""
        with contextlib.suppress(BrokenPipeError):  # It is dead: `answer` says so.
            self.connection.send(run)

    def answer(self) -> tuple[Outcome, str]:
        """Returns what became of the run, and its error if it failed."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            if self._process.exitcode == _LOST_CLAIM:
                return Outcome.CLAIMED, ""
            return Outcome.FAILED, f"its process ended with exit code {self._process.exitcode}"

    def is_alive(self) -> bool:
        """Returns whether it can be given another run."""
        return self._process.is_alive()

    def terminate(self) -> None:
        """Asks the process to stop what it does and give it back."""
        self._process.terminate()

    def join(self, timeout_s: float) -> None:
        """Waits for the end of the process, and brings it about if it takes too long."""
        self._process.join(timeout_s)
        self._process.kill()
        self._process.join()


def stop_workers(workers: Iterable[Worker]) -> None:
    """Stops the processes; what they are at is given back, to be continued."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + _STOP_S
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))


def _serve(runs: connection.Connection, store: ExperimentStore, carry_out: CarryOut) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # On its way out the claim is released.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout.reconfigure(line_buffering=True)
    while True:
        runs.send(_attempt(runs.recv(), store, carry_out))


def _end_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _attempt(run: Run, store: ExperimentStore, carry_out: CarryOut) -> tuple[Outcome, str]:
    try:
        claim = store.claim(run, on_lost=lambda: os._exit(_LOST_CLAIM))
        if claim is None:
            return (Outcome.FINISHED if store.record(run) else Outcome.CLAIMED), ""
        with claim:
            _print_to(store.log(run))
            start = time.monotonic()
            result = carry_out(run, store.run_directory(run))
            seconds = result.get("wall_time_s", time.monotonic() - start)
            store.finish(run, claim, result, seconds)
    except Exception as error:
        with contextlib.suppress(OSError):  # The disk may be full.
            traceback.print_exc()
        return Outcome.FAILED, f"{type(error).__name__}: {error}"
    return Outcome.FINISHED, ""


def _print_to(log: pathlib.Path) -> None:
    """Sends to a file what is printed from now on, by TensorFlow's C++, too."""
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
