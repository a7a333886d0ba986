"""Times of trainings on this machine, estimated from a few of their steps.

`python -m fisher_keras.experiments.runs.step_times` reads the settings of trainings from stdin and
prints the seconds of each, as JSON: in a process of its own, a run's threads and GPU count.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from fisher_keras.datasets import ImageDataset, load_dataset
from fisher_keras.experiments.runs.store import Run
from fisher_keras.experiments.training.building import make_repeatable
from fisher_keras.experiments.training.config import TrainingConfig, resolve
from fisher_keras.experiments.training.data import split_dataset
from fisher_keras.experiments.training.measured_step import mean_step_seconds

# A dry run downloads nothing. The time of a step does not depend on what the images show.
_CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}
# What does not change the time of a step.
_SAME_STEP = (
    *("alpha", "augmentation", "beta", "clip_norm", "confusion_size", "epochs"),
    *("l2_penalty", "learning_rate", "rho", "schedule", "strength", "target_error", "target_loss"),
    "train_size",
)


def measured_seconds(
    runs: Sequence[Run], environment: Mapping[str, str], data_dir: str | None
) -> dict[str, float]:
    """Estimates how long the trainings of runs take, without their evaluation.

    Args:
        runs: The runs. Those that train no network of `TrainingConfig` are left out.
        environment: Environment variables of a run: its threads, and its GPU.
        data_dir: Where the data are, see `load_dataset`.

    Returns:
        The seconds by the runs' keys; none if a measurement failed, which is then said.
    """
    trainings = {
        run.key: run.config["training"] | {"data_dir": data_dir}
        for run in runs
        if "training" in run.config
    }
    if not trainings:
        return {}
    print("Measuring a few steps of each kind of network ...", flush=True)
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__],
        input=json.dumps(trainings),
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        print(f"The measurement failed: {reason}", flush=True)
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def training_seconds(training: Mapping[str, Any], step_seconds: float) -> float:
    """Returns the time of a training.

    Args:
        training: Its settings, as those of a run.
        step_seconds: The time of one of its steps.
    """
    config = resolve(TrainingConfig(**training))
    size = config.train_size or _dataset_size(config)[0] - config.validation_size
    steps = math.ceil((size + config.confusion_size) / config.batch_size)
    return config.epochs * steps * step_seconds


def _measured(config: TrainingConfig) -> float:
    """Returns the mean time of a training's steps, in seconds."""
    keras.backend.clear_session()
    if config.mixed_precision != "none":
        keras.config.set_dtype_policy(config.mixed_precision)
    one_hot = config.label_smoothing > 0
    data = split_dataset(_images(config), batch_size=config.batch_size, one_hot=one_hot)
    seconds = mean_step_seconds(config, data, data.training_batches("no-aug", 0))
    keras.config.set_dtype_policy("float32")
    return seconds


def _images(config: TrainingConfig) -> ImageDataset:
    """Returns one batch of images such as those of the data set."""
    rng, size = np.random.default_rng(0), config.batch_size
    _, shape, num_classes = _dataset_size(config)
    images = rng.integers(256, size=(size, *shape), dtype=np.uint8)
    labels = (np.arange(size) % num_classes).astype(np.int32)
    names = tuple(map(str, range(num_classes)))
    return ImageDataset(config.dataset, images, labels, images, labels, num_classes, names)


def _dataset_size(config: TrainingConfig) -> tuple[int, tuple[int, ...], int]:
    """Returns the number of training images, their shape, and the number of classes."""
    if config.dataset in _CIFAR_CLASSES:
        return 50_000, (32, 32, 3), _CIFAR_CLASSES[config.dataset]
    there = load_dataset(config.dataset, config.data_dir, False, config.image_size)
    return len(there.train_images), there.image_shape, there.num_classes


def _main() -> None:
    make_repeatable(seed=0)
    steps, seconds = {}, {}
    for key, training in json.load(sys.stdin).items():
        kind = str({name: training[name] for name in training if name not in _SAME_STEP})
        if kind not in steps:
            steps[kind] = _measured(resolve(TrainingConfig(**training)))
        seconds[key] = training_seconds(training, steps[kind])
    print(json.dumps(seconds))


if __name__ == "__main__":
    _main()
