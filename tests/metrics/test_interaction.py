"""Examples that interact, in outputs or in gradients alone, are refused by all metrics."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fisher_keras.fisher import example_gradient_norms, loss_gradient_gram
from fisher_keras.metrics import hessian, robustness

X = np.random.default_rng(0).normal(size=(100, 8)).astype("float32")
Y = np.arange(100) % 3


class Function(keras.layers.Layer):
    """A layer without weights."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


def backward(rule):
    """The identity with a gradient of its own."""

    @tf.custom_gradient
    def identity(x):
        return tf.identity(x), rule

    return identity


INTERACTIONS = {
    "outputs": lambda x: x + 0.5 * tf.roll(x, 1, axis=0),
    "gradients, centered": backward(lambda g: g - tf.reduce_mean(g, axis=0)),
    # The norm over a large batch is the same for all compositions of it.
    "gradients, normalized": backward(lambda g: g / (tf.norm(g) + 1e-6)),
}
METRICS = {
    "gram": lambda model: loss_gradient_gram(model, X, Y),
    "norms": lambda model: example_gradient_norms(model, (X, Y)),
    "hessian": lambda model: hessian(model, X, Y),
    "robustness": lambda model: robustness(model, X),
}


def network(function):
    keras.utils.set_random_seed(1)
    hidden, head = keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)
    return keras.Sequential([keras.Input((8,)), hidden, Function(function), head])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", INTERACTIONS)
def test_interaction_is_refused(kind, metric):
    # A Hessian may show it by itself.
    with pytest.raises(ValueError, match=r"Examples of a batch interact|not symmetric"):
        METRICS[metric](network(INTERACTIONS[kind]))


@pytest.mark.parametrize("metric", METRICS)
def test_a_gradient_of_its_own_is_none(metric):
    found = METRICS[metric](network(backward(lambda g: g)))
    expected = METRICS[metric](network(tf.identity))
    if metric == "gram":
        found, expected = found.matrix, expected.matrix
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
