"""Messages at the start and the end of a training."""

import math
import pathlib
from collections.abc import Sequence

from fisher_keras.experiments.runs.progress import duration

_PARTS = ("train", "confusion", "validation", "test")


def print_start(record: dict, directory: pathlib.Path, first_epoch: int) -> None:
    """Prints the settings of a training.

    Args:
        record: The content of `run.json`.
        directory: Of the files.
        first_epoch: Epochs that were finished before.
    """
    values = ", ".join(
        f"{name} {value}" for name, value in record["flags"].items() if value is not None
    )
    print(f"Settings: {values}.")
    images = record["data"]
    confused = images["confusion_images"]
    confusion = f" and {confused:,} with random labels" if confused else ""
    curves = "validation" if images["validation_images"] else "test"
    print(
        f"Training {record['parameters']:,} parameters on {images['train_images']:,} images"
        f"{confusion} ({record['device']}). Names that begin with val_ are of the {curves} images."
    )
    num_images, batch_size = images["train_images"] + confused, record["flags"]["batch_size"]
    if batch_size > num_images:
        print(
            f"--batch_size={batch_size} is larger than the number of images: each step takes all "
            f"{num_images:,}."
        )
    if first_epoch:
        print(f"Resumed after epoch {first_epoch}.")
    print(f"Files go to {directory}.", flush=True)


def print_plan(
    record: dict, steps_per_epoch: int, epochs: int, batch_shape: Sequence[int]
) -> None:
    """Prints the size of a training.

    Args:
        record: Its `data` and `parameters`.
        steps_per_epoch: Training steps an epoch.
        epochs: Passes over the training images.
        batch_shape: (B, H, W, C) of the first batch.
    """
    images = record["data"]
    counts = [
        f"{images[f'{part}_images']:,} {part}" for part in _PARTS if images[f"{part}_images"]
    ]
    megabytes = 4 * math.prod(batch_shape) / 2**20
    print(
        f"\n{record['parameters']:,} parameters; images: {', '.join(counts)} (fingerprint "
        f"{images['fingerprint']}).\n{steps_per_epoch:,} steps an epoch, "
        f"{steps_per_epoch * epochs:,} in all, of batches {tuple(batch_shape)}: {megabytes:.0f} "
        "MiB.\nMeasuring a few steps ...",
        flush=True,
    )


def print_estimate(step_seconds: float, num_steps: int) -> None:
    """Prints how long a training takes, as the end of a dry run.

    Args:
        step_seconds: Measured time of a step.
        num_steps: Number of steps of all epochs.
    """
    print(
        f"A step takes {step_seconds:.3g} s on this machine, without evaluation: "
        f"{duration(step_seconds * num_steps)} in all.\nThis was a dry run: nothing was written.",
        flush=True,
    )


def print_end(record: dict, directory: pathlib.Path) -> None:
    """Prints the table of the final losses and errors of a training, see `print_start`."""
    print(f"\n{'':<10}{'loss':>10}{'cross-entropy':>16}{'error (%)':>12}{'calibration error':>20}")
    for part in ("train", "confusion", "test"):
        if part not in record:
            continue
        values = record[part]
        print(
            f"{part:<10}{values['loss']:>10.4f}{values['cross_entropy']:>16.4f}"
            f"{values['error_percent']:>12.2f}{values['calibration_error']:>20.4f}"
        )
    print(f"{record['wall_time_s']:.0f} s. Everything is in {directory}.")
