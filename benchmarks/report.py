#!/usr/bin/env python3
"""Measures a whole report of a minimum against the Gram matrices of its trials.

For each network a Markdown table on stdout, and JSON. README.md beside this file explains it.
"""

import dataclasses
from collections.abc import Callable

import gram
import keras
import measuring
import numpy as np
import reporting
from absl import app, flags

from fisher_keras.classifier import Classifier
from fisher_keras.classifier.labels import labelled_data
from fisher_keras.fisher import loss_gradient_gram
from fisher_keras.metrics import evaluate_local_minimum
from fisher_keras.metrics.loss_and_errors import evaluate_data_loss

_GRAMS = "Gram matrices"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of the measurement.

    Attributes:
        num_samples: N'.
        num_trials: T.
        num_images: How many images the data have.
        rounds: How often each time is taken.
    """

    num_samples: int
    num_trials: int
    num_images: int
    rounds: int


def measure(name: str, settings: Settings) -> dict[str, dict]:
    """Returns the times of a report and of what it is made of, and their ratios to Gram matrices.

    Args:
        name: Key of `gram.NETWORKS`.
        settings: What is measured.
    """
    count, size = settings.num_trials, settings.num_samples

    def actions_of(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> dict:
        classifier, data = Classifier(model), labelled_data((images, labels))

        def report(**options: bool) -> None:
            evaluate_local_minimum(
                classifier, (images, labels), size, count, progress=False, **options
            )

        return {
            _GRAMS: lambda: [
                loss_gradient_gram(classifier, images[:size], labels[:size]) for _ in range(count)
            ],
            "losses and errors": lambda: evaluate_data_loss(classifier, data),
            "report": report,
            "report with the table by layer": lambda: report(layers=True),
        }

    actions: dict[str, Callable] = gram.start(
        actions_of, name, gram.Settings(settings.num_images, settings.rounds)
    )
    measuring.progress(f"{name}: first report")
    actions["report with the table by layer"]()
    times = measuring.interleaved(actions, settings.rounds, name)
    return {
        row: {**measuring.figures("time_s", times[row], times[_GRAMS]), "times_s": times[row]}
        for row in actions
    }


def table(results: dict[str, dict]) -> str:
    """Formats what `measure` returned as a Markdown table."""
    rows = [["", "time (s)", "/ Gram matrices"]]
    for name, figures in results.items():
        rows.append([name, f"{figures['time_s']:.2f}", f"{figures['time_s_ratio']:.2f}"])
    return reporting.markdown(rows)


def _define_flags() -> None:
    flags.DEFINE_list("network", ["resnet"], "Networks of gram.py, separated by commas.")
    flags.DEFINE_integer("num_samples", 100, "N'.", lower_bound=1)
    flags.DEFINE_integer("num_trials", 100, "T.", lower_bound=1)
    flags.DEFINE_integer("num_images", 10_000, "How many images the data have.", lower_bound=1)
    flags.DEFINE_integer("rounds", 3, "Rounds of timed calls.", lower_bound=1)
    flags.DEFINE_string("output", None, "JSON file to write.")


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    settings = Settings(values.num_samples, values.num_trials, values.num_images, values.rounds)
    reporting.run(
        f"N' = {settings.num_samples}, T = {settings.num_trials}, {settings.num_images} images",
        values.network,
        settings,
        lambda name: measure(name, settings),
        table,
        values.output,
    )


if __name__ == "__main__":
    _define_flags()
    app.run(_main)
