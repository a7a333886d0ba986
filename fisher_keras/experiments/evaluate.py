"""Evaluation and comparison of trained networks: `fisher-keras evaluate`."""

import pathlib

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from fisher_keras.datasets import ImageDataset
from fisher_keras.experiments.evaluation_config import EvaluationConfig
from fisher_keras.experiments.saved_models import load_models
from fisher_keras.experiments.statistics.text_tables import markdown_table
from fisher_keras.files import replacing
from fisher_keras.metrics import LocalMinimumReport, evaluate_local_minimum
from fisher_keras.metrics.summaries import MetricSummary


def evaluate(config: EvaluationConfig) -> dict[str, LocalMinimumReport]:
    """Evaluates models, prints each report and, for several, tables ordered by gamma-hat.

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
    output = None if config.output is None else pathlib.Path(config.output).expanduser()
    models = load_models(config.models, config.imports)
    train, test, dataset = config.load(config.validation_size, config.seed)
    for path, model in zip(config.models, models.values(), strict=True):
        _check_input(path, model, dataset)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    reports = {}
    for name, model in models.items():
        report = reports[name] = evaluate_local_minimum(
            model,
            train,
            config.num_samples,
            config.num_trials,
            config.seed,
            config.metrics,
            config.normalize_logits,
            test_data=test,
            label_smoothing=config.label_smoothing,
            layers=config.layers,
            trials_path=None if output is None else output / f"{name}.trials.jsonl",
        )
        print(f"\n{name}\n{report}", flush=True)
        if config.layers:
            print(f"\n{report.layers}", flush=True)
        if output is not None:
            _write_report(report, output, name)
    if "log_determinant" in config.metrics:
        reports = dict(sorted(reports.items(), key=lambda item: gamma_hat(item[1])))
    if len(reports) > 1:
        _write_comparison(reports, output)
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


def differences(reports: dict[str, LocalMinimumReport]) -> str:
    """Formats a Markdown table: the metrics of each model less those of the first.

    Trials of one index have the same examples: their differences are less noisy than the means.

    Args:
        reports: By name, of the same data and options.

    Returns:
        A line a model, the mean difference over the trials ± its standard error; "–" where a
        trial is infinite.
    """
    (first, base), *others = reports.items()
    rows = [[f"less {first}", *base.metrics]]
    for name, report in others:
        rows.append([name, *map(_difference_cell, report.difference(base).values())])
    return markdown_table(rows)


def _difference_cell(summary: MetricSummary) -> str:
    if not np.isfinite(summary.mean):
        return "–"
    return f"{summary.mean:+.5g} ± {summary.standard_error:.2g}"


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


def _check_input(path: str, model: keras.Model, dataset: ImageDataset | None) -> None:
    shape = getattr(model, "input_shape", None)  # A model of a user's own class may have none.
    if dataset is None or not isinstance(shape, tuple):
        return
    fits = len(shape) == 1 + len(dataset.image_shape) and all(
        size in (None, given) for size, given in zip(shape[1:], dataset.image_shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"--model={path} takes inputs of shape {shape[1:]}, but the images of "
            f"--dataset={dataset.name} have the shape {dataset.image_shape}"
        )


def _write_report(report: LocalMinimumReport, output: pathlib.Path, name: str) -> None:
    with replacing(output / f"{name}.json") as path:
        path.write_text(report.to_json() + "\n")
    if report.trials[0].log_spectrum:
        with replacing(output / f"{name}.spectrum.png") as path:
            report.plot_spectrum().figure.savefig(path, dpi=150)


def _write_comparison(reports: dict[str, LocalMinimumReport], output: pathlib.Path | None) -> None:
    print(f"\n{comparison(reports)}\n\n{differences(reports)}")
    (first, base), *others = reports.items()
    for name, report in others if base.layer_weights else ():
        try:
            beside = base.layers.beside(report.layers)
        except ValueError as error:  # Of networks with other layers, all else can be compared.
            beside = error
        print(f"\nThe layers of {first}, and those of {name} (columns that):\n{beside}")
    if output is not None and "log_determinant" in next(iter(reports.values())).metrics:
        with replacing(output / "comparison.png") as path:
            chart(reports).savefig(path, dpi=150)
