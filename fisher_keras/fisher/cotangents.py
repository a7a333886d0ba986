r"""The gradient $p - \tilde y$ of the hard-label loss at the logits, as direction and size."""

import math

import tensorflow as tf

from fisher_keras.classifier.logits import Logits


def unit_cotangents(
    logits: Logits, labels: tf.Tensor, counted: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Splits the gradient of each hard-label loss at the model's outputs into direction and size.

    At logits z, $\partial \ell / \partial z = p - \tilde y$. If the model is confident, this is
    too small for float32 (or for any format). Therefore it is computed in logarithms, with
    $p_c - 1 = -\sum_{k \neq c} p_k$, and only its direction is stored as numbers. The loss of an
    example with several predictions is the sum over the positions that count.

    Args:
        logits: The model's logits for N examples.
        labels: The labels c, int32, shape (N, *P); 0 or 1 for a single unit.
        counted: Whether each position counts, booleans, shape (N, *P).

    Returns:
        The directions, unit vectors in the shape of `logits.values`, and the logarithms of the
        lengths, shape (N,); both float64. They are not finite for an example without such a
        gradient, and both are 0 for an example without a position that counts.
    """
    units, log_scale = _at_each_position(logits, labels)
    if log_scale.shape.rank == 1 and logits.mask is None:
        return units, log_scale
    axes = list(range(1, log_scale.shape.rank))
    log_scale = tf.where(counted, log_scale, -math.inf)
    # Only ratios of the lengths are numbers: those far below the largest are 0 beside it.
    log_length = tf.reduce_logsumexp(2 * log_scale, axes, keepdims=True) / 2
    known = tf.reduce_any(counted, axes, keepdims=True)
    log_length = tf.where(known, log_length, tf.zeros_like(log_length))
    lengths = tf.exp(log_scale - log_length)[..., tf.newaxis]
    units = tf.where(counted[..., tf.newaxis], lengths * units, tf.zeros_like(units))
    return units, tf.squeeze(log_length, axes) if axes else log_length


def _at_each_position(logits: Logits, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    values = tf.cast(logits.values, tf.float64)
    if values.shape[-1] == 1:
        at_logits, at_probabilities = _single_unit(values, labels)
    else:
        if logits.normalize is None:
            at_logits = _logit_cotangents(values, labels)
        else:
            at_logits = _normalized_logit_cotangents(values, labels, logits.normalize)
        # The loss -ln p_c has the derivative -1 / p_c by p_c, and none by the others.
        chosen = tf.one_hot(labels, values.shape[-1], dtype=tf.float64)
        at_probabilities = -chosen, -tf.math.log(tf.reduce_sum(chosen * values, -1))
    # For some models only the values of the outputs tell which of the two they are.
    return tuple(
        tf.where(logits.are_logits, a, b) for a, b in zip(at_logits, at_probabilities, strict=True)
    )


def _logit_cotangents(logits: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    # p_c - 1 would be rounding where p_c is near 1: it is minus the sum of the others instead, and
    # all are relative to the largest of them, which is never too small for a number.
    others = tf.one_hot(labels, logits.shape[-1], dtype=tf.float64) == 0
    log_p = tf.where(others, tf.nn.log_softmax(logits), -math.inf)
    largest = tf.reduce_max(log_p, axis=-1, keepdims=True)
    relative = tf.exp(log_p - largest)
    cotangents = tf.where(others, relative, -tf.reduce_sum(relative, axis=-1, keepdims=True))
    length = tf.norm(cotangents, axis=-1, keepdims=True)
    return cotangents / length, tf.squeeze(largest + tf.math.log(length), -1)


def _normalized_logit_cotangents(
    logits: tf.Tensor, labels: tf.Tensor, c: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Pulls the gradient at z / (c ||z||) back to z: its part orthogonal to z, over c ||z||."""
    norms = tf.norm(logits, axis=-1, keepdims=True)
    along = logits / norms
    cotangents, log_scale = _logit_cotangents(along / c, labels)
    # The normalized logits do not change along z.
    across = cotangents - along * tf.reduce_sum(along * cotangents, axis=-1, keepdims=True)
    length = tf.norm(across, axis=-1)
    log_scale += tf.math.log(length) - tf.math.log(c * tf.squeeze(norms, -1))
    return across / length[..., tf.newaxis], log_scale


def _single_unit(values: tf.Tensor, labels: tf.Tensor) -> tuple[tuple, tuple]:
    """Returns direction and logarithm for the logit of class 1, and for its probability."""
    # With s = 1 for class 1 and s = -1 for class 0, the loss of a logit z is ln(1 + e^(-s z)), the
    # gradient of which is -s times the sigmoid of -s z.
    sign = 2 * tf.cast(labels, tf.float64) - 1
    values = tf.squeeze(values, -1)
    directions = -sign[..., tf.newaxis]
    probability = tf.where(sign > 0, values, 1 - values)
    return (directions, tf.math.log_sigmoid(-sign * values)), (
        directions,
        -tf.math.log(probability),
    )
