"""Helpers of the tests of scripts and of several processes."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
TIMEOUT = 120


def start(*command, cwd=None, **variables):
    """Starts Python on the checkout; of the environment, what is None is left out."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={name: value for name, value in environment.items() if value is not None},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, timeout=TIMEOUT):
    """Returns exit code, stdout and stderr; ends a process that takes too long."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, stdout, stderr


def wait_for(path, process, timeout=TIMEOUT):
    deadline = time.monotonic() + timeout
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_until(condition, timeout=TIMEOUT):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run_processes(directory):
    """Returns the numbers of the processes that carry out runs in a folder."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_text().split("\0")
            is_run = "fisher_keras.experiments.runs.process" in command
            if is_run and str(directory) in str(command):
                found.append(int(path.parent.name))
    return found


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def cluster_of(count):
    """Returns the TF_CONFIG of each of some workers on loopback."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(count)]}
    return [
        json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        for index in range(count)
    ]


class Processes:
    """Starts processes that import the package from `path`; ends what is left of them."""

    def __init__(self, path, directory):
        self.directory = directory  # Where there is no package that would be found first.
        self._environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
        self._started = []

    def start(self, *command, **environment):
        process = subprocess.Popen(
            [sys.executable, *command],
            env=self._environment | environment,
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def end(self):
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


class Cluster:
    """A Dask scheduler on loopback and its workers, as they are started from a shell."""

    def __init__(self, processes):
        self._processes = processes
        (port,) = free_ports(1)
        self.address = f"tcp://127.0.0.1:{port}"
        self.scheduler = self.start_scheduler()

    def start_scheduler(self):
        host, port = self.address.removeprefix("tcp://").split(":")
        flags = ["--host", host, "--port", port, "--no-dashboard"]
        # One death of a worker is enough for Dask to condemn the run that it had.
        self.scheduler = self._processes.start(
            *("-m", "dask", "scheduler", *flags),
            DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0",
        )
        return self.scheduler

    def start_worker(self):
        flags = ["--nthreads=1", "--memory-limit=0", "--no-dashboard", "--no-nanny"]
        return self._processes.start("-m", "dask", "worker", self.address, *flags)
