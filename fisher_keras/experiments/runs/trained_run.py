"""A run of an experiment: one network trained, and the metrics of the minimum that it found."""

import dataclasses
import pathlib
import time
from typing import Any

import keras

from fisher_keras.experiments.runs.store import Run
from fisher_keras.experiments.training.config import TrainingConfig, resolve
from fisher_keras.experiments.training.data import TrainingData, load_training_data
from fisher_keras.experiments.training.files import RunFiles
from fisher_keras.experiments.training.train import train
from fisher_keras.metrics.local_minimum import evaluate_local_minimum
from fisher_keras.metrics.report import Fit, LocalMinimumReport
from fisher_keras.metrics.trials import json_ready

# To be raised when the same settings no longer give the same networks or metrics.
RECIPE_VERSION = 1
# gamma-hat comes with its two parts: they cost nothing, and do not define a run.
_PARTS = {"log_determinant": ("log_squared_norms", "log_determinant_cosines")}
_FROM_TRAINING = ("versions", "git_revision", "device", "seconds_per_epoch")
_TRAINING = "training"  # Folder of the network's files in the run's directory.
# Where a run is carried out, but not what it is.
_NOT_OF_THE_RUN = {"seed", "data_dir", "download", "output_dir", "resume"}


@dataclasses.dataclass(frozen=True)
class MetricSettings:
    """How the metrics of a trained network are computed.

    Attributes:
        names: Out of `fisher_keras.metrics.METRICS`; the two parts of "log_determinant" come with
            it.
        num_samples: N', images a trial.
        num_trials: T.
        normalize_logits: If it is a number, the metrics are computed a second time, of logits
            divided by their norm times this number (see `evaluate_local_minimum`).
    """

    names: tuple[str, ...]
    num_samples: int = 100
    num_trials: int = 100
    normalize_logits: float | None = None


def trained_run(
    experiment: str, training: TrainingConfig, metrics: MetricSettings, label: str
) -> Run:
    """Returns the run that trains a network and evaluates it.

    Args:
        experiment: Its name.
        training: How the network is trained; where the data and the output are does not count.
        metrics: How the metrics are computed.
        label: How messages call the run, its seed left out.

    Returns:
        The run.
    """
    config = {
        "training": training_settings(training),
        "metrics": dataclasses.asdict(metrics) | {"names": list(metrics.names)},
    }
    return Run(experiment, config, training.seed, RECIPE_VERSION, f"{label} seed {training.seed}")


def training_settings(training: TrainingConfig) -> dict[str, Any]:
    """Returns the part of a run's configuration that defines its training.

    Args:
        training: How a network is trained.

    Returns:
        What the recipe or the caller decides, and not the values of `TrainingConfig` that are the
        same in every training unless asked for.
    """
    usual = TrainingConfig()
    return {
        name: value
        for name, value in dataclasses.asdict(resolve(training)).items()
        if name not in _NOT_OF_THE_RUN
        and (name in ("arch", "dataset") or value != getattr(usual, name))
    }


def carry_out(
    run: Run, directory: pathlib.Path, data_dir: str | None, download: bool
) -> dict[str, Any]:
    """Trains the network of a run and evaluates it, from where an earlier call was cut.

    Args:
        run: Made by `trained_run`.
        directory: Of the run's files; those of the training are in `training/`.
        data_dir: Where the data set is, see `load_dataset`.
        download: Whether it may be downloaded.

    Returns:
        The result for the store: `train` and `test`, each with `loss` (cross-entropy in nats),
        `error_percent` and `num_images`, in inference mode and not augmented, a confusion set not
        among them; `metrics` and, if asked for, `normalized_metrics`: name -> `mean`, `std`,
        `standard_error` over the trials; `notes` of the report; what made it.

    Raises:
        ValueError: If the data or a setting cannot be used.
        OSError: If data or output cannot be read or written.
        TrainingDivergedError: If the training loss becomes infinite or NaN.
    """
    training = TrainingConfig(
        **run.config["training"],
        seed=run.seed,
        data_dir=data_dir,
        download=download,
        output_dir=str(directory / _TRAINING),
        resume=True,
    )
    data = load_training_data(resolve(training))
    record = train(training, data=data)
    start = time.monotonic()
    metrics = MetricSettings(**run.config["metrics"])
    reports = _evaluate(directory, data, metrics)
    report = reports["metrics"]
    return {
        "train": _fit(report.train),
        "test": _fit(report.test),
        **{key: _summaries(reports[key]) for key in reports},
        "notes": list(report.notes),
        "parameters": report.num_parameters,
        **{name: record[name] for name in _FROM_TRAINING},
        "data": record["data"]["fingerprint"],
        "wall_time_s": record["wall_time_s"] + time.monotonic() - start,
    }


def _evaluate(
    directory: pathlib.Path, data: TrainingData, metrics: MetricSettings
) -> dict[str, LocalMinimumReport]:
    model = keras.models.load_model(RunFiles(directory / _TRAINING).last, compile=False)
    scales = {"metrics": None}
    if metrics.normalize_logits is not None:
        scales["normalized_metrics"] = metrics.normalize_logits
    train_data, test_data = data.arrays("train"), data.arrays("test")
    parts = (part for name in metrics.names for part in _PARTS.get(name, ()))
    names = tuple(dict.fromkeys((*metrics.names, *parts)))
    return {
        key: evaluate_local_minimum(
            model,
            train_data,
            metrics.num_samples,
            metrics.num_trials,
            data.seed,
            names,
            scale,
            test_data=test_data,
            trials_path=directory / f"{key}.trials.jsonl",
            progress=False,
        )
        for key, scale in scales.items()
    }


def _fit(fit: Fit) -> dict[str, float]:
    return {
        "loss": fit.loss,
        "error_percent": 100 * fit.error,
        "num_images": fit.num_examples,
    }


def _summaries(report: LocalMinimumReport) -> dict[str, dict[str, float | str]]:
    return json_ready({name: dataclasses.asdict(s) for name, s in report.metrics.items()})
