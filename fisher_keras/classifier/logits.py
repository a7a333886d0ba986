"""Detects and checks whether a classifier outputs logits or probabilities."""

import dataclasses
import math
from typing import Any, Literal

import keras
import tensorflow as tf

from fisher_keras.classifier.likelihood import Likelihood
from fisher_keras.graph import keras_private
from fisher_keras.graph.operations import behind, producer

FromLogits = bool | Literal["auto"]
# The distribution of labels: one of K classes, at each position, or K that are yes or no each.
LikelihoodName = Literal["auto", "categorical", "bernoulli"]
_ACTIVATIONS = ("softmax", "sigmoid")
# Between softmax and the model's output these change nothing.
_TRANSPARENT = ("Identity", "Cast")
# Row sums of probabilities are off by about this much in half precision ...
_HALF_ROUNDING = 1e-2
# ... and by less than this in float32.
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Logits:
    r"""The tensor at which the hard-label losses of N examples are differentiated, in a graph.

    Attributes:
        values: Logits z, or probabilities where the model has no logits, of any floating dtype,
            shape (N, K), or (N, *P, K) with a prediction at each position; K = 1 for a sigmoid
            unit. K labels that are yes or no each are positions, (N, *P, 1).
        are_logits: Which of the two, a boolean scalar tensor.
        normalize: c, where the losses are those of the logits z / (c ||z||); None if of z.
        tolerance: How far from probabilities the values may be by rounding. None if the graph
            itself tells that they are logits, or if no values could tell.
        mask: Keras' mask, False where a position does not count, shape (N, *P); trailing axes may
            be left out. None if all count.
        bernoulli: Whether the last axis of positions are labels that are yes or no each.
    """

    values: tf.Tensor
    are_logits: tf.Tensor
    normalize: float | None
    tolerance: float | None = None
    mask: tf.Tensor | None = None
    bernoulli: bool = False

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of labels, as far as shapes are known in the graph."""
        _, *positions, units = self.values.shape
        # A single sigmoid unit tells two classes apart.
        return Likelihood(tuple(positions), max(2, units), self.bernoulli)

    def counted(self) -> tf.Tensor:
        """Returns whether each position counts by Keras' mask, shape (N, *P), booleans."""
        shape = tf.shape(self.values)[:-1]
        if self.mask is None:
            return tf.ones(shape, tf.bool)
        missing = self.values.shape.rank - 1 - self.mask.shape.rank
        mask = tf.cast(self.mask[(..., *[tf.newaxis] * missing)], tf.bool)
        return tf.broadcast_to(mask, shape)

    def distance_from_probabilities(self) -> tf.Tensor:
        """Returns the values' distance from probabilities, a float64 scalar; 0 if rounding.

        It is infinite without a `tolerance`.
        """
        if self.tolerance is None:
            return tf.constant(math.inf, tf.float64)
        distance = _distance_from_probabilities(self.values)
        return tf.where(distance <= self.tolerance, tf.zeros_like(distance), distance)

    def in_float64(self) -> tf.Tensor:
        """Returns logits of shape (N, *P, K), K > 1, float64, not normalized.

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
    outputs: tf.Tensor,
    from_logits: FromLogits,
    normalize_logits: float | None = None,
    likelihood: LikelihoodName = "auto",
    labels: str | None = None,
) -> Logits:
    """Finds the tensor at which the hard-label loss is differentiated, in the graph of a model.

    A softmax or a sigmoid at the end is passed over: its input has digits that its output has
    lost where the model is sure.

    Args:
        outputs: The model's outputs, shape (N, K) or (N, *P, K), a tensor of a graph.
        from_logits: Whether they are logits; "auto" finds out from the graph or, where a custom
            layer gives the outputs, from their values: those that add up to 1 to rounding are
            probabilities, and those that are in 0..1 without adding up to 1 may be either and are
            refused.
        normalize_logits: `Logits.normalize`.
        likelihood: See `Classifier`.
        labels: The form of the compiled loss's labels, see `labels_of`; None if it is not known.

    Returns:
        The tensor to differentiate at. `Classifier.check_values` tells if its values are right.

    Raises:
        ValueError: If outputs are not of that shape, or not what `from_logits` says, or if it
            cannot be found out what they are, or if they cannot be normalized.
    """
    known = isinstance(outputs, tf.Tensor) and outputs.shape.rank is not None
    if not known or outputs.shape.rank < 2 or outputs.shape[-1] is None:
        given = f"{type(outputs).__name__} of shape {getattr(outputs, 'shape', None)}."
        if isinstance(outputs, dict):
            name = next(iter(outputs), "")
            given = f"a dict; give keras.Model(model.inputs, model.output[{name!r}])."
        raise ValueError(
            "The metrics are of a classifier with one output of shape (N, K), or (N, ..., K) for "
            f"a prediction at each position. The model gives {given}"
        )
    bernoulli = _is_bernoulli(outputs, likelihood, labels)
    if normalize_logits is not None and (bernoulli or outputs.shape[-1] == 1):
        raise ValueError(
            f"normalize_logits={normalize_logits} needs a logit for each class. The model has one "
            "output, of which only the sign would be left. Pass normalize_logits=None."
        )
    mask = keras_private.mask_of(outputs)
    if mask is not None and not mask.shape.rank <= outputs.shape.rank - (not bernoulli):
        raise ValueError(
            "Keras' mask of the outputs must have an entry for each prediction. Given: a mask of "
            f"shape {tuple(mask.shape)} for outputs of shape {tuple(outputs.shape)}."
        )
    values, are_logits, tolerance = _find(outputs, from_logits, bernoulli)
    values = values[..., tf.newaxis] if bernoulli else values
    return Logits(values, are_logits, normalize_logits, tolerance, mask, bernoulli)


def _find(
    outputs: tf.Tensor, from_logits: FromLogits, bernoulli: bool
) -> tuple[tf.Tensor, tf.Tensor, float | None]:
    """Returns values, `are_logits` and `tolerance` of the `Logits`."""
    last, head = behind(outputs, _TRANSPARENT), _head(outputs)
    inside = _activation_input(outputs)
    if inside is not None or head == "sigmoid":
        if from_logits is True:
            raise ValueError(
                f"from_logits=True, but the model's outputs are probabilities: they end in "
                f"{head}. Pass from_logits='auto' or False."
            )
        if inside is not None:
            return inside, tf.constant(True), None
        return outputs, tf.constant(False), _HALF_ROUNDING
    if from_logits is False:
        return outputs, tf.constant(False), _HALF_ROUNDING
    several = outputs.shape[-1] > 1
    values_tell = several and not bernoulli
    if _is_unbounded(head, outputs.shape[-1]):
        return outputs, tf.constant(True), None
    tolerance = rounding(last.dtype) if values_tell else None
    if from_logits is True:
        return outputs, tf.constant(True), tolerance
    if tolerance is None:
        raise ValueError(
            "Of a single output, and of labels that are yes or no each, logits and probabilities "
            "cannot be told apart unless the model ends in a sigmoid. Pass from_logits=True or "
            f"False. Given: outputs of shape {tuple(outputs.shape)}."
        )
    # Those of sigmoids are all in (0, 1].
    up_to_one = tf.reduce_all((outputs > 0) & (outputs <= 1))
    may_be = are_probabilities(outputs, tolerance) | up_to_one
    # TensorFlow would make "not less" into "greater", also for NaN.
    return outputs, tf.where(may_be, False, True), tolerance


def _activation_input(outputs: tf.Tensor) -> tf.Tensor | None:
    """Returns the input of the softmax or sigmoid that outputs end in, in their shape.

    It is None if they end in anything else, or in the softmax of a called function.
    """
    last = behind(outputs, (*_TRANSPARENT, "Reshape"))
    activation = last.op.type.lower()
    # A sigmoid is of each entry, and a softmax of each row: a shape with the same rows is as good.
    same_rows = activation == "sigmoid" or last.shape[-1:] == outputs.shape[-1:]
    if activation not in _ACTIVATIONS or not same_rows:
        return None
    (inside,) = last.op.inputs
    return (
        inside if behind(outputs, _TRANSPARENT) is last else tf.reshape(inside, tf.shape(outputs))
    )


def _is_bernoulli(
    outputs: tf.Tensor, likelihood: LikelihoodName, labels: str | None = None
) -> bool:
    """Returns whether outputs are K labels that are yes or no each, and not K classes.

    A sigmoid of several outputs says so, and a binary cross-entropy that the model is compiled
    with, unless one of the two is of classes.

    Raises:
        ValueError: If the model's head contradicts that.
    """
    head, units = _head(outputs), outputs.shape[-1]
    if likelihood == "auto":
        of_head = head == "sigmoid" and labels in (None, "binary")
        likelihood = "categorical"
        if of_head or (labels == "binary" and head not in _ACTIVATIONS):
            likelihood = "bernoulli"
    if likelihood == "bernoulli" and units > 1:
        if head == "softmax":
            raise ValueError(
                f"likelihood='bernoulli', but the model ends in a softmax of {units} outputs, "
                "which are one distribution. End it in a sigmoid, or in logits."
            )
        return True
    _check_activation(head, units)
    return False


def _is_unbounded(head: str, units: int | None) -> bool:
    """Returns whether outputs are sums with a bias, and logits whatever their values are."""
    # A single output may be meant as a probability all the same.
    return head == "biasadd" and units is not None and units > 1


def _head(outputs: tf.Tensor) -> str:
    """Returns the type of the operation that outputs end in, in small letters."""
    return producer(outputs, (*_TRANSPARENT, "Reshape")).lower()


def head_gives_probabilities(outputs: tf.Tensor, labels: str | None = None) -> bool | None:
    """Returns whether outputs end in softmax or sigmoid; None where the graph does not tell.

    Args:
        outputs: The model's outputs, shape (N, K), a tensor of a graph.
        labels: Their form, see `labels_of`.

    Raises:
        ValueError: If that gives no distribution of such labels.
    """
    head, units = _head(outputs), outputs.shape[-1] if outputs.shape.rank > 1 else 1
    _check_activation(head, units, labels)
    return True if head in _ACTIVATIONS else False if _is_unbounded(head, units) else None


def gives_probabilities(model: keras.Model, labels: str | None = None) -> bool | None:
    """Returns whether a model ends in softmax or sigmoid; None where its layers do not tell.

    Args:
        model: The model.
        labels: The form of the labels that it is trained with, see `labels_of`.

    Raises:
        ValueError: If that gives no distribution of such labels.
    """
    layer: Any = model
    units = None
    # The last layer may be a model itself: it is followed down to a layer that is none.
    while isinstance(layer, keras.Model):
        if getattr(layer, "outputs", None):
            units = layer.outputs[0].shape[-1]
        if isinstance(layer, keras.Sequential):
            layer = layer.layers[-1] if layer.layers else None
        elif getattr(layer, "outputs", None):
            layer = keras_private.output_layer(layer)
        else:
            return None
    units = getattr(layer, "units", units)  # Of a model that is not built yet.
    activation = _activation(layer)
    if activation in _ACTIVATIONS:
        _check_activation(activation, units, labels)
        return True
    return False if activation == "linear" else None


def rounding(dtype: tf.DType) -> float:
    """Returns the rounding error of sums of probabilities of a dtype."""
    return _HALF_ROUNDING if dtype.size == 2 else _ROUNDING


def are_probabilities(outputs: tf.Tensor, tolerance: float) -> tf.Tensor:
    """Returns whether outputs, shape (N, K), can be probabilities; NaN is not.

    Args:
        outputs: Outputs of a model.
        tolerance: How far below 0 they may be, or their sums from 1.

    Returns:
        A boolean scalar tensor.
    """
    return _distance_from_probabilities(outputs) <= tolerance


def _activation(layer: Any) -> str | None:
    """Returns the name of the activation that a layer or an operation of Keras ends in."""
    if isinstance(layer, (keras.layers.Dense, keras.layers.Activation)):
        for name in (*_ACTIVATIONS, "linear"):
            if layer.activation is getattr(keras.activations, name):
                return name
        return None
    # A layer for it, or the operation of a function such as keras.ops.softmax in a functional
    # model, whose class has no public name.
    name = type(layer).__name__.lower()
    of_keras = type(layer).__module__.split(".")[0] == "keras"
    return name if of_keras and name in _ACTIVATIONS else None


def _check_activation(activation: str, units: int | None, labels: str | None = None) -> None:
    """Raises a ValueError if an activation of so many outputs is no distribution of labels."""
    several = units is not None and units > 1
    if activation == "sigmoid" and several and labels != "binary":
        raise ValueError(
            f"The model ends in a sigmoid of {units} outputs: {units} labels, each of them yes or "
            f"no, and no distribution over {units} classes. End it in a softmax, or in logits; or "
            "train it with a binary cross-entropy."
        )
    if activation == "softmax" and several and labels == "binary":
        raise ValueError(
            f"The model ends in a softmax of {units} outputs, which are one distribution, and a "
            f"binary cross-entropy is of {units} labels, each of them yes or no. End it in a "
            "sigmoid, or train it with a categorical cross-entropy."
        )
    if activation == "softmax" and units == 1:
        raise ValueError(
            "The model ends in a softmax of one output, which is always 1. End it in a sigmoid, "
            "or in a softmax of two outputs."
        )


def _distance_from_probabilities(outputs: tf.Tensor) -> tf.Tensor:
    """Returns the largest distance of outputs, shape (N, K), below 0, or of their sums from 1.

    Of a single unit, shape (N, 1), it is that of outputs outside of 0 to 1.
    """
    outputs = tf.cast(outputs, tf.float64)
    excess = tf.reduce_sum(outputs, axis=-1) - 1
    excess = excess if outputs.shape[-1] == 1 else tf.abs(excess)
    return tf.maximum(tf.reduce_max(excess), tf.reduce_max(-outputs))
