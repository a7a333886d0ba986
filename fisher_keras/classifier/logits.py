"""Logits or probabilities: what a classifier gives, found out and checked."""

import dataclasses
from typing import Any, Literal

import keras
import tensorflow as tf

from fisher_keras.classifier import stateless

FromLogits = bool | Literal["auto"]
# Between softmax and the model's output these change nothing.
_TRANSPARENT = ("Identity", "Cast")
# Row sums of probabilities in half precision are off by about this much.
_TOLERANCE = 1e-2


@dataclasses.dataclass(frozen=True)
class Logits:
    r"""What the hard-label losses of N examples are differentiated at, in a graph.

    Attributes:
        values: Logits z, or probabilities where the model has no logits, of any floating dtype,
            shape (N, K); (N, 1) for a single sigmoid unit.
        are_logits: Which of the two, a boolean scalar tensor.
        normalize: c, where the losses are those of the logits z / (c ||z||); None if of z.
    """

    values: tf.Tensor
    are_logits: tf.Tensor
    normalize: float | None

    def distance_from_probabilities(self) -> tf.Tensor:
        """Returns how far the values are from probabilities, a float64 scalar."""
        return _distance_from_probabilities(self.values)

    def in_float64(self) -> tf.Tensor:
        """Returns logits of shape (N, K), K > 1, float64, not normalized.

        For probabilities these are their logarithms; for a single unit (0, log odds).
        """
        values, are_logits = tf.cast(self.values, tf.float64), self.are_logits
        # A logarithm's infinite derivative at 0 would spoil that of logits, too.
        probabilities = tf.where(are_logits, tf.constant(0.5, values.dtype), values)
        logarithms = tf.math.log(probabilities)
        if values.shape[-1] == 1:
            log_odds = tf.where(are_logits, values, logarithms - tf.math.log1p(-probabilities))
            return tf.concat([tf.zeros_like(values), log_odds], axis=-1)
        return tf.where(are_logits, values, logarithms)


def find_logits(
    outputs: tf.Tensor, from_logits: FromLogits, normalize_logits: float | None = None
) -> Logits:
    """Finds what the hard-label loss is differentiated at, in the graph of a model.

    A softmax or a sigmoid at the end is passed over: its input has digits that its output has
    lost where the model is sure.

    Args:
        outputs: The model's outputs, shape (N, K), a tensor of a graph.
        from_logits: Whether they are logits; "auto" finds out from the graph or, where a layer of
            one's own gives the outputs, from their values.
        normalize_logits: `Logits.normalize`.

    Returns:
        The tensor to differentiate at. `check_values` tells if its values are right.

    Raises:
        ValueError: If outputs are not of shape (N, K), or not what `from_logits` says, or if it
            cannot be found out what they are, or if they cannot be normalized.
    """
    if not isinstance(outputs, tf.Tensor) or outputs.shape.rank != 2 or outputs.shape[1] is None:
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
        return Logits(op.inputs[0], tf.constant(True), normalize_logits)
    if from_logits != "auto":
        return Logits(outputs, tf.constant(from_logits), normalize_logits)
    if outputs.shape[-1] == 1:
        raise ValueError(
            "The model has a single output that does not end in a sigmoid, so that logits and "
            "probabilities cannot be told apart. Pass from_logits=True or False."
        )
    # TensorFlow would make "not less" into "greater", also for NaN.
    are_logits = tf.where(are_probabilities(outputs), False, True)
    return Logits(outputs, are_logits, normalize_logits)


def gives_probabilities(model: keras.Model) -> bool | None:
    """Returns whether a model ends in softmax or sigmoid; None where its layers do not tell."""
    layer: Any = model
    while isinstance(layer, keras.Model):
        if isinstance(layer, keras.Sequential):
            layer = layer.layers[-1] if layer.layers else None
        elif getattr(layer, "outputs", None):
            layer = stateless.output_layer(layer)
        else:
            return None
    if isinstance(layer, keras.layers.Softmax):
        return True
    if isinstance(layer, (keras.layers.Dense, keras.layers.Activation)):
        if layer.activation in (keras.activations.softmax, keras.activations.sigmoid):
            return True
        if layer.activation is keras.activations.linear:
            return False
    return None


def are_probabilities(outputs: tf.Tensor, tolerance: float = _TOLERANCE) -> tf.Tensor:
    """Returns whether outputs, shape (N, K), can be probabilities; NaN is none.

    Args:
        outputs: Outputs of a model.
        tolerance: How far below 0 they may be, or their sums from 1.

    Returns:
        A boolean scalar tensor.
    """
    return _distance_from_probabilities(outputs) <= tolerance


def check_values(are_logits: bool, distance: float, normalize_logits: float | None = None) -> None:
    """Raises a ValueError if the values of a model's outputs are not what the metrics need.

    Args:
        are_logits: Whether they are logits rather than probabilities.
        distance: What `Logits.distance_from_probabilities` is.
        normalize_logits: `Logits.normalize`.
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


def _distance_from_probabilities(outputs: tf.Tensor) -> tf.Tensor:
    """Returns how far any of the outputs, shape (N, K), are below 0, or their sums from 1.

    Of a single unit, shape (N, 1), it is how far they are outside of 0 to 1.
    """
    outputs = tf.cast(outputs, tf.float64)
    excess = tf.reduce_sum(outputs, axis=-1) - 1
    excess = excess if outputs.shape[-1] == 1 else tf.abs(excess)
    return tf.maximum(tf.reduce_max(excess), tf.reduce_max(-outputs))
