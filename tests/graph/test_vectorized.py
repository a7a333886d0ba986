"""The vectorized map against NumPy, also where TensorFlow's own one corrupts memory."""

import numpy as np
import pytest
import tensorflow as tf
from marks import of_products

from fisher_keras.graph.vectorized import map_examples


def run(function, *examples):
    return tf.function(lambda e: map_examples(function, e), autograph=False)(examples)


def operations(function, *examples):
    traced = tf.function(lambda e: map_examples(function, e), autograph=False)
    graph = traced.get_concrete_function(examples).graph.as_graph_def()
    called = [node.op for f in graph.library.function for node in f.node_def]
    return {node.op for node in graph.node} | set(called)


RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(5, 7, 6)).astype(np.float32)
WEIGHT = tf.constant(RANDOM.normal(size=(6, 4)).astype(np.float32))


@tf.function(autograph=False)
def product_in_a_function(x):
    tf.debugging.assert_all_finite(x, "")
    return tf.matmul(x, WEIGHT)


UNSAFE = {
    "product": lambda e: tf.matmul(e[0][tf.newaxis], WEIGHT)[0],
    "product with a factor of rank 3": lambda e: tf.matmul(e[0][tf.newaxis], WEIGHT[tf.newaxis])[
        0
    ],
    "product in a function": lambda e: product_in_a_function(e[0][tf.newaxis])[0],
    "product of an unknown shape": lambda e: tf.matmul(
        tf.boolean_mask(e[0], tf.norm(e[0], axis=-1) > 0)[tf.newaxis], WEIGHT
    )[0],
}


@pytest.mark.exactness
@pytest.mark.parametrize("name", UNSAFE)
def test_products_that_oneDNN_gets_wrong(name):
    for _ in range(5):
        found, expected = run(UNSAFE[name], tf.constant(X)), X @ WEIGHT.numpy()
        atol = of_products(1e-6) * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol)


def test_other_products_are_vectorized():
    def both(example):
        x, y = example
        return {"matrix": tf.matmul(x, WEIGHT), "batch": tf.matmul(tf.stack([x, y]), WEIGHT)}

    y = X[::-1]
    found = run(both, tf.constant(X), tf.constant(y))
    np.testing.assert_allclose(found["matrix"], X @ WEIGHT.numpy(), rtol=1e-5, atol=1e-5)
    expected = np.stack([X, y], axis=1) @ WEIGHT.numpy()
    np.testing.assert_allclose(found["batch"], expected, rtol=1e-5, atol=1e-5)
    assert "StatelessWhile" not in operations(both, tf.constant(X), tf.constant(y))
    assert "StatelessWhile" in operations(UNSAFE["product"], tf.constant(X))


def test_an_operation_that_cannot_be_vectorized(caplog):
    def diagonal(example):
        (x,) = example
        return tf.raw_ops.Einsum(inputs=[x[:, 0], x], equation="a,ab->bb")

    found = run(diagonal, tf.constant(X))
    expected = [np.diag(x[:, 0] @ x) for x in X]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert not caplog.records


def test_a_function_that_fails_says_why():
    with pytest.raises(ValueError, match="my own message"):
        run(fail, tf.constant(X))


def fail(example):
    raise ValueError("my own message")
