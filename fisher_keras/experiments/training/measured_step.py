"""Time of a training step on this machine, from a few of them."""

import time

import keras
import numpy as np
import tensorflow as tf

_STEPS = 5
_ENOUGH_S = 30.0  # Of steps that take long, fewer tell as much.


def step_seconds(model: keras.Model, batches: tf.data.Dataset) -> float:
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
