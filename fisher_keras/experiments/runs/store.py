"""The runs of an experiment on disk: each is carried out once, and none is lost.

A store is a folder, which machines may share:

- `runs/<key>/` has all files of one run: `definition.json`, what it is and which function carries
  it out; `lock`, held by the process that does; `run.log`, what that prints; what the function
  writes. Once the run is finished, `record.json` is there: one line, written in one go.
- `runs.jsonl` has the lines of all finished runs, to be kept under version control. A run whose
  line is in it is finished, also where its directory is not there.
- `.lock` is held by the command that works on the experiment.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import filelock

from fisher_keras.files import replacing

CarryOut = Callable[["Run", pathlib.Path], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Run:
    """What defines a run.

    Attributes:
        experiment: Name of the experiment.
        config: All settings of the run, for JSON. 1 and 1.0 are different settings.
        seed: Of everything that is random in it.
        recipe_version: To be raised when the same settings no longer give the same result.
        label: How messages call the run; does not define it.
    """

    experiment: str
    config: dict[str, Any]
    seed: int
    recipe_version: int
    label: str

    def __post_init__(self) -> None:
        """Finds the key now, so that a setting that cannot be stored is an error here.

        Raises:
            ValueError: If the settings are not JSON.
        """
        try:
            self.key  # noqa: B018
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the settings of {self.label} must be JSON, numbers of Python's own: {error}"
            ) from error

    @property
    def definition(self) -> dict[str, Any]:
        """What defines the run, as it stands in the record."""
        names = ("experiment", "recipe_version", "config", "seed")
        return {name: getattr(self, name) for name in names}

    @functools.cached_property
    def key(self) -> str:
        """16 hexadecimal digits, the same in every process; differs where the definition does."""
        text = _json(self.definition, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class ExperimentStore:
    """The folder of an experiment's runs.

    Examples:
        >>> store = ExperimentStore("results/batch_size")
        >>> errors = [record["result"]["test"]["error_percent"] for record in store.records()]
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        """Opens the store; it is made when there is something to write.

        Args:
            directory: The folder.
        """
        self.directory = pathlib.Path(directory).expanduser().absolute()
        self.lines = self.directory / "runs.jsonl"

    def run_directory(self, run: Run) -> pathlib.Path:
        """Returns the directory of a run's files."""
        return self.directory / "runs" / run.key

    def log(self, run: Run) -> pathlib.Path:
        """Returns the file of what a run prints."""
        return self.run_directory(run) / "run.log"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other commands out of the experiment.

        Raises:
            ValueError: If another one is at work.
            OSError: If the directory cannot be written.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.directory / ".lock")
        try:
            held = lock.acquire(timeout=0)
        except filelock.Timeout:
            holder = pathlib.Path(lock.lock_file).read_text(encoding="utf-8")
            raise ValueError(
                f"{self.directory} is in use by {holder or 'another process'}: wait for its end, "
                "or give another --output_dir"
            ) from None
        with held:
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            pathlib.Path(lock.lock_file).write_text(
                f"process {os.getpid()} on {socket.gethostname()} since {since}", encoding="utf-8"
            )
            yield

    def define(self, run: Run, carry_out: CarryOut) -> pathlib.Path:
        """Makes a run's directory, ready for `python -m fisher_keras.experiments.runs.process`.

        Args:
            run: The run.
            carry_out: A function of a module, or a `functools.partial` of one with keyword
                arguments that are JSON: where a run is carried out, and not what it is.

        Returns:
            The directory.

        Raises:
            OSError: If it cannot be written.
        """
        function = getattr(carry_out, "func", carry_out)
        definition = dataclasses.asdict(run) | {
            "carry_out": f"{function.__module__}:{function.__qualname__}",
            "options": getattr(carry_out, "keywords", {}),
        }
        directory = self.run_directory(run)
        directory.mkdir(parents=True, exist_ok=True)
        with replacing(directory / "definition.json") as part:
            _write(part, [json.dumps(definition, indent=2)])
        return directory

    def record(self, run: Run) -> dict[str, Any] | None:
        """Returns the record in the run's directory, None if it is not there: see `records`."""
        return next(iter(_read(self._record_file(run))), None)

    def finish(self, run: Run, result: dict[str, Any], wall_time_s: float) -> None:
        """Writes a run's record.

        Args:
            run: The run, whose `lock` is held.
            result: What came out of it, for JSON.
            wall_time_s: Time that it took, in seconds.

        Raises:
            ValueError: If the result is not JSON.
            OSError: If the record cannot be written; the run is then not finished.
        """
        record = {"key": run.key, **run.definition, "wall_time_s": wall_time_s, "result": result}
        try:
            line = _json(record)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the result of {run.label} is not JSON: {error}") from error
        with replacing(self._record_file(run)) as part:
            _write(part, [line])

    def records(self) -> list[dict[str, Any]]:
        """Returns the records of all finished runs, in an order that depends on them alone.

        Returns:
            A dict each: `key`, `experiment`, `recipe_version`, `config`, `seed`, `wall_time_s` and
            `result`; the seeds of one configuration follow each other.

        Raises:
            ValueError: If a record cannot be read as one.
            OSError: If a file cannot be read.
        """
        records = _read(self.lines)
        for path in self.directory.glob("runs/*/record.json"):
            records += _read(path)
        return sorted({record["key"]: record for record in records}.values(), key=_order)

    def records_of(self, runs: Iterable[Run]) -> list[dict[str, Any]]:
        """Returns those of `records` that are of some runs."""
        wanted = {run.key for run in runs}
        return [record for record in self.records() if record["key"] in wanted]

    def write_lines(self) -> None:
        """Brings `runs.jsonl` up to date.

        Raises:
            ValueError: If a record cannot be read as one.
            OSError: If a file cannot be read or written; the old `runs.jsonl` is then still there.
        """
        records = self.records()
        if records != _read(self.lines):
            with replacing(self.lines) as part:
                _write(part, map(_json, records))

    def _record_file(self, run: Run) -> pathlib.Path:
        return self.run_directory(run) / "record.json"


def _order(record: dict[str, Any]) -> tuple:
    config = _json(record["config"], sort_keys=True)
    return record["experiment"], record["recipe_version"], config, record["seed"]


def _json(value: Any, *, sort_keys: bool = False) -> str:
    return json.dumps(value, sort_keys=sort_keys, allow_nan=False)


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records in a file, one a line; none if there is no file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record["key"], _order(record), record["wall_time_s"], record["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"line {number} of {path} is not the record of a run: take the file from version "
                "control or a backup, or remove it"
            ) from error
        records.append(record)
    return records


def _write(path: pathlib.Path, lines: Iterable[str]) -> None:
    """Writes a new file; a full disk says so before the end, on a network at `fsync`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
