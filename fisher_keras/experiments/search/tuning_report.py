"""What a search of the regularizer's hyper-parameters prints and writes."""

import contextlib
import csv
import io
import json
import math
import os
import pathlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
import tqdm
from optuna.trial import FrozenTrial, TrialState

from fisher_keras.experiments.runs.progress import duration, progress_line
from fisher_keras.experiments.search.trials import finished_trials
from fisher_keras.experiments.statistics.text_tables import markdown_table
from fisher_keras.experiments.training.provenance import provenance
from fisher_keras.files import replacing

_TITLES = {"beta": "beta", "num_sub_batches": "M", "clip_norm": "tau"}


class TuningReport:
    """The files of a search and its lines on the terminal.

    Attributes:
        directory: Of the files.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        settings: dict[str, Any],
        about: dict[str, Any],
        searched: Sequence[str],
        num_trials: int,
    ) -> None:
        """Makes the directory ready.

        Args:
            directory: Of the files.
            settings: Of the search, for JSON.
            about: What else `tuning.json` tells of it.
            searched: Names of the parameters.
            num_trials: Of the whole search.

        Raises:
            ValueError: If the directory holds a search with other settings.
            OSError: If it cannot be made or written.
        """
        self.directory = pathlib.Path(directory).expanduser()
        self._settings = settings
        self._about = about | {"optuna": optuna.__version__} | provenance()
        self._searched = searched
        self._num_trials = num_trials
        self._running = 1
        self.directory.mkdir(parents=True, exist_ok=True)
        self._check_same_settings()

    @contextlib.contextmanager
    def under_way(self, study: optuna.Study) -> Iterator[None]:
        """Prints and stores the settings, and shows how far the search is."""
        self._study = study
        print(
            "\n  ".join(["Search:", *(f"{key}: {self._settings[key]}" for key in self._settings)])
        )
        finished = len(self._rows())
        self._num_trials = max(self._num_trials, finished)  # A TPE may have had more before.
        print(f"{finished} of {self._num_trials} trials are finished.", flush=True)
        self.write()
        with progress_line(self._num_trials, "trial") as self._line:
            yield

    def show(self, running: int) -> None:
        """Brings the line up to date while so many trainings are being carried out."""
        self._running = max(1, running)
        rows = self._rows()
        self._line.n = len(rows)
        self._line.set_postfix_str(f"{running} running, {self._left(rows)}")

    def after_trial(self, number: int) -> None:
        """Prints a line for a finished trial, and brings the files up to date."""
        self.write()
        rows = self._rows()
        row = next(row for row in rows if row["trial"] == number)
        values = ", ".join(f"{_TITLES[name]} {row[name]:g}" for name in self._searched)
        tqdm.tqdm.write(
            f"trial {len(rows)}/{self._num_trials}  {values}: {_result(row)}; best "
            f"{_result(rows[0])}  {duration(row['seconds'])}, {self._left(rows)}"
        )

    def write(self) -> dict[str, Any]:
        """Writes `tuning.json` and `trials.csv`.

        Returns:
            The content of `tuning.json`.
        """
        rows = self._rows()
        best = next((row for row in rows if row["state"] == "complete"), None)
        content = {"settings": self._settings, **self._about, "best": best, "trials": rows}
        self._write("tuning.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0] if rows else ["trial"])
        writer.writeheader()
        writer.writerows(rows)
        self._write("trials.csv", text.getvalue())
        return content

    def print_table(self) -> None:
        """Prints the finished trials from best to worst, as Markdown."""
        titles = [_TITLES[name] for name in self._searched]
        table = [[*titles, "validation error (%)", "cross-entropy", "epochs", "state"]]
        for row in self._rows():
            cells = [f"{row[name]:g}" for name in self._searched]
            cells += [_number(row["validation_error_percent"], 2)]
            cells += [_number(row["validation_cross_entropy"], 4)]
            table += [[*cells, str(row["epochs"]), row["state"]]]
        print("", markdown_table(table, num_names=0), sep="\n")

    def _rows(self) -> list[dict[str, Any]]:
        trials = finished_trials(self._study)
        return sorted((_row(trial, self._searched) for trial in trials), key=_order)

    def _left(self, rows: list[dict[str, Any]]) -> str:
        """Returns the time left, if as many trainings go on at once as do now."""
        left = self._num_trials - len(rows)
        if left and not rows:
            return "time left unknown"
        seconds = statistics.median(row["seconds"] for row in rows)
        return f"{duration(seconds * left / self._running)} left"

    def _check_same_settings(self) -> None:
        path = self.directory / "tuning.json"
        if not path.exists():
            return
        stored = json.loads(path.read_text(encoding="utf-8"))["settings"]
        different = [
            f"{name} was {stored.get(name)}, is {self._settings.get(name)}"
            for name in sorted(stored.keys() | self._settings.keys())
            if stored.get(name) != self._settings.get(name)
        ]
        if different:
            raise ValueError(
                f"{self.directory} holds another search: {'; '.join(different)}. Give another "
                "--output_dir"
            )

    def _write(self, name: str, text: str) -> None:
        with replacing(self.directory / name) as part:
            part.write_text(text, encoding="utf-8", newline="")


def _row(trial: FrozenTrial, searched: Sequence[str]) -> dict[str, Any]:
    state = "pruned" if trial.state == TrialState.PRUNED else "complete"
    if "diverged" in trial.user_attrs:
        state = "diverged"
    return {
        "trial": trial.number,
        **{name: trial.params[name] for name in searched},
        "state": state,
        "validation_error_percent": None if state == "diverged" else trial.value,
        "validation_cross_entropy": trial.user_attrs.get("validation_cross_entropy"),
        "epochs": trial.last_step or 0,
        "seconds": round(trial.user_attrs["seconds"], 1),
    }


def _order(row: dict[str, Any]) -> tuple:
    """Sorts complete trials first, by their error and then the cross-entropy."""
    return (
        ("complete", "pruned", "diverged").index(row["state"]),
        -row["epochs"],
        *(
            math.inf if row[name] is None else row[name]
            for name in ("validation_error_percent", "validation_cross_entropy")
        ),
        row["trial"],
    )


def _result(row: dict[str, Any]) -> str:
    if row["state"] == "diverged":
        return f"diverged in epoch {row['epochs'] + 1}"
    error = f"validation error {row['validation_error_percent']:.2f}%"
    return error if row["state"] == "complete" else f"{error}, pruned after {row['epochs']} epochs"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
