"""Forms of a compiled loss, established by comparing gradients on a few examples.

The class of a loss does not determine its function: a subclass may smooth labels or weigh
examples, and a later version of Keras may give its own classes new arguments.
"""

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.classifier.hard_label_loss import HardLabelCrossEntropy
from fisher_keras.classifier.inputs import leaves
from fisher_keras.classifier.precision import rounding_of
from fisher_keras.classifier.wrapper import ClassifierWrapper
from fisher_keras.graph import keras_private
from fisher_keras.regularizer.batches import Batch, only_tensor
from fisher_keras.regularizer.replicas import ReplicaWeights

# Options by which L is taken on parts of a mini-batch, and what to use instead.
SHARED = "share_gradients=True", "share_gradients=False or 'auto'"
SPLIT = "SharpnessAwareModel(sub_batches > 1)", "sub_batches=1"
REPLICAS = "Training on replicas", "one device, or a loss that returns a value for each example"

# At least so many examples, and enough for all classes unless their outputs would be too many.
_COUNT = 4
_MAX_ENTRIES = 2**22
# Sizes to try for axes of inputs that have no known size.
_UNKNOWN_SIZES = (8, 64, 256)


def established(
    cross_entropy: HardLabelCrossEntropy, model: ClassifierWrapper, batch: Batch
) -> HardLabelCrossEntropy:
    """Returns L~, with `equals_compiled_loss` only if L has the same gradient.

    Args:
        cross_entropy: L~, as the class of the compiled loss tells.
        model: The compiled model around a classifier.
        batch: A mini-batch, of which only shapes and dtypes are used.
    """
    equal = cross_entropy.equals_compiled_loss and model.has_plain_loss
    if equal:
        try:
            examples, outputs = _examples(cross_entropy, model, batch)
        except ValueError:  # Not one classifier: a plain step, where beta is 0, trains it.
            return dataclasses.replace(cross_entropy, equals_compiled_loss=False)
        mine = functools.partial(hard_label_mean, cross_entropy, examples)
        equal = _close(*_gradients([mine, _compiled_loss(model, examples)], outputs))
    return dataclasses.replace(cross_entropy, equals_compiled_loss=equal)


def check_mean(
    cross_entropy: HardLabelCrossEntropy | None,
    model: ClassifierWrapper,
    batch: Batch,
    what: str,
    remedy: str,
) -> None:
    """Checks that the compiled loss of a mini-batch is the mean of those of its parts.

    On R replicas, R times the loss is: Keras divides it by R, unless a loss returns one number for
    all examples. A custom `compute_loss`, which may use the inputs, is assumed to be such a mean.

    Args:
        cross_entropy: L~; None if L may be any loss.
        model: The compiled model around a classifier.
        batch: A mini-batch, of which only shapes and dtypes are used.
        what: The option that takes the mean of parts.
        remedy: The option to use instead.

    Raises:
        ValueError: If it is not.
    """
    equal = cross_entropy is not None and cross_entropy.equals_compiled_loss
    if model.loss is None or model.has_custom_loss or equal:
        return
    examples, outputs = _examples(cross_entropy, model, batch)
    halves = np.split(np.arange(len(outputs)), 2)
    of, strategy = functools.partial(_compiled_loss, model), tf.distribute.get_strategy()

    def mean_of_halves(outputs: tf.Tensor) -> tf.Tensor:
        with strategy.scope():
            losses = [of(examples.rows(half))(tf.gather(outputs, half)) for half in halves]
        return tf.add_n(losses) * strategy.num_replicas_in_sync / 2

    if not _close(*_gradients([mean_of_halves, of(examples)], outputs)):
        loss = model.loss
        raise ValueError(
            f"{what} takes the mean of the losses of parts of the mini-batch for that of all of "
            f"it, which this loss is not. Use {remedy}. Given: loss={loss!r} with "
            f"reduction={getattr(loss, 'reduction', None)!r}."
        )


def check_no_mask(outputs: tf.Tensor, what: str, remedy: str) -> None:
    """Raises a ValueError if a mask makes a batch's loss differ from the mean of its parts.

    The option `what` takes that mean; `remedy` is the one to use instead.
    """
    if keras_private.mask_of(outputs) is not None:
        raise ValueError(
            f"{what} takes the mean of the losses of parts of the mini-batch for that of all of "
            "it, which it is not where a mask leaves examples or positions out: parts then have "
            f"different numbers of them. Use {remedy}. Given: outputs with a mask."
        )


def check_penalties(
    penalties: list[tf.Tensor], model: ClassifierWrapper, batch: Batch, what: str, remedy: str
) -> None:
    """Checks that penalties of examples are means over the examples, as far as a few can tell.

    Penalties of weights, which do not depend on the call, are not among them.

    Args:
        penalties: Those that were collected in a call of the classifier that trains it.
        model: The model around a classifier.
        batch: A mini-batch, of which only shapes and dtypes are used.
        what: The option that takes the mean of sub-batches.
        remedy: The option to use instead.

    Raises:
        ValueError: If they are not, or if that cannot be told.
    """
    if not penalties:
        return
    found = _outside(lambda: _penalties_of_parts(len(penalties), model.model, batch.x))
    if found is None:
        raise ValueError(
            f"{what} needs penalties by add_loss that are means over the examples, which cannot "
            "be told here: the classifier gave no finite penalties for made-up inputs. Set the "
            f"shapes of the inputs in the data pipeline, or use {remedy}. Given: "
            f"{model.model.name!r}, inputs of shapes "
            f"{[tuple(leaf.shape) for leaf in leaves(batch.x)]}."
        )
    whole, means, training = found
    # Keras adds a penalty up in the dtype of its layer.
    if not np.allclose(whole, means, rtol=max(1e-4, 16 * rounding_of(model.model))):
        both = " Dropout and such hide a mean that only training adds: add it always."
        raise ValueError(
            f"{what} takes the mean of the sub-batches' losses for that of the mini-batch, which "
            "a penalty by add_loss is not, unless it is a mean over the examples. Use such a "
            f"mean, or {remedy}.{both if training else ''} Given: {model.model.name!r}, with "
            f"penalties {whole} of {_COUNT} examples and {means} as the mean of halves."
        )


def _penalties_of_parts(
    count: int, model: keras.Model, x: Any
) -> tuple[list[float], list[float], bool] | None:
    """Returns penalties of a few examples, and their means over two halves of these.

    Args:
        count: The number of penalties that a call adds in training.
        model: The classifier.
        x: Inputs, of which only shapes and dtypes are used.

    Returns:
        These, and whether the calls were those of training; None if none gave finite numbers.
    """

    def of_rows(made: Any, rows: slice, training: bool) -> list[float]:
        inputs = keras.tree.map_structure(lambda t: tf.constant(t[rows]), made, none_is_leaf=False)
        with keras.StatelessScope(collect_losses=True) as scope:
            stateless.call(model, inputs, training=training)
        return [float(tf.reduce_sum(tf.cast(one, tf.float64))) for one in scope.losses]

    half = _COUNT // 2
    for made in _made_up(x):
        # Without dropout and moments of the batch, halves must have the same mean exactly.
        for training in (False, True):
            try:
                whole = of_rows(made, slice(None), training)
                if len(whole) != count:
                    continue
                rows = slice(half), slice(half, None)
                means = np.mean([of_rows(made, part, training) for part in rows], axis=0)
            except (ValueError, tf.errors.OpError):  # Inputs that the classifier cannot take.
                break
            if np.all(np.isfinite([whole, means])):
                return whole, means.tolist(), training
    return None


def hard_label_mean(
    cross_entropy: HardLabelCrossEntropy,
    batch: Batch,
    outputs: tf.Tensor,
    replica_weights: ReplicaWeights | None = None,
) -> tf.Tensor:
    """Returns L~, the mean of the hard-label losses times the sample weights.

    Like Keras' own mean, it is over the examples, or over all their positions. If the outputs have
    Keras' mask, it is over the positions that the mask leaves in. Weights of 0 count in the
    number.
    """
    y, mask = only_tensor(batch.y), keras_private.mask_of(outputs)
    losses = cross_entropy(y, outputs)
    given = None if batch.sample_weight is None else only_tensor(batch.sample_weight)
    factors = [tf.cast(_weights(f, losses), losses.dtype) for f in (given, mask) if f is not None]
    if cross_entropy.kind == "one_hot":
        # What stands for an empty share of a mini-batch has no label.
        share = [] if replica_weights is None else [replica_weights.examples]
        _assert_distributions(y, factors + share)
    for factor in factors:
        losses *= factor
    if mask is None:
        # The derivative of tf.reduce_mean takes seven more operations, for the same numbers.
        return tf.reduce_sum(losses) / tf.cast(tf.size(losses), losses.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.reduce_sum(factors[-1]))


def _assert_distributions(y: tf.Tensor, factors: list[tf.Tensor]) -> None:
    """Asserts that labels, shape (B, *P, K), add up to 1 to rounding where no factor is 0."""
    distance = tf.abs(tf.reduce_sum(tf.cast(y, tf.float32), axis=-1) - 1)
    for factor in factors:
        distance = tf.where(tf.equal(factor, 0), 0.0, distance)
    largest = tf.reduce_max(distance)
    message = (
        "One-hot labels must add up to 1. Leave examples or positions out by sample weights of 0, "
        "and give several labels that are yes or no to a binary cross-entropy. Given: a sum off by"
    )
    # NaN is another error.
    tf.debugging.Assert(tf.where(largest > 0.01, False, True), [message, largest])


def _weights(given: tf.Tensor, losses: tf.Tensor) -> tf.Tensor:
    """Returns weights in the shape of the losses.

    Raises:
        ValueError: If they have another number of axes.
    """
    if losses.shape.rank == 1:
        return tf.reshape(given, [-1])
    given = tf.convert_to_tensor(given)
    if given.shape.rank == losses.shape.rank + 1 and given.shape[-1] == 1:
        given = tf.squeeze(given, -1)
    if given.shape.rank != losses.shape.rank:
        raise ValueError(
            "With a prediction at each position, sample weights must be those of the positions, "
            f"of the shape {tuple(losses.shape)} of the losses: repeat those of examples. Given: "
            f"shape {tuple(given.shape)}."
        )
    return given


def _examples(
    cross_entropy: HardLabelCrossEntropy | None, model: ClassifierWrapper, batch: Batch
) -> tuple[Batch, np.ndarray]:
    """Returns labels and weights of a few examples in the form of the batch, and outputs."""
    random = np.random.default_rng(0)
    (spec,) = keras.tree.flatten(model.output_spec(batch.x))
    if cross_entropy is not None:
        cross_entropy.check_shape(spec)
    kind = getattr(cross_entropy, "kind", None)
    # Any loss takes numbers between 0 and 1, and labels that are 0 or 1.
    binary = kind in ("binary", None)
    sizes = _sizes(spec, only_tensor(batch.y))
    outputs = random.normal(size=(_even_count(sizes), *sizes))
    if not getattr(cross_entropy, "from_logits", False):
        # Sigmoid or softmax: a loss of probabilities may not be asked about anything else.
        powers = np.exp(outputs)
        outputs = powers / (1 + powers if binary else powers.sum(axis=-1, keepdims=True))

    def labels(leaf: Any) -> np.ndarray:
        shape = [len(outputs), *_sizes(leaf, leaf)]
        # Hard ones, of all classes, which a loss may treat each in its own way: in order, so
        # that halves of the examples have different classes.
        one_hot = kind == "one_hot"
        num_classes = 2 if binary else outputs.shape[-1]
        if "int" in leaf.dtype.name:  # Labels of few bits cannot be of all classes.
            num_classes = min(num_classes, np.iinfo(leaf.dtype.name).max + 1)
        positions = shape[:-1] if one_hot else shape
        classes = np.sort(np.arange(math.prod(positions)) % num_classes).reshape(positions)
        if one_hot:
            classes, chosen = np.zeros([*positions, num_classes]), classes[..., np.newaxis]
            np.put_along_axis(classes, chosen, 1, axis=-1)
        return classes.astype(leaf.dtype.name)

    def weights(leaf: Any) -> np.ndarray:
        shape = (len(outputs), *_sizes(leaf, only_tensor(batch.y)))
        values, dtype = np.linspace(0, 3, math.prod(shape)).reshape(shape), leaf.dtype.name
        # Booleans of numbers that are not truncated would all be True but for the first.
        return (values if "float" in dtype else values.astype(int)).astype(dtype)

    y = keras.tree.map_structure(labels, batch.y)
    given = batch.sample_weight
    sample_weight = None if given is None else keras.tree.map_structure(weights, given)
    # Keras' losses compute in float32 at least, also where outputs are coarser.
    dtype = "float64" if spec.dtype == "float64" else "float32"
    # No inputs: only a custom `compute_loss` could look at them, and that is not compared.
    return Batch(None, y, sample_weight), outputs.astype(dtype)


def _even_count(sizes: list[int]) -> int:
    """Returns an even number of examples to take, given the sizes of the outputs of one."""
    examples_with_all_classes = math.ceil(sizes[-1] / math.prod(sizes[:-1])) if sizes else 0
    fitting = _MAX_ENTRIES // max(math.prod(sizes), 1)
    count = max(_COUNT, min(examples_with_all_classes, fitting))
    return count + count % 2


def _sizes(tensor: Any, y: Any) -> list[int]:
    """Returns the sizes of all axes but the first; unknown ones are those of the labels."""
    known = [*y.shape[1:], *[None] * len(tensor.shape)]
    return [size or other or 2 for size, other in zip(tensor.shape[1:], known, strict=False)]


def _compiled_loss(model: ClassifierWrapper, batch: Batch) -> Callable[[tf.Tensor], tf.Tensor]:
    return lambda outputs: model.compute_loss(None, batch.y, outputs, batch.sample_weight, True)


def _gradients(
    losses: list[Callable[[tf.Tensor], tf.Tensor]], outputs: np.ndarray
) -> list[np.ndarray]:
    """Returns the gradients of losses by the outputs; penalties, which L also has, add none."""

    def compute() -> list[np.ndarray]:
        at = tf.constant(outputs)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(at)
            values = [loss(at) for loss in losses]
        found = [tf.convert_to_tensor(tape.gradient(value, at)) for value in values]
        return [gradient.numpy().astype("float64") for gradient in found]

    return _outside(compute)


def _outside(compute: Callable[[], Any]) -> Any:
    """Returns the result of a function that is called outside of any graph or scope."""
    # A thread of its own is outside of the graph that is being traced, of the scope with other
    # values and of the strategy: `tf.init_scope` leaves the first alone, and stops tapes.
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        return threads.submit(compute).result()


def _made_up(x: Any) -> Iterator[Any]:
    """Yields a few examples in the form of inputs, until some are of use.

    They are of any sign, or between 0 and 1, where logarithms and roots are finite. Unknown sizes
    grow, as for convolutions that make them smaller.
    """
    known = all(None not in leaf.shape[1:] for leaf in leaves(x))
    for unknown in _UNKNOWN_SIZES[:1] if known else _UNKNOWN_SIZES:
        for draw in ("normal", "uniform"):
            make = functools.partial(_input, unknown=unknown, draw=draw)
            yield keras.tree.map_structure(make, x, none_is_leaf=False)


def _input(leaf: Any, unknown: int, draw: str) -> np.ndarray:
    """Returns a few examples in the form of a tensor of inputs."""
    shape = (_COUNT, *(size or unknown for size in leaf.shape[1:]))
    if leaf.dtype.is_floating:
        random = np.random.default_rng(0)
        return getattr(random, draw)(size=shape).astype(leaf.dtype.name)
    # Numbers that are in any table, or words.
    dtype = str if leaf.dtype == tf.string else leaf.dtype.as_numpy_dtype
    return (np.arange(math.prod(shape)) % 2).reshape(shape).astype(dtype)


def _close(first: np.ndarray, second: np.ndarray) -> bool:
    """Returns whether two gradients are equal to within float32's rounding."""
    return np.allclose(first, second, rtol=0, atol=1e-5 * np.max(np.abs(first)))
