"""What makes sure that per-example gradients are right: one ordinary backward pass."""

import numpy as np
import tensorflow as tf

from fisher_keras.fisher.gradients import Gradients
from fisher_keras.fisher.per_example import Batch

# Gradients that agree with reverse mode to within rounding differ by about 1e-5 of the largest
# entry in float32 and 1e-2 in half precision; a wrong one by about 1.
_TOLERANCE = 0.05
# Gradients that are zero but for rounding have no relative error; this share of the largest
# gradient of all weights is about that rounding.
_NEGLIGIBLE = 1e-5


def relative_errors(batch: Batch, gradients: list[Gradients | None]) -> tf.Tensor:
    """Compares a random weighted sum of per-example gradients with that of reverse mode.

    Args:
        batch: The examples, in the graph in which the gradients were found.
        gradients: Of each weight, None for one that has none.

    Returns:
        The largest error of each weight's gradient relative to its largest entry, a vector in
        float64; 0 for a weight that has none.
    """
    coefficients = tf.random.stateless_normal([batch.size], [0, 0])
    expected = batch.weighted_sum(coefficients)
    off, largest = [], []
    # The last layer's gradients are there first. One after another, so that the factors of few
    # are in memory at a time.
    for found, right in zip(reversed(gradients), reversed(expected), strict=True):
        largest.append(tf.cast(_largest(right), tf.float64))
        if found is None:
            off.append(tf.zeros([], tf.float64))
            continue
        with tf.control_dependencies(off[-1:]):
            mine = found.weighted_sum(coefficients)
        off.append(tf.cast(_largest(mine - tf.cast(right, mine.dtype)), tf.float64))
    off, largest = tf.stack(off[::-1]), tf.stack(largest[::-1])
    floor = _NEGLIGIBLE * tf.reduce_max(largest)
    return tf.math.divide_no_nan(off, tf.maximum(largest, floor))


def wrong_weights(errors: np.ndarray) -> list[int]:
    """Returns the indices of the weights whose `relative_errors` are no rounding."""
    return np.flatnonzero(errors > _TOLERANCE).tolist()


def _largest(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_max(tf.abs(values))
