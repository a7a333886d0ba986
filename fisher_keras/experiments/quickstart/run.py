"""Trains and evaluates the networks of the quickstart, each once."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import keras
import numpy as np

from fisher_keras.datasets import load_dataset
from fisher_keras.experiments.quickstart.networks import METHODS, Network, Settings, networks
from fisher_keras.experiments.quickstart.progress import Progress
from fisher_keras.experiments.quickstart.results import MethodRun, Minimum
from fisher_keras.experiments.training.config import TrainingConfig, resolve
from fisher_keras.experiments.training.data import load_training_data
from fisher_keras.experiments.training.run_files import RunFiles
from fisher_keras.experiments.training.train import train
from fisher_keras.files import replacing
from fisher_keras.metrics import evaluate_local_minimum
from fisher_keras.metrics.trials import json_ready

_SAVE_EVERY = 10  # Epochs, of a fifth of a second.
_EVALUATION_COST = 20.0  # Of gamma-hat, in epochs of the baseline.


def carry_out(settings: Settings, folder: pathlib.Path) -> tuple[list[MethodRun], list[Minimum]]:
    """Trains the networks of both halves, those left that are not finished in the folder.

    Args:
        settings: How many, and how large.
        folder: Of the networks' folders.

    Returns:
        What came out of the first half and of the second.

    Raises:
        OSError: If the folder cannot be read or written.
        ValueError: If a setting cannot be used.
    """
    wanted = networks(settings)
    _check(settings)
    missing = [
        network for network in wanted if _read(network, settings, folder / network.name) is None
    ]
    print(
        f"{len(missing)} networks to train; {len(wanted) - len(missing)} are in {folder}.",
        flush=True,
    )
    _train_all(missing, settings, folder)
    results = [_read(network, settings, folder / network.name) for network in wanted]
    return (
        [result for result in results if isinstance(result, MethodRun)],
        [result for result in results if isinstance(result, Minimum)],
    )


def _train_all(missing: Sequence[Network], settings: Settings, folder: pathlib.Path) -> None:
    progress = Progress([_cost(network) for network in missing])
    try:
        for network in missing:
            directory = folder / network.name
            keras.utils.clear_session()  # The networks of one process would add up in memory.
            training = dataclasses.replace(
                network.training, output_dir=str(directory), resume=True
            )
            callback = progress.each_epoch(network.epoch_cost)
            record = train(training, [callback], quiet=True, save_every=_SAVE_EVERY)
            text = f"{network.label}: test error {record['test']['error_percent']:.2f} %"
            if network.group not in METHODS:
                gamma_hat = _evaluate(training, settings, directory)
                progress.advance(_EVALUATION_COST)
                text += f", gamma-hat {gamma_hat:.1f}"
            progress.finish_network(text)
    finally:
        progress.close()


def _cost(network: Network) -> float:
    """Returns what a network takes, in epochs of the baseline."""
    evaluation = 0.0 if network.group in METHODS else _EVALUATION_COST
    return network.training.epochs * network.epoch_cost + evaluation


def _evaluate(training: TrainingConfig, settings: Settings, directory: pathlib.Path) -> float:
    """Writes gamma-hat and the excess training loss of a trained network; returns gamma-hat."""
    data = load_training_data(resolve(training))
    train = data.labelled("train", label_smoothing=training.label_smoothing)
    report = evaluate_local_minimum(
        keras.saving.load_model(RunFiles(directory).last, compile=False),
        (train.x, train.y),
        settings.num_samples,
        settings.num_trials,
        training.seed,
        ("log_determinant",),
        progress=False,
    )
    gamma_hat = report.metrics["log_determinant"].mean
    minimum = {
        "gamma_hat": gamma_hat,
        "excess_loss": report.train.excess_loss,
        "notes": list(report.notes),
    }
    with replacing(_minimum_file(settings, directory)) as part:
        part.write_text(json.dumps(json_ready(minimum), indent=2, allow_nan=False) + "\n")
    return gamma_hat


def _read(
    network: Network, settings: Settings, directory: pathlib.Path
) -> MethodRun | Minimum | None:
    """Returns what came out of a network; None if it is not finished."""
    files = RunFiles(directory)
    record = _read_json(files.record)
    if record is None or record["status"] != "finished":
        return None
    if network.group in METHODS:
        history = record["history"]
        return MethodRun(
            method=network.group,
            seed=record["seed"],
            train_losses=tuple(history["cross_entropy"]),
            test_errors=tuple(100 * (1 - accuracy) for accuracy in history["val_accuracy"]),
            train_loss=record["train"]["cross_entropy"],
            parameters=record["parameters"],
        )
    minimum = _read_json(_minimum_file(settings, directory))
    if minimum is None:
        return None
    return Minimum(
        confusion_size=network.group,
        seed=record["seed"],
        test_error=record["test"]["error_percent"],
        train_error=_train_error(record),
        excess_loss=minimum["excess_loss"],
        gamma_hat=float(minimum["gamma_hat"]),
        parameters=record["parameters"],
        model=files.last,
    )


def _read_json(path: pathlib.Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: remove the folder {path.parent}, and the network is trained again"
        ) from error


def _minimum_file(settings: Settings, directory: pathlib.Path) -> pathlib.Path:
    return directory / f"minimum_{settings.num_samples}x{settings.num_trials}.json"


def _train_error(record: dict) -> float:
    """Returns the error of all images that were trained on, in percent."""
    parts = [part for part in ("train", "confusion") if part in record]
    counts = [record["data"][f"{part}_images"] for part in parts]
    return float(np.average([record[part]["error_percent"] for part in parts], weights=counts))


def _check(settings: Settings) -> None:
    """Raises a ValueError for what a network would fail at only after others are trained."""
    further = max(settings.confusion_sizes, default=0)
    largest = len(load_dataset("digits").train_images) - further
    if not settings.num_samples <= settings.train_size <= largest:
        raise ValueError(
            f"--train_size must be from {settings.num_samples}, the images of a sample, to "
            f"{largest}, as {further} further ones get random labels; got {settings.train_size}"
        )
