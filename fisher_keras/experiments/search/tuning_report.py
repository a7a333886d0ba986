"""Report of a search: its files, and its lines on the terminal."""

import csv
import io
import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any, Self

import optuna
import tqdm

from fisher_keras.experiments.runs.progress import duration, progress_line
from fisher_keras.experiments.search.search_trials import Trials
from fisher_keras.experiments.statistics.text_tables import markdown_table
from fisher_keras.experiments.training.provenance import provenance
from fisher_keras.files import differences, write_text

_TITLES = {"beta": "beta", "num_sub_batches": "M", "clip_norm": "tau"}


class TuningReport:
    """Writes `tuning.json` and `trials.csv` after each trial, and shows the progress."""

    def __init__(
        self, directory: pathlib.Path, settings: dict[str, Any], preset: str, trials: Trials
    ) -> None:
        """Checks that the directory is free, or of the same search.

        Args:
            directory: Of the files.
            settings: Of the search, for JSON.
            preset: Its name.
            trials: The trials.

        Raises:
            ValueError: If the directory holds a search with other settings.
            OSError: If its `tuning.json` cannot be read.
        """
        self._directory = directory
        self._settings = settings
        self._about = {"preset": preset, "optuna": optuna.__version__, **provenance()}
        self._trials = trials
        self._running = 1
        self._check_same_search()

    def __enter__(self) -> Self:
        """Prints and stores the settings."""
        settings = (f"{name}: {value}" for name, value in self._settings.items())
        print("\n  ".join(["Search:", *settings]))
        finished, total = len(self._trials.rows()), self._trials.num_trials
        print(f"{finished} of {total} trials are finished.", flush=True)
        self.write()
        self._line = progress_line(total, "trial")
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()

    def show(self, running: int) -> None:
        """Updates the progress line while so many trainings are running."""
        self._running = max(1, running)
        self._line.n = len(self._trials.rows())
        self._line.set_postfix_str(f"{running} running, {self._left()}")

    def end_trial(self, row: dict[str, Any]) -> None:
        """Prints a line for a finished trial, and updates the files."""
        self.write()
        rows = self._trials.rows()
        values = ", ".join(f"{title} {row[name]:g}" for name, title in _TITLES.items())
        tqdm.tqdm.write(
            f"trial {len(rows)}/{self._trials.num_trials}  {values}: {_result(row)}; best "
            f"{_result(rows[0])}  {duration(row['seconds'])}, {self._left()}"
        )

    def write(self) -> dict[str, Any]:
        """Writes `tuning.json` and `trials.csv`; returns the content of the first."""
        rows = self._trials.rows()
        best = next((row for row in rows if row["state"] == "complete"), None)
        content = {"settings": self._settings, **self._about, "best": best, "trials": rows}
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_text(self._directory / "tuning.json", text)
        write_text(self._directory / "trials.csv", _csv(rows))
        return content

    def print_table(self) -> None:
        """Prints the finished trials from best to worst, as Markdown."""
        table = [[*_TITLES.values(), "validation error (%)", "cross-entropy", "epochs", "state"]]
        for row in self._trials.rows():
            cells = [f"{row[name]:g}" for name in _TITLES]
            cells += [_number(row["validation_error_percent"], 2)]
            cells += [_number(row["validation_cross_entropy"], 4)]
            table += [[*cells, str(row["epochs"]), row["state"]]]
        print("", markdown_table(table, num_names=0), sep="\n")

    def _left(self) -> str:
        """Returns the time left, if as many trainings go on at once as do now."""
        rows = self._trials.rows()
        left = self._trials.num_trials - len(rows)
        if left and not rows:
            return "time left unknown"
        seconds = statistics.median(row["seconds"] for row in rows)
        return f"{duration(seconds * left / self._running)} left"

    def _check_same_search(self) -> None:
        path = self._directory / "tuning.json"
        if not path.exists():
            return
        stored = json.loads(path.read_text(encoding="utf-8"))["settings"]
        stored.pop("prune", None)  # Of version 0.2; its trainings that went to the end count.
        if different := differences(stored, self._settings):
            raise ValueError(
                f"{self._directory} holds another search: {'; '.join(different)}. Give another "
                "--output_dir"
            )


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0] if rows else ["trial"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _result(row: dict[str, Any]) -> str:
    if row["state"] == "diverged":
        return f"diverged in epoch {row['epochs'] + 1}"
    return f"validation error {row['validation_error_percent']:.2f}%"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
