"""The hard-label cross-entropy L~ that belongs to the loss that a model is compiled with."""

import dataclasses
from typing import Any

import keras
import tensorflow as tf
from keras import losses, ops

from fisher_keras.classifier import logits
from fisher_keras.graph import keras_private

# Classes, functions and kinds. Keras resolves a loss given by name to one of these functions, all
# of which take probabilities.
_LOSSES = (
    (losses.SparseCategoricalCrossentropy, losses.sparse_categorical_crossentropy, "sparse"),
    (losses.CategoricalCrossentropy, losses.categorical_crossentropy, "one_hot"),
    (losses.CategoricalFocalCrossentropy, losses.categorical_focal_crossentropy, "one_hot"),
    (losses.BinaryCrossentropy, losses.binary_crossentropy, "binary"),
    (losses.BinaryFocalCrossentropy, losses.binary_focal_crossentropy, "binary"),
)
# Arguments of a sparse loss that leave it the cross-entropy of the labels given.
_NEUTRAL = {"name", "reduction", "from_logits", "axis", "dtype"}
MEANS = ("sum_over_batch_size", "mean")  # Keras' reductions of a loss to that of a mean example.


@dataclasses.dataclass(frozen=True)
class HardLabelCrossEntropy:
    """The "simplified" loss of Section 3.1: cross-entropy against y~, the one-hot arg max of y.

    With outputs of shape (B, *P, K) there is one at each position P, as of Keras' losses.

    Attributes:
        kind: How labels come: "sparse" (class indices, shape (B,) or (B, 1)), "one_hot" (a
            distribution over the classes, shape (B, K)) or "binary" (probabilities that labels
            are 1, of a single sigmoid unit of shape (B,) or (B, 1), else (B, K); the loss is the
            mean over the last axis).
        from_logits: Whether the model's outputs are logits; otherwise they are probabilities.
        equals_compiled_loss: Whether its mean over a batch is the compiled loss itself (less the
            penalties), so that one gradient serves for both.
    """

    kind: str
    from_logits: bool
    equals_compiled_loss: bool

    def __call__(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Returns -ln f_w(x)_c for each example, c being its most probable label.

        Args:
            y: Labels as the compiled loss takes them.
            outputs: The model's outputs, shape (B, K); (B, 1) or (B,) for a single sigmoid unit.

        Returns:
            Shape (B,), or (B, *P), float32 (float64 for a float64 model).
        """
        # In half precision, the logarithm of a probability near 1 has no digits left.
        if outputs.dtype in (tf.float16, tf.bfloat16):
            outputs = tf.cast(outputs, tf.float32)
        if self.kind == "binary":
            if outputs.shape.rank == 1:
                outputs = outputs[:, tf.newaxis]
            y = tf.reshape(tf.cast(y, outputs.dtype), tf.shape(outputs))
            hard = tf.cast(y > 0.5, outputs.dtype)
            of_each = ops.binary_crossentropy(hard, outputs, from_logits=self.from_logits)
            return tf.reduce_mean(of_each, axis=-1)
        if self.kind == "one_hot":
            labels = tf.argmax(y, axis=-1)
        else:
            same = len(y.shape) == len(outputs.shape) - 1
            labels = y if same else tf.reshape(y, tf.shape(outputs)[:-1])
        return ops.sparse_categorical_crossentropy(
            tf.cast(labels, tf.int64), outputs, from_logits=self.from_logits
        )

    def check_shape(self, outputs: tf.Tensor | keras.KerasTensor) -> None:
        """Checks that outputs are predictions of such labels.

        Args:
            outputs: The model's outputs.

        Raises:
            ValueError: If they are not of shape (B, K) or (B, *P, K), or (B,) for a sigmoid unit.
        """
        is_tensor = isinstance(outputs, (tf.Tensor, keras.KerasTensor))
        # The size of the batch at hand says nothing about the model.
        shape = (None, *outputs.shape[1:]) if is_tensor else type(outputs).__name__
        binary = self.kind == "binary"
        classes = is_tensor and len(shape) >= 2 and shape[-1] not in (None, 1)
        if not (is_tensor and (binary or classes)):
            expected = "(B,) or (B, ..., K)" if binary else "(B, K) or (B, ..., K), K > 1"
            raise ValueError(
                f"Algorithm 1 is for one classifier; with this loss the outputs must be of shape "
                f"{expected}. Given: outputs of shape {shape}."
            )

    def check_outputs(self, outputs: tf.Tensor) -> list[tf.Operation]:
        """Asserts that outputs are logits or probabilities, as the loss expects.

        Args:
            outputs: The model's outputs, shape (B, K).

        Returns:
            The assertions. XLA leaves them out. Outputs that are NaN pass: that is another error.

        Raises:
            ValueError: If the graph tells that they are not, or no distribution of such labels.
        """
        if not tf.executing_eagerly():
            probabilities = logits.head_gives_probabilities(outputs, self.kind)
            if probabilities is not None and probabilities == self.from_logits:
                raise ValueError(_mismatch(self.from_logits))
        if self.kind == "binary":
            return []
        # Logits of few examples may be positive and add up to nearly 1, but not to rounding.
        tolerance = logits.rounding(outputs.dtype if self.from_logits else tf.float16)
        probabilities = logits.are_probabilities(outputs, tolerance)
        # NaN is another error. TensorFlow would make "not less" into "greater", also for NaN.
        if self.from_logits:
            holds = tf.where(probabilities, False, True)
        else:
            holds = probabilities | tf.reduce_any(tf.math.is_nan(outputs))
        return [tf.debugging.Assert(holds, [_mismatch(self.from_logits)])]


def hard_label_cross_entropy(loss: Any, model: keras.Model) -> HardLabelCrossEntropy:
    """Finds the hard-label loss L~ (Section 3.1) that goes with a compiled loss.

    Args:
        loss: What `compile(loss=...)` was given: a name, a function or an object of a
            cross-entropy of Keras, or a list or dictionary of one such.
        model: The classifier, whose last activation must agree with the loss's `from_logits`.

    Returns:
        The hard-label loss.

    Raises:
        ValueError: If the loss is not a cross-entropy over classes, or takes logits where the
            model gives probabilities, or the other way round.
    """
    given, kind = only_loss(loss), _kind(loss)
    config = given.get_config() if isinstance(given, losses.Loss) else {}
    # By attributes: a subclass may leave them out of its config.
    ignored, axis = getattr(given, "ignore_class", None), getattr(given, "axis", -1)
    axis = keras_private.loss_arguments(given).get("axis", axis)
    if kind is None or ignored is not None or axis != -1:
        names = ", ".join(known.__name__ for known, *_ in _LOSSES)
        raise ValueError(
            "FisherRegularizedModel needs the cross-entropy of a classifier as its loss: "
            f"{names} (without ignore_class, classes on the last axis), by name or as an object. "
            f"Given: loss={loss!r}. Pass one of these to compile()."
        )
    from_logits = bool(from_logits_of(loss))
    probabilities = logits.gives_probabilities(model, kind)
    if probabilities is not None and probabilities == from_logits:
        raise ValueError(_mismatch(from_logits))
    return HardLabelCrossEntropy(kind, from_logits, _is_plain_sparse_loss(given, config))


def _is_plain_sparse_loss(given: Any, config: dict[str, Any]) -> bool:
    """Returns whether a loss is Keras' own sparse cross-entropy, the mean over the examples."""
    own = losses.sparse_categorical_crossentropy
    # Keras computes a function's loss in the dtype of floatx.
    if getattr(given, "dtype", keras.config.floatx()) not in ("float32", "float64"):
        return False
    if not isinstance(given, losses.Loss):
        return given is own
    # A subclass may be anything, and so may an argument that a later Keras adds.
    replaced = type(given) is not losses.SparseCategoricalCrossentropy
    replaced = replaced or "call" in vars(given) or given.fn is not own
    changed = [name for name, value in config.items() if value and name not in _NEUTRAL]
    return not replaced and not changed and is_mean(given)


def is_mean(loss: Any) -> bool:
    """Returns whether the reduction of a loss is Keras' mean, which is that of functions, too."""
    return getattr(loss, "reduction", MEANS[0]) in MEANS


def labels_of(model: keras.Model) -> str | None:
    """Returns the form of the labels of the loss that a model is compiled with.

    Args:
        model: A Keras model.

    Returns:
        A `HardLabelCrossEntropy.kind`; None without a loss of that kind.
    """
    return _kind(model.loss) if model.compiled else None


def _kind(loss: Any) -> str | None:
    given = only_loss(loss)
    # Of a subclass, too: the class tells the form of the labels, though not the function.
    return next((k for c, f, k in _LOSSES if given is f or isinstance(given, c)), None)


def from_logits_of(loss: Any) -> bool | None:
    """Returns whether a compiled loss takes logits.

    Args:
        loss: What `compile(loss=...)` was given.

    Returns:
        None if it is no cross-entropy of Keras, and says nothing of logits.
    """
    given = only_loss(loss)
    if isinstance(given, losses.Loss):
        return getattr(given, "from_logits", None)
    return None if _kind(given) is None else False


def only_loss(loss: Any) -> Any:
    """Returns the one loss of a structure, as an object or a function; else what is given."""
    parts = keras.tree.flatten(loss)
    given = parts[0] if len(parts) == 1 else loss
    return losses.get(given) if isinstance(given, str) else given


def assertions(
    cross_entropy: HardLabelCrossEntropy | None, model: keras.Model, outputs: tf.Tensor
) -> list[tf.Operation]:
    """Returns those of `check_outputs`, unless there is no loss or the model's layers tell."""
    if cross_entropy is None or logits.gives_probabilities(model, cross_entropy.kind) is not None:
        return []
    return cross_entropy.check_outputs(outputs)


def _mismatch(from_logits: bool) -> str:
    if from_logits:
        return (
            "The loss has from_logits=True, but the model's outputs are probabilities (they end "
            "in a softmax or sigmoid). Use from_logits=False, or remove that activation."
        )
    return (
        "The loss takes probabilities (from_logits=False, as every loss given by name does), but "
        "the model's outputs are not probabilities. Give the loss as an object with "
        "from_logits=True, e.g. keras.losses.SparseCategoricalCrossentropy(from_logits=True), "
        "or end the model in a softmax."
    )
