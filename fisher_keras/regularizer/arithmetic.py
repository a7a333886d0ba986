"""Arithmetic of gradients whose parts may have several dtypes, or be None."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

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
    parts = [tf.cast(getattr(g, "values", g), dtype) for g in gradient if g is not None]
    norm = tf.linalg.global_norm(parts)

    def of_scaled() -> tf.Tensor:
        largest = tf.reduce_max([tf.reduce_max(tf.abs(part)) for part in parts])
        scaled = largest * tf.linalg.global_norm([part / largest for part in parts])
        return tf.where((largest > 0) & tf.math.is_finite(largest), scaled, norm)

    # A square of less than about 1e-38, or more than 1e38, is 0 or infinite in float32.
    return tf.cond((norm > _LEAST_NORM) & tf.math.is_finite(norm), lambda: norm, of_scaled)


def in_dtype(number: float | tf.Tensor, dtype: tf.DType) -> float | tf.Tensor:
    """Returns a number to multiply tensors of a dtype with; a Python number has any dtype."""
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
    scale = 1 / tf.maximum(norm / in_dtype(clip_norm, norm.dtype), 1) + (norm - norm)
    return map_parts(lambda g: g * tf.cast(scale, g.dtype), gradient)


def map_parts(function: Callable[[Any], Any], gradient: list) -> list:
    """Returns a function of each part of a gradient; None stays None."""
    return [None if g is None else function(g) for g in gradient]


def with_zeros(gradient: list, weights: list) -> list:
    """Returns a gradient that is zero instead of None where a weight has no influence."""
    return [tf.zeros_like(w) if g is None else g for g, w in zip(gradient, weights, strict=True)]


@dataclasses.dataclass(frozen=True)
class LossScale:
    """The factor by which an optimizer wants losses scaled, so that half precision can hold them.

    Attributes:
        factor: Scalar; None stands for 1.
    """

    factor: tf.Tensor | None

    @classmethod
    def of(cls, optimizer: keras.optimizers.Optimizer) -> "LossScale":
        """Returns the factor that an optimizer divides by at present."""
        one = tf.ones(())
        factor = optimizer.scale_loss(one)
        return cls(None if factor is one else factor)

    def times(self, tensor: Any) -> Any:
        """Returns a loss, or a part of a gradient, times the factor."""
        return tensor if self.factor is None else tensor * tf.cast(self.factor, tensor.dtype)

    def remove(self, tensor: Any) -> tf.Tensor:
        """Returns a dense tensor that is divided by the factor."""
        dense = tf.convert_to_tensor(tensor)
        return dense if self.factor is None else dense / tf.cast(self.factor, dense.dtype)
