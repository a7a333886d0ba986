"""Verification of per-example gradients against one reverse-mode pass, and of their examples."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from fisher_keras.classifier.inputs import rows_of
from fisher_keras.fisher.gradients import Gradients
from fisher_keras.fisher.per_example import TracedBatch

# Gradients that agree with reverse mode to within rounding differ by about 1e-5 of the largest
# entry in float32 and 1e-2 in half precision; a wrong one by about 1.
_TOLERANCE = 0.05
# Logits of deep networks are off by some 100 roundings, where a batch is computed in other parts.
_ROUNDINGS_OF_LOGITS = 2.0**13
# Gradients that are zero but for rounding, as that of an attention's key bias is, have no relative
# error; so many roundings of the largest gradient of all weights are about that rounding.
_NEGLIGIBLE = 84.0
# The coefficients' standard deviation: with 1, gradients that a norm over the batch divides would
# pass in large batches. A power of two leaves all errors as they are, and a small one float16.
_SPREAD = 0.25
# That `same_among_others` is false, in words.
DIFFERS_AMONG_FEWER = (
    "among fewer others, an example gives something else, unless the model is random there"
)


def relative_errors(
    batch: TracedBatch, gradients: list[Gradients], rounding: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Compares a random weighted sum of per-example gradients with that from reverse mode.

    Args:
        batch: The examples, in the graph in which the gradients were found.
        gradients: The gradients of each weight.
        rounding: Relative rounding of the model (see `rounding_of`).

    Returns:
        The largest error of each weight's gradient relative to its largest entry, a vector in
        float64, and whether any entry is not zero.
    """
    # A plain sum would not notice gradients that are given to the wrong examples.
    coefficients = tf.random.stateless_normal([batch.size], [0, 0], stddev=_SPREAD)
    expected = batch.weighted_sum(coefficients)
    off, largest = [], []
    # The last layer's gradients are there first. One after another, so that the factors of few
    # are in memory at a time.
    for found, right in zip(reversed(gradients), reversed(expected), strict=True):
        largest.append(tf.cast(_largest(right), tf.float64))
        with tf.control_dependencies(off[-1:]):
            mine = found.weighted_sum(coefficients)
        off.append(tf.cast(_largest(mine - tf.cast(right, mine.dtype)), tf.float64))
    off, largest = tf.stack(off[::-1]), tf.stack(largest[::-1])
    floor = _NEGLIGIBLE * rounding * tf.reduce_max(largest)
    return tf.math.divide_no_nan(off, tf.maximum(largest, floor)), largest > 0


def wrong_weights(errors: np.ndarray) -> list[int]:
    """Returns the indices of the weights whose `relative_errors` are larger than rounding."""
    return np.flatnonzero(errors > _TOLERANCE).tolist()


def same_among_others(
    function: Callable[[Any], Sequence[np.ndarray]],
    x: Any,
    values: Sequence[np.ndarray],
    rounding: float,
) -> bool:
    """Returns whether a function gives examples the same in batches of another composition.

    The examples are given in another order and in two halves, so that each of them loses neighbors
    and half of the others.

    Args:
        function: Takes the inputs of a batch to arrays of values, each of shape (N, ...), float64.
        x: The inputs of a batch, a structure of tensors.
        values: The function's values for that batch.
        rounding: Relative rounding of the model (see `rounding_of`).
    """
    count = len(values[0])
    order = np.random.default_rng(0).permutation(count)
    halves = [function(rows_of(x, half)) for half in np.array_split(order, min(2, count))]
    return all(
        same_values(np.concatenate(apart), together[order], rounding)
        for *apart, together in zip(*halves, values, strict=True)
    )


def same_values(these: np.ndarray, those: np.ndarray, rounding: float) -> bool:
    """Returns whether values are equal to within rounding. NaN and infinity are another error.

    Args:
        these: Logits, or what is as precise, in float64.
        those: The same of the same examples.
        rounding: Relative rounding of the model (see `rounding_of`).
    """
    tolerance = min(_TOLERANCE, _ROUNDINGS_OF_LOGITS * rounding)
    finite = np.isfinite(these) & np.isfinite(those)
    off = np.abs(these - those)[finite]
    return bool(np.all(off <= tolerance * np.abs(those[finite]).max(initial=0)))


def _largest(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_max(tf.abs(values))
