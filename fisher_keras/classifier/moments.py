"""Batch moments whose second derivatives are right."""

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf


@contextlib.contextmanager
def exact_moments() -> Iterator[None]:
    """Lets Keras' normalization layers take moments that can be differentiated twice.

    `tf.nn.moments` holds the mean constant inside the variance. That is right for the gradient,
    to which the mean contributes nothing there, but not for the gradient's own derivatives: a
    Hessian through BatchNormalization would lack a term. In this context `tf.nn.moments` is the
    plain formula, with the same values and gradients. It is for the trace of a function (or for
    eager code), and harmless to what other threads trace meanwhile.
    """
    original = tf.nn.moments
    tf.nn.moments = _moments
    try:
        yield
    finally:
        tf.nn.moments = original


def _moments(
    x: tf.Tensor, axes: Sequence[int], keepdims: bool = False, **_: object
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns mean and variance over axes, in the dtype of x."""
    values = tf.cast(x, tf.float32) if x.dtype == tf.float16 else x
    mean = tf.reduce_mean(values, axes, keepdims=True)
    variance = tf.reduce_mean(tf.math.squared_difference(values, mean), axes, keepdims=True)
    if not keepdims:
        mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
    return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)
