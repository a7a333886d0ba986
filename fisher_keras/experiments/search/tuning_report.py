"""Report of a search: its files, and its lines on the terminal."""

import json
import pathlib
import statistics
from typing import Any

import optuna
import tqdm

from fisher_keras.experiments.runs.progress import ProgressLine, duration
from fisher_keras.experiments.runs.store import Record, Run
from fisher_keras.experiments.search.search_trials import Trials
from fisher_keras.experiments.statistics.text_tables import markdown_table
from fisher_keras.experiments.training.provenance import provenance
from fisher_keras.experiments.training.run_files import csv_text
from fisher_keras.files import differences, write_text

_TITLES = {"beta": "beta", "num_sub_batches": "M", "clip_norm": "tau"}


class TuningReport(ProgressLine):
    """Writes `tuning.json` and `trials.csv` after each trial, and shows the progress."""

    def __init__(
        self, directory: pathlib.Path, settings: dict[str, Any], preset: str, trials: Trials
    ) -> None:
        """Checks that the directory is free, or of the same search; prints the settings.

        Args:
            directory: Of the files.
            settings: Of the search, for JSON.
            preset: Its name.
            trials: The trials.

        Raises:
            ValueError: If the directory holds a search with other settings.
            OSError: If its `tuning.json` cannot be read, or written.
        """
        super().__init__(trials.num_trials, "trial", len(trials.rows()))
        self._directory = directory
        self._settings = settings
        self._about = {"preset": preset, "optuna": optuna.__version__, **provenance()}
        self._trials = trials
        self._check_same_search()
        lines = (f"{name}: {value}" for name, value in settings.items())
        print("\n  ".join(["Search:", *lines]))
        print(f"{self.state()}.", flush=True)
        self.write()

    def end(self, run: Run, record: Record | None) -> None:
        """Prints a line for a trial that has ended, and updates the files."""
        if record is None:
            return
        row, best = self._trials.end(run, record), self._trials.rows()[0]
        self.num_finished += 1
        self.write()
        values = ", ".join(f"{title} {row[name]:g}" for name, title in _TITLES.items())
        tqdm.tqdm.write(
            f"trial {self.num_finished}/{self._total}  {values}: {_result(row)}; best "
            f"{_result(best)}  {duration(row['seconds'])}, {self.left(self._running)}"
        )

    def left(self, num_at_once: int) -> str:
        """Returns the time left, if as many trainings go on at once as do now."""
        if not self.num_finished:
            return "time left unknown"
        seconds = statistics.median(row["seconds"] for row in self._trials.rows())
        seconds *= self._total - self.num_finished
        return f"{duration(seconds / num_at_once)} left"

    def write(self) -> dict[str, Any]:
        """Writes `tuning.json` and `trials.csv`; returns the content of the first."""
        rows = self._trials.rows()
        best = next((row for row in rows if row["state"] == "complete"), None)
        content = {"settings": self._settings, **self._about}
        content |= {"git_revisions": self._trials.git_revisions, "best": best, "trials": rows}
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_text(self._directory / "tuning.json", text)
        names = list(rows[0]) if rows else ["trial"]
        write_text(self._directory / "trials.csv", csv_text(names, rows))
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
        if len(revisions := self._trials.git_revisions) > 1:
            print(f"The trials are of several commits: {', '.join(map(str, revisions))}.")

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


def _result(row: dict[str, Any]) -> str:
    if row["state"] == "diverged":
        return f"diverged in epoch {row['epochs'] + 1}"
    return f"validation error {row['validation_error_percent']:.2f}%"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
