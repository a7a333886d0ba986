"""The Gram matrix of random classifiers against one slow backward pass an example, in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from random_models import SIZES, Case, cases
from slow_jacobian import xi

from fisher_keras.classifier import Classifier
from fisher_keras.fisher import loss_gradient_gram


def gradients(model, x, classes, probabilities):
    rows = []
    for example, labels in zip(x, classes, strict=True):
        with tf.GradientTape() as tape:
            outputs = model(example[np.newaxis], training=False)
            p = outputs[0] if probabilities else tf.nn.softmax(outputs)[0]
            losses = -tf.math.log(tf.gather(p, labels, batch_dims=np.ndim(labels)))
            mask = getattr(outputs, "_keras_mask", None)  # Of the steps that are not all 0.
            loss = tf.reduce_sum(losses if mask is None else tf.where(mask[0], losses, 0))
        gradients = tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
        rows.append(np.concatenate([np.ravel(tf.convert_to_tensor(g)) for g in gradients]))
    return np.stack(rows)


@given(
    cases(positions=True),
    st.one_of(st.none(), st.integers(1, 5)),
    st.booleans(),
    st.integers(0, 99),
)
def test_gram_matrix(case: Case, chunk_size: int | None, frozen: bool, seed: int):
    """Of one classifier, whose layers may change in between, and of examples in any order."""
    model = case.model()
    x, y, classes = case.examples(model.output_shape[1:-1])
    classifier = Classifier(model)
    loss_gradient_gram(classifier, x, y, chunk_size=chunk_size)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y, classes = x[order] * 2, y[order], classes[order]
    if frozen and len(model.trainable_variables) > 2:
        next(layer for layer in model.layers if layer.trainable_variables).trainable = False
    found = xi(loss_gradient_gram(classifier, x, y, chunk_size=chunk_size))
    j = gradients(model, x, classes, case.probabilities)
    np.testing.assert_allclose(found, j @ j.T, rtol=1e-7, atol=1e-9 * np.max(j @ j.T))


@given(cases(), st.integers(-100, 100))
def test_a_first_layer_at_any_scale(case: Case, exponent: int):
    """In float32, whose powers of two end at 127: inputs of 2^e, and weights of 2^-e."""
    first = keras.layers.Dense(case.shape[-1], use_bias=False, dtype="float32")
    inputs = keras.Input(case.shape, dtype="float32")
    model = keras.Model(inputs, case.model()(first(inputs)))
    x, y, classes = case.examples()
    x = x.astype("float32")
    j = gradients(model, x, classes, case.probabilities)
    j[:, : first.kernel.shape[0] * first.kernel.shape[1]] *= 2.0**exponent
    first.kernel.assign(first.kernel * 2.0**-exponent)
    found = loss_gradient_gram(model, x * np.float32(2.0**exponent), y)
    log_norms = np.log(np.sqrt(np.diag(found.matrix))) + found.log_scale
    norms = np.linalg.norm(j, axis=1)
    np.testing.assert_allclose(log_norms, np.log(norms), atol=1e-3)
    cosines = xi(found) / np.exp(np.add.outer(log_norms, log_norms))
    np.testing.assert_allclose(cosines, (j @ j.T) / np.outer(norms, norms), atol=1e-3)


@given(cases(SIZES, also="interaction"))
def test_examples_that_interact_are_refused(case: Case):
    model = case.model()
    x, y, _ = case.examples()
    alone = np.concatenate([model(example[np.newaxis], training=False) for example in x])
    together = model(x, training=False).numpy()
    if case.probabilities:
        alone, together = np.log(alone), np.log(together)
    # What moves logits by less than 0.1 % of the largest is taken for rounding.
    if np.abs(alone - together).max() > 1e-2 * np.abs(together).max():
        with pytest.raises(ValueError, match="Examples of a batch interact"):
            loss_gradient_gram(model, x, y)
