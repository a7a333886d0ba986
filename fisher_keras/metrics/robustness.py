"""The robustness metric of Section 7.1 (Sokolić et al., 2017): how far inputs move outputs."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.arguments import whole_number
from fisher_keras.classifier.classifier import Classifier, as_classifier, logits_function
from fisher_keras.classifier.logits import FromLogits
from fisher_keras.classifier.tracing import for_batches


def robustness(
    model: keras.Model | Classifier,
    x: Any,
    from_logits: FromLogits = "auto",
    batch_size: int = 100,
    *,
    normalize_logits: float | None = None,
) -> float:
    r"""Returns $\frac{1}{N} \sum_x \|J_x[f_w(x)]\|_2^2$, f being the softmax probabilities.

    Exact for any number of classes K: each batch costs K backward passes.

    Args:
        model: A Keras classifier, or a `Classifier` of one, evaluated in inference mode. Its
            outputs for one example must not depend on the others.
        x: Inputs of N examples, an array or a structure of arrays. The Jacobian is that with
            respect to all inputs of floats.
        from_logits: Whether the model's outputs are logits, True or False; "auto" finds out.
        batch_size: How many examples at once. Memory grows by 8 K bytes for each number in their
            inputs.
        normalize_logits: A number c divides each logit vector by its norm times c; None does not.

    Returns:
        The mean; 0.0 below 5e-324.

    Raises:
        ValueError: If no input can be differentiated by, or the outputs are NaN, or are not what
            `from_logits` and `normalize_logits` need.
    """
    classifier = as_classifier(model, from_logits, normalize_logits)
    batch_size = whole_number("batch_size", batch_size, least=1)
    classifier.build(x)
    norms = classifier.function(squared_jacobian_norms)
    size = len(keras.tree.flatten(x)[0])
    batches = [
        norms(keras.tree.map_structure(lambda leaf: leaf[begin : begin + batch_size], x))  # noqa: B023
        for begin in range(0, size, batch_size)
    ]
    return float(np.mean(np.concatenate(batches)))


def squared_jacobian_norms(classifier: Classifier) -> Callable[[Any], np.ndarray]:
    r"""Makes a function of a batch x that returns each example's $\|J_x[f_w(x)]\|_2^2$.

    The Jacobian of the probabilities is $S J_z$, with that of the logits and the derivative
    $S = \mathrm{diag}(p) - p p^T$ of the softmax. Only the K x K matrix $S J_z J_z^T S$, of which
    it returns the largest eigenvalue, is in float64. S takes every vector of equal numbers to
    zero, so that $J_z$ may be that of the logits less the largest: then nothing cancels where the
    softmax saturates.

    Args:
        classifier: A built classifier.

    Returns:
        The function; it traces TensorFlow code once and serves for many batches. Its result has
        shape (B,), float64.
    """
    logits = logits_function(classifier)
    c = classifier.normalize_logits

    @for_batches
    def jacobian_products(x: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        differentiable = [leaf for leaf in keras.tree.flatten(x) if leaf.dtype.is_floating]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(differentiable)
            z, *to_check = logits(x)
            if c is not None:
                z /= c * tf.norm(z, axis=-1, keepdims=True)
        jacobian = _relative_jacobian(tape, z, differentiable)
        derivative = _softmax_derivative(tf.nn.softmax(z))
        gram = tf.matmul(jacobian, jacobian, transpose_b=True)
        return derivative @ gram @ derivative, *to_check

    def norms(x: Any) -> np.ndarray:
        _check_differentiable(x)
        products, *to_check = (result.numpy() for result in jacobian_products(x))
        classifier.check_values(*to_check)
        finite = np.isfinite(products).all(axis=(1, 2))
        if not finite.all():
            raise ValueError(
                f"The outputs of the model {classifier.model.name!r} or their derivatives are NaN "
                f"or infinite for {np.sum(~finite)} of {len(finite)} examples, the "
                f"first is {np.argmin(finite)}. Robustness needs finite ones; check "
                "the weights and the inputs."
            )
        # Rounding may leave the eigenvalue of a zero matrix below zero.
        return np.maximum(np.linalg.eigvalsh(products)[:, -1], 0.0)

    return norms


def _relative_jacobian(
    tape: tf.GradientTape, logits: tf.Tensor, inputs: list[tf.Tensor]
) -> tf.Tensor:
    """Returns the gradients of all logits less the largest by all inputs, (B, K, D), float64."""
    size, num_classes = tf.shape(logits)[0], logits.shape[-1]
    top = tf.one_hot(tf.argmax(logits, axis=-1), num_classes, dtype=logits.dtype)

    def row(index: tf.Tensor) -> tf.Tensor:
        cotangents = tf.one_hot(index, num_classes, dtype=logits.dtype) - top
        gradients = tape.gradient(logits, inputs, cotangents)
        if all(g is None for g in gradients):
            raise ValueError(
                "Robustness is about derivatives of the outputs by the inputs, and there are "
                f"none by inputs of {', '.join(g.dtype.name for g in inputs)}, as for an "
                "Embedding. Leave the metric out for this model."
            )
        flat = [tf.reshape(g, [size, -1]) for g in gradients if g is not None]
        return tf.cast(tf.concat(flat, axis=1), tf.float64)

    # One class after the other: memory for the activations' gradients of one.
    rows = tf.map_fn(
        row, tf.range(num_classes), fn_output_signature=tf.float64, parallel_iterations=1
    )
    return tf.transpose(rows, [1, 0, 2])


def _softmax_derivative(p: tf.Tensor) -> tf.Tensor:
    """Returns diag(p) - p p^T for each row of p, without 1 - p, which is rounding near p = 1."""
    others = 1.0 - tf.eye(tf.shape(p)[-1], dtype=p.dtype)
    products = p[:, :, None] * p[:, None, :] * others
    return tf.linalg.set_diag(-products, tf.reduce_sum(products, axis=-1))


def _check_differentiable(x: Any) -> None:
    dtypes = [tf.as_dtype(leaf.dtype).name for leaf in keras.tree.flatten(x)]
    if not any(tf.as_dtype(dtype).is_floating for dtype in dtypes):
        raise ValueError(
            f"Robustness is about derivatives by the inputs, which are {', '.join(dtypes)}. Give "
            "floats, as in x.astype('float32'), or leave the metric out for this model."
        )
