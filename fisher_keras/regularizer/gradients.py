"""Arithmetic of gradients whose parts may have several dtypes, or be None."""

import keras
import tensorflow as tf


def scalar_dtype(tensors: list) -> str:
    """Returns the dtype for scalars that belong to tensors: float32 or the widest of them.

    Args:
        tensors: Weights, or a gradient.
    """
    dtypes = [keras.backend.standardize_dtype(t.dtype) for t in tensors if t is not None]
    return keras.backend.result_type("float32", *dtypes)


def global_norm(gradient: list) -> tf.Tensor:
    """Returns the Euclidean norm of all parts of a gradient together.

    Args:
        gradient: Tensors or `tf.IndexedSlices`, None for a part that is zero.

    Returns:
        Scalar of `scalar_dtype`.
    """
    dtype = scalar_dtype(gradient)
    return tf.linalg.global_norm([None if g is None else tf.cast(g, dtype) for g in gradient])


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
    return [None if g is None else g * tf.cast(scale, g.dtype) for g in gradient]
