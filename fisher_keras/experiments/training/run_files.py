"""The output directory of a training run: its files, and whether it may be used."""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from fisher_keras.experiments.training.config import TrainingConfig, decisive
from fisher_keras.files import differences, write_text


class RunFiles:
    """The files of one run.

    Attributes:
        directory: The output directory.
        record: `run.json`, provenance and results of the run.
        history: `history.csv`, one row an epoch.
        best: `best.keras`, the plain model of the best epoch.
        last: `last.keras`, the plain model of the last epoch.
        backup: Directory of the state that a killed run continues from.
        tensorboard: Directory of the TensorBoard logs.
        read_only: Whether nothing is written, as another process does.
    """

    def __init__(self, directory: str | os.PathLike, read_only: bool = False) -> None:
        self.directory = pathlib.Path(directory).expanduser()
        self.read_only = read_only
        self.record = self.directory / "run.json"
        self.history = self.directory / "history.csv"
        self.best = self.directory / "best.keras"
        self.last = self.directory / "last.keras"
        self.backup = self.directory / "backup"
        self.tensorboard = self.directory / "tensorboard"

    def open(self, flags: dict, resume: bool) -> dict | None:
        """Checks that the directory may hold a run, or the rest of one.

        Args:
            flags: The run's configuration.
            resume: Whether to go on with the run that is in the directory, if one is.

        Returns:
            The content of `run.json`, or None if the run starts from the beginning.

        Raises:
            ValueError: If the directory holds a run and `resume` is not set, a run with other
                flags, or something else than a run.
        """
        if self.record.exists():
            if not resume:
                raise ValueError(
                    f"{self.directory} already holds a run: give another --output_dir, or "
                    "continue it with --resume"
                )
            record = self.read()
            finished = record["status"] == "finished"
            if finished and flags["epochs"] > record["flags"]["epochs"]:
                record = _extended(record, flags["epochs"])
            _check_same_flags(record["flags"], flags, self.directory)
            return record
        # Hidden files do not count, as systems put such files into any folder.
        found = self.directory.iterdir() if self.directory.exists() else ()
        foreign = [path.name for path in found if path.name[0] != "."]
        if foreign:
            raise ValueError(
                f"{self.directory} is not empty and holds no run ({min(foreign)} is in it): give "
                "another --output_dir"
            )
        return None

    def write_record(self, record: dict) -> None:
        """Writes `run.json` in one go."""
        if self.read_only:
            return
        write_text(self.record, json.dumps(record, indent=2) + "\n")

    def read_history(self, epochs: int | None = None) -> dict[str, list[float | None]]:
        """Returns the columns of `history.csv`, without the epochs' numbers; None for NaN.

        Args:
            epochs: How many epochs; None for all.
        """
        names, rows = self._read_rows()
        rows = rows[:epochs]
        columns = {name: [float(row[name]) for row in rows] for name in names if name != "epoch"}
        return {
            name: [None if math.isnan(value) else value for value in values]
            for name, values in columns.items()
        }

    def trim_history(self, epochs: int) -> None:
        """Drops the rows of `history.csv` beyond the last backup, after `epochs` epochs."""
        if self.read_only:
            return
        if epochs == 0:
            self.history.unlink(missing_ok=True)
            return
        names, rows = self._read_rows()
        write_text(self.history, csv_text(names, rows[:epochs]))

    def _read_rows(self) -> tuple[list[str], list[dict[str, str]]]:
        with self.history.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            return list(reader.fieldnames or ()), rows

    def read(self) -> dict:
        """Returns the content of `run.json`.

        Raises:
            ValueError: If it is not the record of a run.
        """
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
            record["flags"], record["status"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.record} is not the record of a run: give another --output_dir"
            ) from error
        return record


def csv_text(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows, each with a value by name, as the text of a CSV file."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _extended(record: dict, epochs: int) -> dict:
    """Returns the record of a finished run as one that more epochs are to come of."""
    flags = record["flags"]
    planned = flags.get("schedule_epochs") or flags["epochs"]
    flags = flags | {"epochs": epochs, "schedule_epochs": planned}
    return record | {"status": "running", "flags": flags}


def _check_same_flags(stored: dict, given: dict, directory: pathlib.Path) -> None:
    try:
        # A flag that is newer than the run had its default then.
        stored = dataclasses.asdict(TrainingConfig(**stored))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"cannot resume {directory}, whose run has other flags than there are now ({error}): "
            "give another --output_dir"
        ) from error
    different = differences(*(decisive(flags) for flags in (stored, given)), prefix="--")
    if different:
        raise ValueError(
            f"cannot resume {directory} with other flags: {'; '.join(different)}. Give the flags "
            "it was started with, or another --output_dir"
        )
