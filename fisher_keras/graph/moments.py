"""Batch moments whose second derivatives are right."""

import contextlib
import contextvars
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

_EXACT = contextvars.ContextVar("exact_moments", default=False)
_INSTALLING = threading.Lock()


@contextlib.contextmanager
def exact_moments() -> Iterator[None]:
    """Lets Keras' normalization layers take moments that can be differentiated twice.

    `tf.nn.moments` holds the mean constant inside the variance. That is right for the gradient,
    to which the mean contributes nothing there, but not for the gradient's own derivatives: a
    Hessian through BatchNormalization, GroupNormalization or LayerNormalization would lack a
    term. In this context `tf.nn.moments` is the plain formula, with the same values and gradients.

    The layers offer no place to hand them another formula, so that `tf.nn.moments` itself has to
    know of the context: the first one replaces it, for good, by a function that asks whether the
    thread that calls it is in one, and otherwise does what it always did. What other threads
    compute or trace meanwhile is not touched. What was traced outside of the context stays as it
    was traced.
    """
    _install()
    token = _EXACT.set(True)
    try:
        yield
    finally:
        _EXACT.reset(token)


def _install() -> None:
    """Lets `tf.nn.moments` ask for the context, unless it does so already."""
    with _INSTALLING:
        original = tf.nn.moments
        if hasattr(original, "asks_for_exact_moments"):
            return

        @functools.wraps(original)
        def moments(x: Any, axes: Any, *args: Any, **kwargs: Any) -> tuple[tf.Tensor, tf.Tensor]:
            if _EXACT.get():
                return _exact_moments(x, axes, *args, **kwargs)
            return original(x, axes, *args, **kwargs)

        moments.asks_for_exact_moments = True
        tf.nn.moments = moments


def _exact_moments(
    x: tf.Tensor,
    axes: Sequence[int],
    shift: None = None,
    keepdims: bool = False,
    name: str | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns mean and variance over axes, in the dtype of x; the arguments are TensorFlow's."""
    del shift, name  # TensorFlow does not use the one, and the other changes no number.
    values = tf.cast(x, tf.float32) if x.dtype == tf.float16 else x
    mean = tf.reduce_mean(values, axes, keepdims=True)
    variance = tf.reduce_mean(tf.math.squared_difference(values, mean), axes, keepdims=True)
    if not keepdims:
        mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
    return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)
