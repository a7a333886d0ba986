"""Evaluating and comparing trained networks: `bin/evaluate_metrics`."""

import dataclasses
import pathlib
import zipfile
import zlib

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from fisher_keras.datasets import DATASETS, load_dataset
from fisher_keras.experiments.command_line.flags import REQUIRED, check_options, option
from fisher_keras.experiments.statistics.text_tables import markdown_table
from fisher_keras.experiments.training.data import split_dataset
from fisher_keras.files import replacing
from fisher_keras.metrics import (
    DEFAULT_METRICS,
    METRICS,
    LocalMinimumReport,
    evaluate_local_minimum,
)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated, and how; the fields' texts are those of --help."""

    models: tuple[str, ...] = option(
        REQUIRED,
        "Required. A model to evaluate, a .keras file.",
        group="models and data",
        repeated="model",
    )
    dataset: str = option(
        "cifar10",
        "Images that the models were trained on.",
        group="models and data",
        choices=DATASETS,
    )
    data_dir: str | None = option(
        None,
        "Where the data are: for CIFAR a TensorFlow Datasets (TFDS) folder, by default TFDS's "
        "own; for --dataset=folder the folder with train/<class>/ and test/<class>/.",
        group="models and data",
    )
    download: bool = option(
        True, "Download CIFAR if it is not in --data_dir.", group="models and data"
    )
    image_size: int | None = option(
        None, "As it was for the trainings.", group="models and data", least=1
    )
    train_size: int | None = option(
        None,
        "As it was for the trainings: the metrics are of these images.",
        group="models and data",
        least=1,
    )
    validation_size: int = option(
        0,
        "As it was for the trainings.",
        group="models and data",
        least=0,
    )
    seed: int = option(
        0,
        "As it was for the trainings; also the seed of the samples.",
        group="models and data",
        least=0,
    )
    metrics: tuple[str, ...] = option(
        DEFAULT_METRICS,
        f"What to compute, some of {', '.join(METRICS)}.",
        group="metrics",
        choices=tuple(METRICS),
    )
    num_samples: int = option(100, "N', images that a trial samples.", group="metrics", least=1)
    num_trials: int = option(100, "T, number of trials.", group="metrics", least=1)
    normalize_logits: float | None = option(
        None,
        "Divide logits by this times their norm, as the paper does for its Table 2 (0.04).",
        group="metrics",
        above=0,
    )
    output: str | None = option(
        None,
        "Folder for reports, trials and figures; by default nothing is written.",
        group="output",
    )

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: If one cannot be used.
        """
        check_options(self)


def evaluate(config: EvaluationConfig) -> dict[str, LocalMinimumReport]:
    """Evaluates models, prints each report and, for several, a table ordered by gamma-hat.

    Stopped and started again with the same output directory, it goes on at the next trial.

    Args:
        config: What is evaluated.

    Returns:
        The reports by the models' names, in order of their log-determinant if it was asked for.

    Raises:
        ValueError: If a model or the data cannot be used.
        OSError: If the output cannot be written.
    """
    tf.config.experimental.enable_tensor_float_32_execution(False)  # It has 10 bits, on a GPU.
    output = None if config.output is None else pathlib.Path(config.output)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    names = _names(config.models)
    models = {name: _load(path) for name, path in names.items()}
    data = split_dataset(
        load_dataset(config.dataset, config.data_dir, config.download, config.image_size),
        train_size=config.train_size,
        validation_size=config.validation_size,
        batch_size=256,
        one_hot=False,
        seed=config.seed,
    )
    train, test = data.arrays("train"), data.arrays("test")
    reports = {}
    for name, model in models.items():
        report = evaluate_local_minimum(
            model,
            train,
            config.num_samples,
            config.num_trials,
            config.seed,
            config.metrics,
            config.normalize_logits,
            test_data=test,
            trials_path=None if output is None else output / f"{name}.trials.jsonl",
        )
        print(f"\n{name}\n{report}", flush=True)
        reports[name] = report
        if output is not None:
            _write_report(report, output, name)
    if "log_determinant" in config.metrics:
        reports = dict(sorted(reports.items(), key=lambda item: gamma_hat(item[1])))
    if len(reports) > 1:
        print(f"\n{comparison(reports)}")
        if output is not None and "log_determinant" in config.metrics:
            with replacing(output / "comparison.png") as path:
                chart(reports).savefig(path, dpi=150)
    return reports


def gamma_hat(report: LocalMinimumReport) -> float:
    """Returns the mean log-determinant over the trials, Equation 5."""
    return report.metrics["log_determinant"].mean


def comparison(reports: dict[str, LocalMinimumReport]) -> str:
    """Formats a Markdown table: a line a model, mean ± standard error of each metric."""
    metrics = list(next(iter(reports.values())).metrics)
    titles = ["train loss", "train error (%)", "test error (%)", "test loss", "calibration error"]
    rows = [["model", *metrics, *titles]]
    for name, report in reports.items():
        cells = [f"{s.mean:.5g} ± {s.standard_error:.2g}" for s in report.metrics.values()]
        errors = [f"{100 * fit.error:.2f}" for fit in (report.train, report.test)]
        test = [f"{report.test.loss:.4g}", f"{report.test.calibration_error:.3f}"]
        rows.append([name, *cells, f"{report.train.loss:.4g}", *errors, *test])
    return markdown_table(rows)


def chart(reports: dict[str, LocalMinimumReport]) -> Figure:
    """Draws gamma-hat with its standard error, and the test error, of each model."""
    figure = Figure(figsize=(7, 1.5 + 0.5 * len(reports)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(reports))
    summaries = [report.metrics["log_determinant"] for report in reports.values()]
    left.errorbar(
        [s.mean for s in summaries], places, xerr=[s.standard_error for s in summaries], fmt="o"
    )
    left.set_xlabel(r"$\hat\gamma$, mean ± standard error")
    left.set_yticks(places, list(reports))
    left.invert_yaxis()
    right.plot([100 * report.test.error for report in reports.values()], places, "o")
    right.set_xlabel("test error (%)")
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
        axes.locator_params(axis="x", nbins=4)  # Long numbers would run into each other.
    return figure


def _names(paths: tuple[str, ...]) -> dict[str, pathlib.Path]:
    """Names each model by its file, and by its directory where files are called alike."""
    files = [pathlib.Path(path) for path in paths]
    stems = [file.stem for file in files]
    if len(set(stems)) < len(stems):
        stems = [f"{file.resolve().parent.name}_{file.stem}" for file in files]
    if len(set(stems)) < len(stems):
        raise ValueError(
            f"--model: two of the files cannot be told apart by file and directory name: {paths}"
        )
    return dict(zip(stems, files, strict=True))


def _load(path: pathlib.Path) -> keras.Model:
    if not path.is_file():
        raise ValueError(f"--model={path}: there is no such file; expected a .keras file")
    damaged = ValueError(
        f"--model={path} is no .keras file, or only a part of one (a copy that was stopped?)"
    )
    # Keras says of such a file that it was not found.
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise damaged
    try:
        return keras.models.load_model(path, compile=False)
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
        raise damaged from error


def _write_report(report: LocalMinimumReport, output: pathlib.Path, name: str) -> None:
    with replacing(output / f"{name}.json") as path:
        path.write_text(report.to_json() + "\n")
    if report.trials[0].log_spectrum:
        with replacing(output / f"{name}.spectrum.png") as path:
            report.plot_spectrum().figure.savefig(path, dpi=150)
