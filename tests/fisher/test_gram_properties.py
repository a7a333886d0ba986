"""The Gram matrix of random classifiers against one slow backward pass an example, in float64."""

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from random_models import Case, cases

from fisher_keras.fisher import loss_gradient_gram


def products(model, x, classes, probabilities):
    rows = []
    for example, label in zip(x, classes, strict=True):
        with tf.GradientTape() as tape:
            outputs = model(example[np.newaxis], training=False)[0]
            loss = -tf.math.log(outputs[label] if probabilities else tf.nn.softmax(outputs)[label])
        gradients = tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
        rows.append(np.concatenate([np.ravel(tf.convert_to_tensor(g)) for g in gradients]))
    return np.stack(rows) @ np.stack(rows).T


@given(cases(), st.one_of(st.none(), st.integers(1, 5)))
def test_gram_matrix(case: Case, chunk_size: int | None):
    model = case.model()
    x, y, classes = case.examples()
    gram = loss_gradient_gram(model, x, y, chunk_size=chunk_size)
    scale = np.exp(gram.log_scale.numpy())
    found = scale[:, np.newaxis] * gram.matrix.numpy() * scale
    expected = products(model, x, classes, case.probabilities)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9 * np.max(expected))
