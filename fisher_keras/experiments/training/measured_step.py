"""Time of a training step on this machine, from a few of them."""

import dataclasses
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.experiments.training.arch import recipe_of
from fisher_keras.experiments.training.building import build_models
from fisher_keras.experiments.training.config import TrainingConfig
from fisher_keras.experiments.training.data import TrainingData
from fisher_keras.experiments.training.option_checks import phase_factors
from fisher_keras.models import learning_rate_falls

_STEPS = 5
_ENOUGH_S = 30.0  # Of steps that take long, fewer tell as much.


def mean_step_seconds(
    config: TrainingConfig, data: TrainingData, batches: tf.data.Dataset
) -> float:
    """Returns the mean time of a training's steps in seconds, some of them not regularized.

    Args:
        config: The training, as `resolve` returns it.
        data: Its data.
        batches: Batches of it, at least six.
    """

    def measured(**changes: Any) -> float:
        changed = dataclasses.replace(config, interval=None, beta_phases=None, **changes)
        _, model = build_models(changed, data)
        return _step_seconds(model, batches)

    share = _regularized_share(config)
    if share == 1:
        return measured()
    return share * measured() + (1 - share) * measured(beta=0.0, strength=None)


def _regularized_share(config: TrainingConfig) -> float:
    """Returns the share of the steps that `beta_phases` and `interval` leave regularized."""
    epochs = config.epochs
    if config.beta_phases is not None:
        falls = learning_rate_falls(recipe_of(config.arch), config.epochs)
        lengths = np.diff([0, *falls, config.epochs])
        epochs = lengths[np.array(phase_factors(config.beta_phases)) > 0].sum()
    return epochs / config.epochs / (config.interval or 1)


def _step_seconds(model: keras.Model, batches: tf.data.Dataset) -> float:
    """Trains for a few steps, and returns the median time of those after the first one.

    Args:
        model: A compiled model. Its weights change.
        batches: Batches of its training, at least six.

    Returns:
        The time of a step in seconds.
    """
    ends: list[float] = []

    def end_step(batch: int, logs: dict[str, float]) -> None:
        ends.append(time.monotonic())
        model.stop_training = len(ends) > 1 and ends[-1] - ends[0] > _ENOUGH_S

    record = keras.callbacks.LambdaCallback(on_train_batch_end=end_step)
    # The first step is traced and compiled. It does not count.
    model.fit(batches, steps_per_epoch=_STEPS + 1, callbacks=[record], shuffle=False, verbose=0)
    return float(np.median(np.diff(ends)))
