"""Arithmetic of gradients whose parts may have several dtypes, be sparse, or be None.

A part is a tensor. For a table of which few rows are looked up, it is the `tf.IndexedSlices` of
these rows. Sums of sparse parts name each row once, so that squares of their values are right.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

Part = tf.Tensor | tf.IndexedSlices
_LEAST_NORM = 1e-15  # Squares of parts that are far smaller still have all their digits.


def scalar_dtype(tensors: list) -> str:
    """Returns the dtype for scalars that belong to tensors: float32 or the widest of them.

    Args:
        tensors: Weights, or a gradient.
    """
    dtypes = [keras.backend.standardize_dtype(t.dtype) for t in tensors if t is not None]
    return keras.backend.result_type("float32", *dtypes)


def global_norm(gradient: list) -> tf.Tensor:
    """Returns the Euclidean norm of all parts of a gradient together, also if squares overflow.

    Args:
        gradient: Tensors or `tf.IndexedSlices`, None for a part that is zero.

    Returns:
        Scalar of `scalar_dtype`.
    """
    dtype = scalar_dtype(gradient)
    parts = [
        tf.cast(sum_rows(g).values if is_sparse(g) else g, dtype)
        for g in gradient
        if g is not None
    ]
    norm = tf.linalg.global_norm(parts)

    def of_scaled() -> tf.Tensor:
        flat = tf.constant([-1])  # One for all parts, which saves as many operations.
        values = tf.concat([tf.reshape(part, flat) for part in parts], axis=0)
        largest = tf.reduce_max(tf.abs(values))
        scaled = largest * tf.norm(values / largest)
        return tf.where((largest > 0) & tf.math.is_finite(largest), scaled, norm)

    # A square of less than about 1e-38, or more than 1e38, is 0 or infinite in float32.
    return tf.cond((norm > _LEAST_NORM) & tf.math.is_finite(norm), lambda: norm, of_scaled)


def is_sparse(part: Any) -> bool:
    """Returns whether a part of a gradient has only some rows."""
    return isinstance(part, tf.IndexedSlices)


def sum_rows(part: Part) -> Part:
    """Returns a part of a gradient with the sum of each row that it names several times."""
    if not is_sparse(part):
        return part
    indices, positions = tf.unique(tf.cast(part.indices, tf.int64))
    values = tf.math.unsorted_segment_sum(part.values, positions, tf.size(indices))
    return tf.IndexedSlices(values, indices, tf.cast(part.dense_shape, tf.int64))


def times(part: Part, factor: float | tf.Tensor) -> Part:
    """Returns a part of a gradient, or a loss, times a scalar, in its own dtype."""
    factor = in_dtype(factor, part.dtype)
    return map_values(lambda values: values * factor, part)


def scale(gradient: list, factor: float | tf.Tensor) -> list:
    """Returns a gradient times a scalar; None stays None."""
    factor_in = once_a_dtype(factor)
    return map_parts(lambda part: times(part, factor_in(part.dtype)), gradient)


def once_a_dtype(number: float | tf.Tensor) -> Callable[[tf.DType], tf.Tensor]:
    """Returns a function that gives a number in a dtype, and makes it once for each dtype."""
    # Made for each part of a gradient, there would be as many operations as weights.
    return functools.cache(lambda dtype: tf.convert_to_tensor(in_dtype(number, dtype), dtype))


def at_least_float32(part: Part) -> Part:
    """Returns a part of a gradient in float32, where small factors lose no digits, or wider."""
    return map_values(lambda values: tf.cast(values, scalar_dtype([values])), part)


def unit_vector(gradient: list, norm: tf.Tensor) -> list:
    """Returns a gradient without None divided by its norm; zero if the norm is zero."""

    def divided(values: tf.Tensor) -> tf.Tensor:
        return tf.math.divide_no_nan(values, tf.cast(norm, values.dtype))

    return [map_values(divided, part) for part in gradient]


def add(first: Part, second: Part) -> Part:
    """Returns the sum of two parts of gradients, or of weights and such a part."""
    if not is_sparse(first):
        first, second = second, first
    if not is_sparse(first):
        return second + first
    if not is_sparse(second):
        # In place if nothing else needs the tensor; tf.tensor_scatter_nd_add never is on a CPU.
        added = tf.raw_ops.ScatterNdNonAliasingAdd(
            input=second, indices=first.indices[:, tf.newaxis], updates=first.values
        )
        added.set_shape(second.shape)
        return added
    values, indices = (
        tf.concat([getattr(part, name) for part in (first, second)], axis=0)
        for name in ("values", "indices")
    )
    return sum_rows(tf.IndexedSlices(values, indices, second.dense_shape))


def subtract(first: Part, second: Part) -> Part:
    """Returns the difference of two parts, with the arguments of `add`."""
    if is_sparse(first) or is_sparse(second):
        return add(first, times(second, -1))
    return first - second


def in_dtype(number: float | tf.Tensor, dtype: tf.DType) -> float | tf.Tensor:
    """Returns a number as a factor for tensors of a dtype; a Python number fits any dtype."""
    return tf.cast(number, dtype) if isinstance(number, tf.Tensor) else number


def clip(gradient: list, clip_norm: float | tf.Tensor, norm: tf.Tensor) -> list:
    """Scales a gradient down to a global norm, as `tf.clip_by_global_norm` does.

    Args:
        gradient: Tensors, None for a part that is zero.
        clip_norm: The largest norm allowed; may be infinite.
        norm: The gradient's norm.

    Returns:
        The gradient; NaN where its norm is not finite.
    """
    # inf - inf is NaN.
    factor = 1 / tf.maximum(norm / in_dtype(clip_norm, norm.dtype), 1) + (norm - norm)
    return scale(gradient, factor)


def map_values(function: Callable[[tf.Tensor], tf.Tensor], part: Part) -> Part:
    """Applies a function, which must map 0 to 0, to the values of a part of a gradient."""
    if is_sparse(part):
        return tf.IndexedSlices(function(part.values), part.indices, part.dense_shape)
    return function(part)


def map_parts(function: Callable[[Any], Any], gradient: list) -> list:
    """Applies a function to each part of a gradient; None stays None."""
    return [None if g is None else function(g) for g in gradient]


def with_shape(part: Part | None, weight: tf.Tensor) -> Part | None:
    """Returns a part of a gradient; if it is sparse, with the known shape of its weight."""
    if not is_sparse(part):
        return part
    return tf.IndexedSlices(part.values, part.indices, tf.constant(list(weight.shape), tf.int64))


def with_zeros(gradient: list, weights: list) -> list:
    """Returns a gradient that is zero instead of None where a weight has no influence.

    Dense parts have the shapes of the weights, even if tracing has lost these shapes.
    """
    for part, weight in zip(gradient, weights, strict=True):
        if isinstance(part, tf.Tensor):
            part.set_shape(weight.shape)
    return [tf.zeros_like(w) if g is None else g for g, w in zip(gradient, weights, strict=True)]


_SCALE_LOSS = (
    keras.optimizers.Optimizer.scale_loss,
    keras.optimizers.LossScaleOptimizer.scale_loss,
)


@dataclasses.dataclass(frozen=True)
class LossScale:
    """The factor by which an optimizer wants losses scaled, so that half precision can hold them.

    Attributes:
        factor: Scalar; None stands for 1.
    """

    factor: float | tf.Tensor | None

    @classmethod
    def of(cls, optimizer: keras.optimizers.Optimizer) -> "LossScale":
        """Returns the factor that an optimizer currently divides by."""
        # Keras' own take a number, which adds nothing to the graph. An overriding method may not.
        own = type(optimizer).scale_loss in _SCALE_LOSS
        one = 1.0 if own else tf.ones(())
        factor = optimizer.scale_loss(one)
        return cls(None if factor is one else factor)

    def times(self, tensor: Any) -> Any:
        """Returns a loss, or a part of a gradient, times the factor."""
        return tensor if self.factor is None else times(tensor, self.factor)

    def remove(self, tensor: Any) -> Any:
        """Returns a tensor, or a part of a gradient, divided by the factor."""
        if self.factor is None:
            return tensor
        return map_values(lambda values: values / tf.cast(self.factor, values.dtype), tensor)
