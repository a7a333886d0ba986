"""One run in a process of its own: `python -m fisher_keras.experiments.runs.process FOLDER`.

The folder is that of a run in an `ExperimentStore`, with its `definition.json`. What the process
prints goes to `run.log` there; its stderr gets one line if the run fails.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import pkgutil
import shutil
import sys
import threading
import time
import traceback
from typing import TextIO

import filelock

from fisher_keras.experiments.runs.store import BACKUP, ExperimentStore, Run, RunFunction
from fisher_keras.experiments.training.provenance import git_revision
from fisher_keras.files import write_text


def execute(directory: pathlib.Path, function: RunFunction | None = None) -> None:
    """Executes the run that is defined in a directory, unless its record is there.

    The result gets `git_revisions`, the commits of all processes that were at the run.

    Args:
        directory: Of the run. While another process is at the run, this one waits.
        function: Executes it, by default the one that the definition names.

    Raises:
        OSError: If a file cannot be read or written.
        Exception: What the run's function raises.
    """
    definition = json.loads((directory / "definition.json").read_text(encoding="utf-8"))
    # Both are taken out, so that what is left are the fields of `Run`.
    named, options = definition.pop("function"), definition.pop("options")
    function = function or functools.partial(pkgutil.resolve_name(named), **options)
    run, store = Run(**definition), ExperimentStore(directory.parents[1])
    with filelock.FileLock(directory / "lock"):
        # Only now, under the lock: whoever had it before may have finished the run.
        if not store.record(run):
            start = time.monotonic()
            revisions = _git_revisions(directory)
            result = function(run, directory) | {"git_revisions": revisions}
            # Of all the processes that were at the run, if the function knows it.
            seconds = result.get("wall_time_s", time.monotonic() - start)
            store.finish(run, result, seconds)
        # Only now: a kill may leave half of it, which nothing must go on from.
        shutil.rmtree(directory / BACKUP, ignore_errors=True)


def _git_revisions(directory: pathlib.Path) -> list[str | None]:
    """Adds this process's commit to those of the earlier ones at a run; returns all."""
    path = directory / "git_revisions.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    revisions = list(dict.fromkeys([*earlier, git_revision()]))
    write_text(path, json.dumps(revisions))
    return revisions


def main() -> None:
    """Executes the run in the directory that the command line names."""
    parser = argparse.ArgumentParser(description="Executes one run of an experiment.")
    parser.add_argument("folder", type=pathlib.Path, help="the run's, in runs/ of the experiment")
    parser.add_argument(
        "--end_with_stdin", action="store_true", help="end when the other end of stdin is closed"
    )
    arguments = parser.parse_args()
    if arguments.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    directory = arguments.folder.expanduser().absolute()
    # Until the log is open, the process's own stderr is where an error can be told.
    errors = sys.stderr
    try:
        errors = _print_to(directory / "run.log")
        execute(directory)
    except Exception as error:
        with contextlib.suppress(OSError):  # The disk may be full.
            traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=errors)
        sys.exit(1)


def _end_with_stdin() -> None:
    """Ends the process with the one that started it, however that ends: it had the other end."""
    while os.read(0, 1):  # Python's own stdin would be locked as the process ends.
        pass
    os._exit(1)


def _print_to(log: pathlib.Path) -> TextIO:
    """Redirects stdout and stderr to a file, those of TensorFlow's C++, too.

    Returns:
        The stderr of before.
    """
    # Appended to: a resumed run keeps what its earlier processes printed.
    with log.open("ab") as file:
        errors = os.fdopen(os.dup(2), "w")
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout.reconfigure(line_buffering=True)
    return errors


if __name__ == "__main__":
    main()
