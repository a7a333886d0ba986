"""The runs of an experiment on disk: each is executed once, and none is lost.

A store is a folder, which machines may share:

- `runs/<label>_<key>/` (`runs/<key>/` in older stores) has all files of one run:
  `definition.json`, its settings and the function that executes it; `lock`, held by the process
  that does; `git_revisions.json`, the commits of such processes; `run.log`, their output; the
  function's own files, of which `backup/` is what it goes on from. Once the run is finished,
  `record.json` is there: one line, written in one go.
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
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fisher_keras.experiments.folder_lock import folder_lock
from fisher_keras.files import write_text

BACKUP = "backup"  # Folder of a run that is removed once its record is there.
RunFunction = Callable[["Run", pathlib.Path], dict[str, Any]]  # From run and folder to result.


@dataclasses.dataclass(frozen=True)
class Run:
    """The definition of a run.

    Attributes:
        experiment: Name of the experiment.
        config: All settings of the run, for JSON. 1 and 1.0 are different settings.
        seed: Of everything that is random in it.
        recipe_version: To be raised when the same settings no longer give the same result.
        label: The run's name in messages; does not define it.
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
        """The parts that define the run, as they stand in the record."""
        names = ("experiment", "recipe_version", "config", "seed")
        return {name: getattr(self, name) for name in names}

    @functools.cached_property
    def key(self) -> str:
        """16 hexadecimal digits, the same in every process; differs where the definition does."""
        # Sorted: in which order the settings were written down must not make another run.
        text = _json(self.definition, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Record:
    """A finished run, as one line of `runs.jsonl`.

    Attributes:
        key: See `Run`, as `experiment`, `recipe_version`, `config` and `seed`.
        experiment: Name of the experiment.
        recipe_version: Of the run's function.
        config: All settings of the run.
        seed: Of everything that is random in it.
        wall_time_s: Time that it took, in seconds.
        result: Of the run, as JSON has it.
    """

    key: str
    experiment: str
    recipe_version: int
    config: dict[str, Any]
    seed: int
    wall_time_s: float
    result: dict[str, Any]

    def to_line(self) -> str:
        """Returns the record as a line of JSON.

        Raises:
            ValueError: If the result has an infinite number or NaN.
            TypeError: If it has something else that is not JSON.
        """
        return _json(vars(self)) + "\n"


class ExperimentStore:
    """The folder of an experiment's runs.

    Examples:
        >>> store = ExperimentStore("results/batch_size")
        >>> hours = sum(record.wall_time_s for record in store.records()) / 3600
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        """Opens the store; it is made when there is something to write.

        Args:
            directory: The folder.
        """
        self.directory = pathlib.Path(directory).expanduser().absolute()
        self.lines = self.directory / "runs.jsonl"
        self.plan = self.directory / ".plan.json"

    def begun(self, key: str) -> pathlib.Path | None:
        """Returns the directory of the run with a key; None if the run was never begun."""
        # By the key alone: labels are for people and may change.
        return next(self.directory.glob(f"runs/*{key}"), None)

    def run_directory(self, run: Run) -> pathlib.Path:
        """Returns the directory of a run's files, which exists if the run was begun."""
        label = re.sub(r"[^\w.=+-]+", "_", run.label)[:80]
        return self.begun(run.key) or self.directory / "runs" / f"{label}_{run.key}"

    def log(self, run: Run) -> pathlib.Path:
        """Returns the file of what a run prints."""
        return self.run_directory(run) / "run.log"

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other commands out of the experiment, see `folder_lock`."""
        return folder_lock(self.directory)

    def write_plan(self, runs: Sequence[Run]) -> None:
        """Writes the names of all runs of the experiment, for `fisher-keras status`.

        Raises:
            OSError: If they cannot be written.
        """
        write_text(self.plan, json.dumps({run.key: run.label for run in runs}, indent=2) + "\n")

    def write_definition(self, run: Run, function: RunFunction) -> pathlib.Path:
        """Makes a run's directory, ready for `python -m fisher_keras.experiments.runs.process`.

        Args:
            run: The run.
            function: A function of a module, or a `functools.partial` of one with keyword
                arguments that are JSON: where a run is executed, and not what defines it.

        Returns:
            The directory.

        Raises:
            OSError: If it cannot be written.
        """
        # By its name and not pickled, as another Python on another machine may execute it.
        named = getattr(function, "func", function)
        definition = dataclasses.asdict(run) | {
            "function": f"{named.__module__}:{named.__qualname__}",
            "options": getattr(function, "keywords", {}),
        }
        directory = self.run_directory(run)
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / "definition.json", json.dumps(definition, indent=2) + "\n")
        return directory

    def record(self, run: Run) -> Record | None:
        """Returns the record in the run's directory, None if it is not there."""
        return next(iter(_read(self._record_file(run))), None)

    def finish(self, run: Run, result: dict[str, Any], wall_time_s: float) -> None:
        """Writes a run's record.

        Args:
            run: The run, whose `lock` is held.
            result: Of the run, for JSON.
            wall_time_s: Time that it took, in seconds.

        Raises:
            ValueError: If the result is not JSON.
            OSError: If the record cannot be written; the run is then not finished.
        """
        record = Record(run.key, **run.definition, wall_time_s=wall_time_s, result=result)
        try:
            line = record.to_line()
        except (TypeError, ValueError) as error:
            raise ValueError(f"the result of {run.label} is not JSON: {error}") from error
        write_text(self._record_file(run), line)

    def records(self) -> list[Record]:
        """Returns the records of all finished runs, in an order that depends on them alone.

        Returns:
            The records; the seeds of one configuration follow each other.

        Raises:
            ValueError: If a record cannot be read as one.
            OSError: If a file cannot be read.
        """
        found = _read(self.lines)
        for path in self.directory.glob("runs/*/record.json"):
            found += _read(path)
        return distinct(found)

    def records_of(self, runs: Iterable[Run]) -> list[Record]:
        """Returns those of `records` that are of some runs."""
        wanted = {run.key for run in runs}
        return [record for record in self.records() if record.key in wanted]

    def write_lines(self) -> None:
        """Brings `runs.jsonl` up to date.

        Raises:
            ValueError: If a record cannot be read as one.
            OSError: If a file cannot be read or written; the old `runs.jsonl` is then still there.
        """
        records = self.records()
        if records != _read(self.lines):
            write_text(self.lines, "".join(map(Record.to_line, records)))

    def replace(self, record: Record) -> None:
        """Puts a record in the place of the one that the same run has.

        Args:
            record: Of a finished run.

        Raises:
            ValueError: If the result is not JSON, or a record cannot be read as one.
            OSError: If a file cannot be read or written.
        """
        line = record.to_line()
        records = [record if old.key == record.key else old for old in self.records()]
        # First, for it is what version control keeps: a kill may come before the other one.
        write_text(self.lines, "".join(map(Record.to_line, records)))
        directory = self.begun(record.key)
        if directory is not None and (directory / "record.json").exists():
            write_text(directory / "record.json", line)

    def _record_file(self, run: Run) -> pathlib.Path:
        return self.run_directory(run) / "record.json"


def distinct(records: Iterable[Record]) -> list[Record]:
    """Returns one record of each run, in an order that depends on the runs alone.

    Args:
        records: In the order of the store: first the lines, then those of directories. Of several
            of a run the last one counts, unless metrics were added to an earlier one, maybe on
            another machine.
    """
    by_additions = sorted(records, key=lambda r: len(r.result.get("added_metrics", ())))
    found = {record.key: record for record in by_additions}.values()
    return sorted(found, key=lambda record: (kind(record), record.seed))


def kind(run: Run | Record) -> tuple[str, int, str]:
    """Returns the definition of a run without its seed, the same for all seeds of a network."""
    # The settings as text, as dicts have no order.
    return run.experiment, run.recipe_version, _json(run.config, sort_keys=True)


def _json(value: Any, *, sort_keys: bool = False) -> str:
    return json.dumps(value, sort_keys=sort_keys, allow_nan=False)


def _read(path: pathlib.Path) -> list[Record]:
    """Returns the records in a file, one a line; none if there is no file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(Record(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"line {number} of {path} is not the record of a run: take the file from version "
                "control or a backup, or remove it"
            ) from error
    return records
