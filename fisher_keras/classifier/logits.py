"""What a classifier gives: its logits, and the hard-label loss's gradient at them."""

import math
from collections.abc import Callable
from typing import Any, Literal

import keras
import tensorflow as tf

from fisher_keras.classifier import stateless

FromLogits = bool | Literal["auto"]
# Between softmax and the model's output these change nothing.
_TRANSPARENT = ("Identity", "Cast")
# Row sums of probabilities in half precision are off by about this much.
_TOLERANCE = 1e-2


def check_options(from_logits: Any, normalize_logits: Any) -> None:
    """Raises a ValueError if an argument of that name of the metrics is out of range."""
    if from_logits not in (True, False, "auto"):
        raise ValueError(f"from_logits must be True, False or 'auto'. Given: {from_logits!r}.")
    if normalize_logits is not None and not 0 < normalize_logits < math.inf:
        raise ValueError(
            "normalize_logits must be a number greater than 0, such as 0.04, or None. "
            f"Given: {normalize_logits!r}."
        )


def find_logits(
    outputs: tf.Tensor, from_logits: FromLogits, normalize_logits: float | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds what the hard-label loss is differentiated at, in the graph of a model.

    A softmax or a sigmoid at the end is passed over: its input has digits that its output has
    lost where the model is sure.

    Args:
        outputs: The model's outputs, shape (N, K), a tensor of a graph.
        from_logits: Whether they are logits; "auto" finds out from the graph or, where a layer of
            one's own gives the outputs, from their values.
        normalize_logits: What is to be done with them, see `unit_cotangents`.

    Returns:
        The tensor to differentiate at, shape (N, K), and whether it holds logits rather than
        probabilities (a boolean scalar tensor). `check_outputs` tells if its values are right.

    Raises:
        ValueError: If outputs are not of shape (N, K), or not what `from_logits` says, or if it
            cannot be found out what they are, or if they cannot be normalized.
    """
    if not isinstance(outputs, tf.Tensor) or outputs.shape.rank != 2:
        shape = getattr(outputs, "shape", None)
        raise ValueError(
            "The metrics are of a classifier with one output of shape (N, K). The model gives "
            f"{type(outputs).__name__} of shape {shape}."
        )
    if normalize_logits is not None and outputs.shape[-1] == 1:
        raise ValueError(
            f"normalize_logits={normalize_logits} needs a logit for each class. The model has one "
            "output, of which only the sign would be left. Pass normalize_logits=None."
        )
    op = outputs.op
    while op.type in _TRANSPARENT:
        op = op.inputs[0].op
    if op.type in ("Softmax", "Sigmoid"):
        if from_logits is True:
            raise ValueError(
                f"from_logits=True, but the model's outputs are probabilities: they end in "
                f"{op.type.lower()}. Pass from_logits='auto' or False."
            )
        return op.inputs[0], tf.constant(True)
    if from_logits != "auto":
        return outputs, tf.constant(from_logits)
    if outputs.shape[-1] == 1:
        raise ValueError(
            "The model has a single output that does not end in a sigmoid, so that logits and "
            "probabilities cannot be told apart. Pass from_logits=True or False."
        )
    # NaN is no probability. (TensorFlow would make "not less" into "greater", also for NaN.)
    return outputs, tf.where(distance_from_probabilities(outputs) <= _TOLERANCE, False, True)


def distance_from_probabilities(outputs: tf.Tensor) -> tf.Tensor:
    """Returns how far any of the outputs, shape (N, K), are below 0, or their sums from 1.

    Of a single unit, shape (N, 1), it is how far they are outside of 0 to 1.
    """
    outputs = tf.cast(outputs, tf.float64)
    excess = tf.reduce_sum(outputs, axis=-1) - 1
    excess = excess if outputs.shape[-1] == 1 else tf.abs(excess)
    return tf.maximum(tf.reduce_max(excess), tf.reduce_max(-outputs))


def check_outputs(
    are_logits: bool, distance: float, normalize_logits: float | None = None
) -> None:
    """Raises a ValueError if the values of a model's outputs are not what the metrics need.

    Args:
        are_logits: Whether they are logits rather than probabilities.
        distance: What `distance_from_probabilities` returns.
        normalize_logits: See `unit_cotangents`.
    """
    if are_logits:
        return
    if distance > _TOLERANCE:
        raise ValueError(
            "from_logits=False, but the model's outputs are no probabilities: they are negative, "
            f"or their sum over the classes is not 1, by up to {distance:.3g}. Pass "
            "from_logits=True for logits, or 'auto' to find out."
        )
    if normalize_logits is not None:
        raise ValueError(
            f"normalize_logits={normalize_logits} needs logits, and the model gives only "
            "probabilities. Evaluate a model that ends in its logits, or in softmax."
        )


def logits_function(
    model: keras.Model, from_logits: FromLogits = "auto"
) -> Callable[[Any], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """Makes a function of a model's logits, in inference mode.

    Args:
        model: A built Keras classifier.
        from_logits: See `find_logits`.

    Returns:
        A `tf.function` from inputs to logits of shape (N, K), float64, at the model's weights of
        the moment; for a single sigmoid unit to (0, logit), shape (N, 2). A model that gives
        only probabilities gives their logarithms, which are logits as well. With them come the
        first two arguments of `check_outputs`.
    """

    @tf.function(autograph=False)
    def logits(x: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        tensor, are_logits = find_logits(stateless.apply(model, x, False), from_logits)
        return as_logits(tensor, are_logits), are_logits, distance_from_probabilities(tensor)

    return logits


def unit_cotangents(
    tensor: tf.Tensor,
    are_logits: tf.Tensor,
    labels: tf.Tensor,
    normalize_logits: float | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    r"""Splits the gradient of each hard-label loss at the model's outputs into direction and size.

    At logits z, $\partial \ell / \partial z = p - \tilde y$. Where the model is sure, this is too
    small for float32 (or for any format): it is computed in logarithms, with
    $p_c - 1 = -\sum_{k \neq c} p_k$, and only its direction is ever a number.

    Args:
        tensor: Logits or probabilities of any floating dtype, shape (N, K); (N, 1) for a single
            sigmoid unit.
        are_logits: Which of the two, a boolean scalar.
        labels: The labels c, int32, shape (N,); 0 or 1 for a single unit.
        normalize_logits: If given, the loss is that of the logits z / (normalize_logits ||z||).

    Returns:
        The directions, unit vectors in the shape of `tensor`, and the logarithms of the lengths,
        shape (N,); both float64. They are not finite where there is no such gradient.
    """
    values = tf.cast(tensor, tf.float64)
    if values.shape[-1] == 1:
        at_logits, at_probabilities = _single_unit(values, labels)
    else:
        if normalize_logits is None:
            at_logits = _logit_cotangents(values, labels)
        else:
            at_logits = _normalized_logit_cotangents(values, labels, normalize_logits)
        chosen = tf.one_hot(labels, values.shape[-1], dtype=tf.float64)
        at_probabilities = -chosen, -tf.math.log(tf.reduce_sum(chosen * values, -1))
    return tuple(
        tf.where(are_logits, a, b) for a, b in zip(at_logits, at_probabilities, strict=True)
    )


def _logit_cotangents(logits: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    others = tf.one_hot(labels, logits.shape[-1], dtype=tf.float64) == 0
    log_p = tf.where(others, tf.nn.log_softmax(logits), -math.inf)
    largest = tf.reduce_max(log_p, axis=-1, keepdims=True)
    relative = tf.exp(log_p - largest)
    cotangents = tf.where(others, relative, -tf.reduce_sum(relative, axis=-1, keepdims=True))
    length = tf.norm(cotangents, axis=-1, keepdims=True)
    return cotangents / length, tf.squeeze(largest + tf.math.log(length), -1)


def _normalized_logit_cotangents(
    logits: tf.Tensor, labels: tf.Tensor, normalize_logits: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Takes the gradient at z / (c ||z||) back to z: its part across z, by c ||z||."""
    norms = tf.norm(logits, axis=-1, keepdims=True)
    along = logits / norms
    cotangents, log_scale = _logit_cotangents(along / normalize_logits, labels)
    across = cotangents - along * tf.reduce_sum(along * cotangents, axis=-1, keepdims=True)
    length = tf.norm(across, axis=-1)
    log_scale += tf.math.log(length) - tf.math.log(normalize_logits * tf.squeeze(norms, -1))
    return across / length[:, tf.newaxis], log_scale


def _single_unit(values: tf.Tensor, labels: tf.Tensor) -> tuple[tuple, tuple]:
    """Returns direction and logarithm for the logit of class 1, and for its probability."""
    sign = 2 * tf.cast(labels, tf.float64) - 1
    values = tf.squeeze(values, -1)
    directions = -sign[:, tf.newaxis]
    probability = tf.where(sign > 0, values, 1 - values)
    return (directions, tf.math.log_sigmoid(-sign * values)), (
        directions,
        -tf.math.log(probability),
    )


def as_logits(tensor: tf.Tensor, are_logits: tf.Tensor) -> tf.Tensor:
    """Returns what `find_logits` found as logits of shape (N, K), K > 1, float64.

    For probabilities these are their logarithms; for a single unit (0, log odds).
    """
    values = tf.cast(tensor, tf.float64)
    # A logarithm's infinite derivative at 0 would spoil that of logits, too.
    probabilities = tf.where(are_logits, tf.constant(0.5, values.dtype), values)
    logarithms = tf.math.log(probabilities)
    if values.shape[-1] == 1:
        log_odds = tf.where(are_logits, values, logarithms - tf.math.log1p(-probabilities))
        return tf.concat([tf.zeros_like(values), log_odds], axis=-1)
    return tf.where(are_logits, values, logarithms)
