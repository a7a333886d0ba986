"""A run of an experiment: one network trained, and the metrics of the minimum that it found."""

import dataclasses
import pathlib
import time
from typing import Any

import keras

from fisher_keras.classifier import Classifier
from fisher_keras.experiments.runs.presets import MetricSettings
from fisher_keras.experiments.runs.store import ExperimentStore, Run
from fisher_keras.experiments.training.arch import network_settings
from fisher_keras.experiments.training.config import TrainingConfig, decisive, resolve, resolve_run
from fisher_keras.experiments.training.data import TrainingData, load_training_data
from fisher_keras.experiments.training.run_files import RunFiles
from fisher_keras.experiments.training.train import PARTS, train
from fisher_keras.metrics.evaluation import evaluate_local_minimum
from fisher_keras.metrics.loss_and_errors import DataLoss, evaluate_data_loss
from fisher_keras.metrics.report import LocalMinimumReport
from fisher_keras.metrics.trials import json_ready

# To be raised when the same settings no longer give the same networks or metrics.
RECIPE_VERSION = 1
# gamma-hat comes with its two parts: they cost nothing, and do not define a run.
_PARTS_OF = {"log_determinant": ("log_squared_norms", "log_determinant_cosines")}
_FROM_TRAINING = ("versions", "git_revision", "device", "seconds_per_epoch")
_TRAINING = "training"  # Folder of the network's files in the run's directory.


def trained_run(
    experiment: str, training: TrainingConfig, metrics: MetricSettings, label: str
) -> Run:
    """Returns the run that trains a network and evaluates it.

    Args:
        experiment: Its name.
        training: How the network is trained; where the data and the output are does not count.
        metrics: How the metrics are computed.
        label: The run's name in messages, without its seed.

    Returns:
        The run.
    """
    config = {
        "training": training_settings(training),
        "metrics": dataclasses.asdict(metrics) | {"names": list(metrics.names)},
        **network_settings(training.arch),
    }
    return Run(experiment, config, training.seed, RECIPE_VERSION, f"{label} seed {training.seed}")


def training_settings(training: TrainingConfig) -> dict[str, Any]:
    """Returns the part of a run's configuration that defines its training.

    Args:
        training: How a network is trained.

    Returns:
        The values that the recipe or the caller decides, and not those of `TrainingConfig` that
        are the same in every training unless asked for.
    """
    usual = TrainingConfig()
    settings = decisive(dataclasses.asdict(resolve_run(training)))
    settings["schedule_epochs"] = training.schedule_epochs
    del settings["seed"]
    if training.method not in ("sam", "ghost"):  # The other fields tell the other methods apart.
        del settings["method"]
    # What has its default is left out. So a field that is added to `TrainingConfig` later does not
    # change the keys of the runs that do not use it.
    return {
        name: value
        for name, value in settings.items()
        if name in ("arch", "dataset") or value != getattr(usual, name)
    }


def execute(
    run: Run, directory: pathlib.Path, data_dir: str | None, download: bool
) -> dict[str, Any]:
    """Trains the network of a run and evaluates it, from where an earlier call was cut.

    Args:
        run: Made by `trained_run`.
        directory: Of the run's files; those of the training are in `training/`.
        data_dir: Where the data set is, see `load_dataset`.
        download: Whether it may be downloaded.

    Returns:
        The result for the store: `train`, `test` and, if there are such sets, `confusion` and
        `validation`, each with `loss` (cross-entropy in nats), `error_percent`,
        `calibration_error` and `num_images`, in inference mode and not augmented; those that were
        trained on with `excess_loss`, too, the cross-entropy over the least that the labels
        allow, as smooth as in training; `metrics` and, if asked for, `normalized_metrics`: name
        -> `mean`, `std`, `standard_error` over the trials; `notes` of the report; its provenance.
        `TrainedNetwork` reads it.

    Raises:
        ValueError: If the data or a setting cannot be used.
        OSError: If data or output cannot be read or written.
        TrainingDivergedError: If the training loss becomes infinite or NaN.
    """
    training, data = training_of(run, directory / _TRAINING, data_dir, download)
    record = train(training, data=data)
    start = time.monotonic()
    # From its file, also right after the training: a run that was cut in its evaluation has no
    # other network, and both must give the same result.
    model = keras.models.load_model(RunFiles(directory / _TRAINING).last, compile=False)
    metrics = MetricSettings(**run.config["metrics"])
    reports = _evaluate(model, directory, data, metrics, training.label_smoothing)
    report = reports["metrics"]
    fits = {"test": report.test}
    if data.in_memory:  # Else the report tells the loss of those images alone that were sampled.
        fits["train"] = report.train
    sizes = {"confusion": training.confusion_size, "validation": training.validation_size}
    parts = [part for part in (*PARTS, "validation") if sizes.get(part, 1)]
    for part in parts:
        if part not in fits:
            smoothing = 0.0 if part == "validation" else training.label_smoothing
            fits[part] = evaluate_data_loss(
                Classifier(model), data.examples(part), part, smoothing
            )
    return {
        **{part: part_result(fits[part], part in ("train", "confusion")) for part in parts},
        **{key: summaries(reports[key]) for key in reports},
        "notes": list(report.notes),
        "parameters": report.num_parameters,
        **{name: record[name] for name in _FROM_TRAINING},
        "data": record["data"]["fingerprint"],
        "wall_time_s": record["wall_time_s"] + time.monotonic() - start,
    }


def training_of(
    run: Run, output_dir: pathlib.Path, data_dir: str | None, download: bool
) -> tuple[TrainingConfig, TrainingData]:
    """Returns the training of a run, and its data.

    Args:
        run: Its configuration has the `training_settings`.
        output_dir: Folder of the training's files, in which it resumes.
        data_dir: Where the data set is, see `load_dataset`.
        download: Whether it may be downloaded.

    Raises:
        ValueError: If the data or a setting cannot be used, or the network's code is another one
            here.
        OSError: If the data cannot be read.
    """
    arch = run.config["training"]["arch"]
    # Each run is a process of its own, and perhaps on another machine.
    if network_settings(arch).get("network") != run.config.get("network"):
        raise ValueError(
            f"the code of --arch={arch} is not what it was when the command started: start it "
            "again"
        )
    places = {"data_dir": data_dir, "download": download, "output_dir": str(output_dir)}
    settings = run.config["training"]
    training = resolve(TrainingConfig(**settings, seed=run.seed, **places, resume=True))
    return training, load_training_data(training)


def network_file(store: ExperimentStore, key: str) -> pathlib.Path | None:
    """Returns the .keras file of a finished run's network; None if it was not kept.

    Args:
        store: The store of the run.
        key: The run's key.

    Returns:
        That of the run's directory, or else `networks/<key>.keras`, kept beside the records.
    """
    kept = store.directory / "networks" / f"{key}.keras"
    directory = store.begun(key)
    # The kept one may have been rounded to take less room.
    files = [*([RunFiles(directory / _TRAINING).last] if directory else []), kept]
    return next((file for file in files if file.exists()), None)


def _evaluate(
    model: keras.Model,
    directory: pathlib.Path,
    data: TrainingData,
    metrics: MetricSettings,
    label_smoothing: float,
) -> dict[str, LocalMinimumReport]:
    train_data = data.examples("train")
    parts = (part for name in metrics.names for part in _PARTS_OF.get(name, ()))
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
            # Losses are of the logits as they are: one report tells them.
            test_data=data.examples("test") if scale is None else None,
            label_smoothing=label_smoothing,
            trials_path=directory / f"{key}.trials.jsonl",
            progress=False,
        )
        for key, scale in metrics.scales.items()
    }


def part_result(fit: DataLoss, with_excess: bool = True) -> dict[str, float]:
    """Returns a `PartResult` for JSON.

    Args:
        fit: Of the part.
        with_excess: Whether it has the `excess_loss`, too.
    """
    result = {
        "loss": fit.hard_label_loss,
        "error_percent": 100 * fit.error,
        "calibration_error": fit.calibration_error,
        "num_images": fit.num_examples,
    }
    return result | {"excess_loss": fit.excess_loss} if with_excess else result


def summaries(report: LocalMinimumReport) -> dict[str, dict[str, float | str]]:
    """Returns the metrics of a report for the result of a run."""
    return json_ready({name: dataclasses.asdict(s) for name, s in report.metrics.items()})
