"""The exact Hessian of the training loss, for small models."""

import math
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.arguments import real_number
from fisher_keras.classifier import stateless
from fisher_keras.classifier.classifier import Classifier, as_classifier
from fisher_keras.classifier.inputs import check_trainable, count_examples, fitting
from fisher_keras.classifier.logits import FromLogits
from fisher_keras.classifier.precision import rounding_of_dtypes
from fisher_keras.fisher.example_norms import example_gradient_norms
from fisher_keras.graph.operations import depending_on, traced_operations
from fisher_keras.graph.second_derivatives import (
    check_second_derivatives,
    exact_second_derivatives,
)
from fisher_keras.graph.tracing import concrete_function, specs
from fisher_keras.graph.vectorized import map_sequentially

# Of so many parameters, the matrix takes 2 GiB in float64, and its checks some times as much.
_MOST_PARAMETERS = 2**14
# Asymmetries of this many roundings of the largest entry are rounding: 2 are usual.
_ROUNDINGS_ADDED_UP = 64
_REMEDY = "The Hessian is not to be had of this model: leave that layer out, or replace it."


def hessian(
    model: keras.Model | Classifier,
    x: Any,
    y: Any,
    from_logits: FromLogits = "auto",
    label_smoothing: float = 0.0,
    *,
    sample_weight: Any = None,
) -> np.ndarray:
    r"""Returns $\nabla_w^2 L(S, w)$, the Hessian of the mean cross-entropy (Equation 1).

    It is exact, by W Hessian-vector products over all examples at once. Use it for models of up to
    a few thousand parameters, in float64 if precision matters. If $f_w(x) = y$ for all examples,
    it equals the Fisher information of Equation 2. The loss of an example with several predictions
    is the sum over its positions that count, as for `loss_gradient_gram`.

    Args:
        model: A Keras classifier, in inference mode, with W trainable parameters; or a
            `Classifier` of one, without normalize_logits.
        x: Inputs of N examples, an array or a structure of arrays.
        y: Labels: integers (N,) or (N, 1), or distributions over the classes (N, K); with
            positions, (N, *P) or (N, *P, K).
        from_logits: Whether the model's outputs are logits, True or False. With "auto", this is
            found out.
        label_smoothing: Share of each label that is spread evenly over the K classes, as in
            `keras.losses.CategoricalCrossentropy`, from 0 to below 1.
        sample_weight: Which positions count (see `loss_gradient_gram`).

    Returns:
        Shape (W, W), float64, symmetric. The parameters are in the order of
        `model.trainable_variables`.

    Raises:
        ValueError: If labels do not fit the model's classes, outputs are not what `from_logits`
            says, nothing is trainable, there are more than 16,384 parameters, examples interact,
            TensorFlow has no second derivative of an operation, `tf.stop_gradient` drops a second
            derivative, the matrix is not symmetric to within rounding, derivatives are not
            finite, or a `Classifier` normalizes its logits.
    """
    classifier = as_classifier(model, from_logits)
    return _hessian(classifier, x, y, label_smoothing, sample_weight)[0]


def _hessian(
    classifier: Classifier, x: Any, y: Any, label_smoothing: float, sample_weight: Any
) -> tuple[np.ndarray, float]:
    """Returns the Hessian and the relative rounding of the derivatives in it."""
    if classifier.normalize_logits is not None:
        raise ValueError(
            "The Hessian is that of the loss as the model is trained with it: give a Classifier "
            f"without normalize_logits. Given: normalize_logits={classifier.normalize_logits}."
        )
    label_smoothing = real_number("label_smoothing", label_smoothing, least=0, below=1)
    count = count_examples(x, y)
    inputs = classifier.inputs(x)
    check_trainable(classifier.model)
    _check_size(classifier.model)
    function = classifier.cached(_second_derivatives)
    with exact_second_derivatives(_REMEDY):
        # What positions there are is known once the model's call has been traced.
        targets = tf.TensorSpec(None, tf.float64), tf.TensorSpec(None, tf.float64)
        concrete = concrete_function(function, specs(inputs), *targets)
    likelihood = classifier.likelihood(inputs)
    likelihood.check_weights(sample_weight)
    target = likelihood.distributions(y, label_smoothing, sample_weight)
    weights = likelihood.counted(count, sample_weight).astype(np.float64)
    with fitting(classifier.model):
        found = concrete(inputs, tf.constant(target), tf.constant(weights))
    matrix, rounding, *to_check = found
    classifier.check_values(*to_check)
    matrix = matrix.numpy()
    if not np.isfinite(matrix).all():
        raise ValueError(
            f"The Hessian of the model {classifier.model.name!r} is NaN or infinite for these "
            "examples. Check the inputs, and whether training has diverged."
        )
    _check_symmetric(matrix, float(rounding), classifier.model)
    if not classifier.call_graph(inputs).independent:
        # It refuses examples that interact, in outputs or in gradients.
        example_gradient_norms(classifier, (x, y, sample_weight))
    # The asymmetry that is left is rounding: the mean of both orders is symmetric to the bit.
    return (matrix + matrix.T) / 2, float(rounding)


def hessian_log_determinant(
    model: keras.Model | Classifier,
    x: Any,
    y: Any,
    from_logits: FromLogits = "auto",
    label_smoothing: float = 0.0,
    *,
    sample_weight: Any = None,
) -> float:
    r"""Returns $\gamma(w) = \ln |\nabla_w^2 L(S, w)|$ (Equation 3), exactly.

    The softmax does not change if a number is added to all logits. Therefore a last layer with a
    bias for every class makes the Hessian singular. A model whose last logit is always 0 has no
    such direction.

    Args:
        model: As for `hessian`.
        x: As for `hessian`.
        y: As for `hessian`.
        from_logits: As for `hessian`.
        label_smoothing: As for `hessian`.
        sample_weight: As for `hessian`.

    Returns:
        The natural logarithm. It is -inf, with a warning, if eigenvalues are zero to rounding (W
        times the rounding of the coarsest dtype that the model computes in, relative to the
        largest eigenvalue). It is NaN, with a warning, if there are negative eigenvalues, as w is
        then not a local minimum.
    """
    classifier = as_classifier(model, from_logits)
    matrix, rounding = _hessian(classifier, x, y, label_smoothing, sample_weight)
    eigenvalues = np.linalg.eigvalsh(matrix)
    # An eigenvalue of fewer roundings of the largest one cannot be told from zero.
    tolerance = eigenvalues.size * rounding * np.abs(eigenvalues).max()
    negative = np.sum(eigenvalues < -tolerance)
    zero = np.sum(np.abs(eigenvalues) <= tolerance)
    # Before zeros: where the loss also falls in some direction, a determinant means nothing.
    if negative:
        warnings.warn(
            f"{negative} of the {eigenvalues.size} eigenvalues of the Hessian are negative: this "
            "is no local minimum of the loss, and the log-determinant is NaN. Train on.",
            stacklevel=2,
        )
        return np.nan
    if zero:
        warnings.warn(
            f"{zero} of the {eigenvalues.size} eigenvalues of the Hessian are zero to rounding: "
            "its log-determinant is -inf.",
            stacklevel=2,
        )
        return -np.inf
    return float(np.sum(np.log(eigenvalues)))


def _second_derivatives(classifier: Classifier) -> Any:
    """Makes the `tf.function` that `exact_second_derivatives` is to be the context of."""
    trainable = stateless.weights(classifier.model)
    variables = [v.value for v in trainable]

    @tf.function(autograph=False)
    def second_derivatives(x: Any, target: tf.Tensor, weights: tf.Tensor) -> tuple:
        with tf.GradientTape(persistent=True) as outer, traced_operations() as operations:
            with tf.GradientTape() as inner:
                # Traced here: another trace of the logits may have other moments.
                found = classifier.find_logits(x)
                log_p = tf.nn.log_softmax(found.in_float64())
                target.set_shape(log_p.shape)
                losses = tf.reduce_sum(target * log_p, axis=-1)
                if losses.shape.rank > 1 or found.mask is not None:
                    weights.set_shape(losses.shape)
                    losses *= weights * tf.cast(found.counted(), weights.dtype)
                    losses = tf.reduce_sum(losses, list(range(1, losses.shape.rank)))
                loss = -tf.reduce_mean(losses)
            gradient = _flat(inner.gradient(loss, variables, unconnected_gradients="zero"))
        # All that was traced so far is about to be differentiated once more.
        handles = stateless.handles(trainable)
        check_second_derivatives(operations, handles, classifier.model, _REMEDY)
        rounding = rounding_of_dtypes(
            tensor.dtype.name
            for operation, _ in depending_on(handles, operations)
            for tensor in operation.outputs
        )
        size = tf.size(gradient)

        def row(index: tf.Tensor) -> tf.Tensor:
            one = tf.one_hot(index, size, dtype=gradient.dtype)
            return _flat(outer.gradient(gradient, variables, one, unconnected_gradients="zero"))

        # `jacobian` is for weights of one dtype alone.
        matrix = map_sequentially(row, tf.range(size), fn_output_signature=gradient.dtype)
        return matrix, tf.constant(rounding), found.are_logits, found.distance_from_probabilities()

    return second_derivatives


def _check_size(model: keras.Model) -> None:
    """Raises a ValueError if the Hessian of a model has too many entries for the memory."""
    size = stateless.count_parameters(stateless.weights(model))
    if size > _MOST_PARAMETERS:
        raise ValueError(
            f"The Hessian is for models of up to {_MOST_PARAMETERS} trainable parameters: that of "
            f"{model.name!r}, which has {size}, takes {size**2 * 8 / 2**30:.3g} GiB and {size} "
            "backward passes. Freeze layers, or use loss_gradient_gram, whose matrix is of the "
            "examples."
        )


def _check_symmetric(matrix: np.ndarray, rounding: float, model: keras.Model) -> None:
    """Raises a ValueError if a Hessian is not symmetric to within rounding.

    Second derivatives do not depend on their order. An asymmetry therefore shows that some
    gradient is not a true derivative. Rounding errors are relative to the terms of a sum. The
    entries of a row come from the same pass. If all of a row cancel out, as for a bias that the
    softmax ignores, only the rounding of the largest entries is left.
    """
    size = np.abs(matrix)
    of_rows = np.maximum(size.max(axis=0, initial=0), size.max(axis=1, initial=0))
    allowed = np.sqrt(rounding) * np.maximum.outer(of_rows, of_rows)
    allowed += _ROUNDINGS_ADDED_UP * rounding * size.max(initial=0)
    excess = np.abs(matrix - matrix.T) - allowed
    if (excess > 0).any():
        # An entry belongs to the first weight that ends behind it.
        i, j = np.unravel_index(np.argmax(excess), excess.shape)
        weights = stateless.weights(model)
        ends = np.cumsum([math.prod(weight.shape) for weight in weights])
        first, second = (weights[k].path for k in np.searchsorted(ends, (i, j), "right"))
        raise ValueError(
            f"The Hessian of the model {model.name!r} is not symmetric: its second derivative by "
            f"{first!r} and {second!r} is {matrix[i, j]:.3g} in one order and {matrix[j, i]:.3g} "
            "in the other. Some layer has a gradient that is not the derivative of its outputs, "
            f"as by tf.custom_gradient. {_REMEDY}"
        )


def _flat(gradients: list[tf.Tensor]) -> tf.Tensor:
    # Weights may differ in dtype.
    return tf.concat([tf.cast(tf.reshape(g, [-1]), tf.float64) for g in gradients], axis=0)
