"""Status of an experiment, read from its folder: `bin/status`."""

import dataclasses
import json
import pathlib
import re
import time

import filelock

from fisher_keras.experiments.command_line.flags import REQUIRED, option
from fisher_keras.experiments.runs.progress import duration, last_line
from fisher_keras.experiments.runs.store import ExperimentStore

_STATES = ("finished", "running", "failed", "stopped", "waiting")
_ERROR = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b")


@dataclasses.dataclass(frozen=True)
class StatusOptions:
    """Options of the status, also as flags."""

    folder: str = option(REQUIRED, "Required. Folder of an experiment.", group="experiment")


def print_status(options: StatusOptions) -> None:
    """Prints the state of each run of an experiment, and the counts.

    Args:
        options: The folder of an `ExperimentStore`.

    Raises:
        ValueError: If there are no runs.
        OSError: If a file cannot be read.
    """
    store = ExperimentStore(options.folder)
    labels = _labels(store)
    seconds = {record.key: record.wall_time_s for record in store.records()}
    if not labels and not seconds:
        raise ValueError(f"{options.folder} holds no experiment: expected a folder with runs/")
    states = dict.fromkeys(_STATES, 0)
    # In version control there are only records: these runs have no names, and are counted.
    for key in {**labels, **seconds}:
        if key in seconds:
            state, text = "finished", duration(seconds[key])
        else:
            state, text = _state(store.begun(key))
        states[state] += 1
        if key in labels:
            print(f"{state:<10}{labels[key]:<40}  {text}".rstrip())
    counts = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    print(f"{options.folder}: {counts}")
    if _is_held(store.directory / ".lock"):
        print(f"at work: {(store.directory / '.lock').read_text(encoding='utf-8')}")
    else:
        print("no command is at work")


def _labels(store: ExperimentStore) -> dict[str, str]:
    """Returns the names of the planned runs, and of those that were begun, by key."""
    labels = {}
    if store.plan.exists():
        labels = json.loads(store.plan.read_text(encoding="utf-8"))
    for path in sorted(store.directory.glob("runs/*/definition.json")):
        # A directory's name ends in the key.
        labels[path.parent.name[-16:]] = json.loads(path.read_text(encoding="utf-8"))["label"]
    return labels


def _state(directory: pathlib.Path | None) -> tuple[str, str]:
    """Returns the state of a run that is not finished, and the last line of its log."""
    if directory is None or not (log := directory / "run.log").exists():
        return "waiting", ""
    last = last_line(log)
    state = "failed" if _ERROR.match(last) else "stopped"
    if _is_held(directory / "lock"):
        state = "running"
        last += f" ({duration(time.time() - log.stat().st_mtime)} ago)"
    return state, f"{last}\n{'':<10}{log}"


def _is_held(path: pathlib.Path) -> bool:
    if not path.exists():
        return False
    # The lock tells the truth where a note would not: it is gone however its process ended.
    try:
        with filelock.FileLock(path, timeout=0):
            return False
    except filelock.Timeout:
        return True
