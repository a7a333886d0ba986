"""The observed Fisher information of a classifier, as the Gram matrix of its loss gradients."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy.linalg import lapack

from fisher_keras.arguments import one_of, whole_number
from fisher_keras.classifier.classifier import Classifier, as_classifier
from fisher_keras.classifier.inputs import ExamplesError, check_trainable, count_examples
from fisher_keras.classifier.labels import LabelledData, labelled_data
from fisher_keras.classifier.logits import FromLogits
from fisher_keras.classifier.positions import UNITS, Positions, Unit
from fisher_keras.classifier.precision import rounding_of
from fisher_keras.fisher.gram_function import GramFunction, check_finite
from fisher_keras.fisher.layer_weights import weights_by_layer

# Where the cosines' smallest eigenvalue is less, the last digits of their products matter.
_WELL_CONDITIONED = 1e-3
# What is lost below float32's smallest number, 1e-38, is less than rounding of these.
_SAFE_SQUARES = 1e-28, 1e30


@dataclasses.dataclass(frozen=True, eq=False)
class FisherGram:
    r"""The Gram matrix of per-example loss gradients, as cosines and logarithms of norms.

    J is the Jacobian of the N' hard-label losses (Equations 4 and 5), and

    $$\xi = J J^T = \operatorname{diag}(e^s)\, C \operatorname{diag}(e^s), \qquad
        \ln \det \xi = 2 \sum_i s_i + \ln \det C.$$

    Near a minimum, the gradients are too small for any floating-point format, but their logarithms
    are not.

    Attributes:
        matrix: C, the cosines between the examples' gradients, shape (N', N'), float64. Its
            diagonal is 1. For a zero gradient, all other entries of its row are 0.
        log_scale: s, the logarithm of each gradient's Euclidean norm, shape (N',), float64; -inf
            for a zero gradient.
        epsilon: Relative rounding of the gradients: that of float32, of half precision if the
            model computes in it, or of TensorFloat-32 if a GPU computes in it.
        logits: The model's logits of the examples, shape (N', K) or (N', *P, K), float64, never
            normalized (see `fisher_keras.classifier.Classifier.logits`). None if
            `loss_gradient_gram` did not make this object.
        counted: Whether each prediction counts, shape (N',) or (N', *P), booleans; None likewise.
        layers: By path, the Gram matrices of the gradients by the weights of each layer, which
            add up to this one. None without `by_layer`.
    """

    matrix: tf.Tensor
    log_scale: tf.Tensor
    epsilon: float = 2.0**-23
    logits: tf.Tensor | None = None
    counted: tf.Tensor | None = None
    layers: dict[str, "FisherGram"] | None = None

    def eigenvalues_exceed(self, bound: float) -> bool:
        """Returns whether all eigenvalues of C are above a number, without computing them."""
        shifted = np.asarray(self.matrix) - bound * np.eye(len(self.log_scale))
        # A Cholesky factorization exists for a positive definite matrix alone.
        return lapack.dpotrf(shifted)[1] == 0


def loss_gradient_gram(
    model: keras.Model | Classifier,
    x: Any,
    y: Any,
    from_logits: FromLogits = "auto",
    training: bool = False,
    chunk_size: int | None = None,
    *,
    normalize_logits: float | None = None,
    sample_weight: Any = None,
    unit: Unit = "example",
    by_layer: bool = False,
) -> FisherGram:
    r"""Computes $\xi = J J^T$ of a classifier's hard-label losses, Equations 4 and 5.

    J holds the gradients of $\ell(f_w(x_i), \tilde y_i) = -\ln f_w(x_i)_{c_i}$ with respect to the
    model's trainable variables, one row for each example. It never exists as a whole: products are
    added up variable by variable, in float64. The gradients themselves have the model's own dtype.
    If the smallest eigenvalue of the cosines is above 0.001, and the squares of the gradients are
    in the range of float32, blocks of 768 products are first added in float32. This is more exact
    than float32 gradients are. Otherwise, no products are added in float32.

    A classifier may have a prediction at each of several positions, (N', *P, K), or K labels, each
    of them yes or no. The loss of an example is then the sum over the positions that count,
    because its likelihood is the product.

    The model is not changed. A call with a model traces a function and verifies it, which takes
    seconds for a large network. For many calls, make a `fisher_keras.classifier.Classifier` once
    and give it instead of the model. Then only the first call for each number of examples traces.

    Args:
        model: A Keras classifier with one output of shape (N, K), or (N, 1) for a single sigmoid
            unit, or (N, *P, K); or a `Classifier` of one.
        x: Inputs of N' examples, an array or a structure of arrays, as the model takes them.
        y: Labels: class indices, shape (N',) or (N', 1), or distributions, shape (N', K), of
            which the most probable class is used; with positions, (N', *P) or (N', *P, K).
        from_logits: Whether the model gives logits rather than probabilities. With "auto", this is
            found out from the softmax or sigmoid at its end, or else from the values. A
            `Classifier` has its own setting.
        training: Whether to evaluate in training mode. BatchNormalization then takes the moments
            of the batch, and an example's gradient includes its effect on the losses of the other
            examples (slow).
        chunk_size: The number of examples to evaluate at a time, in pairs of chunks. A smaller
            number takes less memory and more time. With `training`, a chunk is the batch whose
            moments are taken. None evaluates all examples at once.
        normalize_logits: If given, the losses are those of logits z / (normalize_logits ||z||),
            which makes minima of different training loss comparable (Table 2). A `Classifier` has
            its own setting.
        sample_weight: Whether each position counts, 1 or 0, shape (N', *P). All of *P but
            the first axis may be left out. None counts all positions. Positions that Keras' mask
            of the outputs leaves out never count.
        unit: "position" makes each position that counts a separate unit. The matrix then has a
            row for each of them, in their order.
        by_layer: Whether to compute the Gram matrix of each layer's weights, too, in the same
            pass. It takes the memory of an N' x N' matrix for each layer. Products are added up in
            another order, so that the whole Gram matrix differs by rounding from that without the
            layers.

    Returns:
        The Gram matrix.

    Raises:
        ValueError: If inputs, labels and outputs do not fit each other, or outputs or gradients
            are not finite. The message names the examples.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.random.normal(size=(5, 4)), np.array([0, 1, 2, 0, 1])
        >>> gram = loss_gradient_gram(model, x, y)
        >>> gram.matrix.shape
        TensorShape([5, 5])
    """
    classifier = as_classifier(model, from_logits, normalize_logits)
    data, positions = LabelledData(x, y, sample_weight), None
    if one_of("unit", unit, UNITS) == "position":
        if training:
            raise ValueError(
                "unit='position' is for inference mode, as a batch of positions has its examples "
                "several times. Given: training=True."
            )
        positions = Positions(classifier, labelled_data((x, y, sample_weight)))
        data = positions.take(slice(None))
    count = count_examples(data.x, data.y)
    data = dataclasses.replace(data, x=classifier.inputs(data.x))
    if sample_weight is not None:  # To find the likelihood takes a trace.
        classifier.likelihood(data.x).check_weights(sample_weight)
    size = count if chunk_size is None else whole_number("chunk_size", chunk_size, least=1)
    check_trainable(classifier.model)
    function = classifier.cached(GramFunction, bool(training), bool(by_layer))
    epsilon = rounding_of(classifier.model)

    def evaluate(float64: np.ndarray) -> list[_Group]:
        products, *others = function(data, size, float64)
        return [_Group(part, (*others, epsilon)) for part in products]

    try:
        return _whole(function, evaluate, classifier.model, by_layer)
    except ExamplesError as error:
        raise (error if positions is None else error.renamed(positions.rows, unit)) from None


@dataclasses.dataclass(frozen=True, eq=False)
class _Group:
    """Products of the gradients by some of the weights, with other inputs of `_normalized`."""

    products: np.ndarray
    others: tuple

    @functools.cached_property
    def gram(self) -> FisherGram:
        return _normalized(self.products, *self.others)

    def suffices_in_float32(self, slack: float = 1.0) -> bool:
        """Returns whether the products may be in float32; with slack, whether others may be."""
        squares = np.diagonal(self.products)
        # Where these leave float32's range, so do squares that they are sums of.
        in_range = (squares * slack > _SAFE_SQUARES[0]) & (squares / slack < _SAFE_SQUARES[1])
        return bool(in_range.all()) and self.gram.eigenvalues_exceed(_WELL_CONDITIONED / slack)


def _whole(
    function: GramFunction,
    evaluate: Callable[[np.ndarray], list[_Group]],
    model: keras.Model,
    by_layer: bool,
) -> FisherGram:
    """Returns the Gram matrix of all weights, with `by_layer` with those of the layers."""
    groups = _float64_where_needed(function, evaluate)
    if not by_layer:
        return groups[0].gram
    whole = dataclasses.replace(groups[0], products=sum(group.products for group in groups)).gram
    names = weights_by_layer(model)
    layers = {name: group.gram for name, group in zip(names, groups, strict=True)}
    return dataclasses.replace(whole, layers=layers)


def _float64_where_needed(
    function: GramFunction, evaluate: Callable[[np.ndarray], list[_Group]]
) -> list[_Group]:
    """Returns each group's fast result if its cosines are well conditioned, else the float64 one.

    Thus the result depends only on the examples. The precision that the last examples needed is
    tried first. The two results differ only by rounding. Therefore no fast result is needed if the
    smallest eigenvalue in float64 is far below the limit.
    """
    tried = function.needed_float64
    groups = evaluate(tried)
    # In float64, the other one might suffice; else, it is needed.
    suffices = [
        group.suffices_in_float32(slack=2.0 if done else 1.0)
        for group, done in zip(groups, tried, strict=True)
    ]
    unsettled = np.equal(suffices, tried)
    needed = tried | unsettled
    if unsettled.any():
        others = evaluate(tried ^ unsettled)
        for index in np.flatnonzero(unsettled):
            needed[index] = not (tried[index] and others[index].suffices_in_float32())
            if needed[index] != tried[index]:
                groups[index] = others[index]
    function.needed_float64 = needed
    return groups


def _normalized(
    products: np.ndarray, log_scale: np.ndarray, *others: np.ndarray | float
) -> FisherGram:
    """Moves the length of the gradients from the products to the scale."""
    squares = np.diagonal(products)
    check_finite(np.isfinite(log_scale) & np.isfinite(squares), np.arange(len(squares)))
    # A zero gradient has no direction: it is orthogonal to all others, and its logarithm is -inf.
    zero = squares == 0
    lengths = np.sqrt(np.where(zero, 1, squares))
    matrix = products / np.outer(lengths, lengths)
    # Else it would be 1 only to rounding, and 0 for a zero gradient.
    np.fill_diagonal(matrix, 1)
    with np.errstate(divide="ignore"):
        log_scale = log_scale + np.where(zero, -np.inf, np.log(lengths))
    *predictions, epsilon = others
    tensors = map(tf.constant, predictions)
    return FisherGram(tf.constant(matrix), tf.constant(log_scale), epsilon, *tensors)
