"""The robustness metric of Section 7.1 (Sokolić et al., 2017): squared input-output Jacobian."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.arguments import whole_number
from fisher_keras.classifier.batch_axis import interaction
from fisher_keras.classifier.classifier import Classifier, as_classifier, logits_function
from fisher_keras.classifier.inputs import ExamplesError, count_examples, fitting, part_of
from fisher_keras.classifier.logits import FromLogits
from fisher_keras.classifier.positions import check_single
from fisher_keras.classifier.precision import rounding_of
from fisher_keras.fisher.verification import DIFFERS_AMONG_FEWER, same_among_others
from fisher_keras.graph.tracing import signature, trace_for_any_batch_size
from fisher_keras.graph.vectorized import map_sequentially

# Of the Jacobians that are there at once: a quarter of a gigabyte in float64.
_MAX_ENTRIES = 2**25

_REMEDY = "evaluate one example at a time (batch_size=1; in evaluate_local_minimum chunk_size=1)"


def robustness(
    model: keras.Model | Classifier,
    x: Any,
    from_logits: FromLogits = "auto",
    batch_size: int = 100,
    *,
    normalize_logits: float | None = None,
) -> float:
    r"""Returns $\frac{1}{N} \sum_x \|J_x[f_w(x)]\|_2^2$ of the softmax probabilities f.

    The result is exact for any number of classes K. Each batch costs K backward passes. Batches
    are made smaller if the Jacobians of many classes by many inputs would not fit into a quarter
    of a gigabyte.

    Args:
        model: A Keras classifier, or a `Classifier` of one, evaluated in inference mode. Its
            outputs for one example must not depend on the others.
        x: Inputs of N examples, an array or a structure of arrays. The Jacobian is with respect to
            all floating-point inputs, as the model's call takes them.
        from_logits: Whether the model's outputs are logits, True or False. With "auto", this is
            found out.
        batch_size: The largest number of examples to evaluate at once.
        normalize_logits: A number c divides each logit vector by its norm times c. None leaves
            them as they are.

    Returns:
        The mean; 0.0 below 5e-324.

    Raises:
        ValueError: If there are no examples, no input has floating-point numbers, the outputs are
            NaN or are not what `from_logits` and `normalize_logits` need, or the outputs for an
            example depend on the other examples.
    """
    classifier = as_classifier(model, from_logits, normalize_logits)
    batch_size = whole_number("batch_size", batch_size, least=1)
    count_examples(x)
    return float(np.mean(classifier.cached(squared_jacobian_norms)(x, batch_size)))


def squared_jacobian_norms(classifier: Classifier) -> Callable[[Any, int], np.ndarray]:
    r"""Makes a function that returns $\|J_x[f_w(x)]\|_2^2$ for each of some examples x.

    The Jacobian of the probabilities is $S J_z$, where $J_z$ is that of the logits and
    $S = \mathrm{diag}(p) - p p^T$ is the derivative of the softmax. The result is the largest
    eigenvalue of the K x K matrix $S J_z J_z^T S$, which alone is in float64. S maps every vector
    of equal numbers to zero. Therefore $J_z$ may be that of the logits minus the largest logit, so
    that nothing cancels if the softmax saturates.

    Args:
        classifier: The classifier.

    Returns:
        The function. It takes x and the largest number of examples to evaluate at once, and traces
        TensorFlow code once. Its result has shape (N,), float64.
    """
    norms_of_batch = _norms_of_batches(classifier)

    def norms(x: Any, batch_size: int) -> np.ndarray:
        first = classifier.inputs(part_of(x, 0, 1))
        num_classes = check_single(classifier, first, "Robustness").num_classes
        numbers = sum(math.prod(leaf.shape[1:]) for leaf in keras.tree.flatten(first))
        # For one example, J_z has K rows of so many numbers, and J_z J_z^T has K x K.
        entries = num_classes * max(numbers, num_classes)
        size = min(batch_size, max(1, _MAX_ENTRIES // entries))
        firsts = range(0, count_examples(x), size)
        result = np.concatenate([norms_of_batch(part_of(x, i, i + size)) for i in firsts])
        if np.isnan(result).any() and size > 1:
            return norms(x, 1)  # One example's NaN may spoil a whole batch.
        bad = np.flatnonzero(np.isnan(result))
        if bad.size:
            raise ExamplesError(
                f"The outputs of the model {classifier.model.name!r} or their derivatives are NaN "
                f"or infinite for {bad.size} of {len(result)} examples, the first at {{rows}}. "
                "Robustness needs finite ones; check the weights and the inputs.",
                bad,
            )
        return result

    return norms


def _norms_of_batches(classifier: Classifier) -> Callable[[Any], np.ndarray]:
    """Makes a function of a batch x that returns the norms (B,), with NaN if not finite."""
    logits = logits_function(classifier)
    c = classifier.normalize_logits

    @trace_for_any_batch_size
    def jacobian_products(x: Any) -> tuple[tf.Tensor, ...]:
        inputs = keras.tree.flatten(x)
        differentiable = [leaf for leaf in inputs if leaf.dtype.is_floating]
        # Persistent, for the Jacobian takes one gradient for each class.
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(differentiable)
            z, _, *to_check = logits(x)
            if c is not None:
                z /= c * tf.norm(z, axis=-1, keepdims=True)
        given = ", ".join(leaf.dtype.name for leaf in inputs)
        jacobian = _relative_jacobian(tape, z, differentiable, given)
        derivative = _softmax_derivative(tf.nn.softmax(z))
        # S is symmetric: S J J^T S is K x K, and has the largest eigenvalue of (S J)^T (S J),
        # which is as wide as the inputs.
        gram = tf.matmul(jacobian, jacobian, transpose_b=True)
        return derivative @ gram @ derivative, z, *to_check

    # Of examples that the graph itself shows to be apart, but for their gradients.
    verified = set()

    def evaluate(x: Any) -> list[np.ndarray]:
        with fitting(classifier.model):
            *values, are_logits, distance = (t.numpy() for t in jacobian_products(x))
        classifier.check_values(are_logits, distance)
        return values

    def norms(x: Any) -> np.ndarray:
        x = classifier.inputs(x)
        products, logits = evaluate(x)
        graph, kind = classifier.call_graph(x), signature(x)
        if not (graph.independent or kind in verified):
            rounding = rounding_of(classifier.model)
            if not same_among_others(evaluate, x, [products, logits], rounding):
                raise interaction(classifier.model, DIFFERS_AMONG_FEWER, _REMEDY)
            # What is zero everywhere agrees with everything.
            if graph.established and products.any():
                verified.add(kind)
        finite = np.isfinite(products).all(axis=(1, 2))
        # Rounding may leave the eigenvalue of a zero matrix below zero.
        result = np.full(len(products), np.nan)
        result[finite] = np.maximum(np.linalg.eigvalsh(products[finite])[:, -1], 0.0)
        return result

    return norms


def _relative_jacobian(
    tape: tf.GradientTape, logits: tf.Tensor, inputs: list[tf.Tensor], given: str
) -> tf.Tensor:
    """Returns the gradients of all logits minus the largest by all inputs, (B, K, D), float64.

    If there are none, the error names the dtypes that are `given`.
    """
    size, num_classes = tf.shape(logits)[0], logits.shape[-1]
    top = tf.one_hot(tf.argmax(logits, axis=-1), num_classes, dtype=logits.dtype)

    def row(index: tf.Tensor) -> tf.Tensor:
        cotangents = tf.one_hot(index, num_classes, dtype=logits.dtype) - top
        gradients = tape.gradient(logits, inputs, cotangents)
        if all(g is None for g in gradients):
            raise ValueError(
                "Robustness is about derivatives by the inputs, of which there are none by "
                "integers, nor through an Embedding. Give floats, as in x.astype('float32'), or "
                f"leave the metric out for this model. Given: inputs of {given}."
            )
        flat = [tf.reshape(g, [size, -1]) for g in gradients if g is not None]
        return tf.concat([tf.cast(g, tf.float64) for g in flat], axis=1)

    # One class after the other: memory for the activations' gradients of one.
    rows = map_sequentially(
        row, tf.range(num_classes), fn_output_signature=tf.float64, parallel_iterations=1
    )
    return tf.transpose(rows, [1, 0, 2])


def _softmax_derivative(p: tf.Tensor) -> tf.Tensor:
    """Returns diag(p) - p p^T for each row of p, without 1 - p, which is rounding near p = 1."""
    others = 1.0 - tf.eye(tf.shape(p)[-1], dtype=p.dtype)
    products = p[:, :, None] * p[:, None, :] * others
    return tf.linalg.set_diag(-products, tf.reduce_sum(products, axis=-1))
