"""The Gram matrix compiled by XLA against one slow backward pass an example, in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from marks import nightly
from slow_jacobian import images, jacobian, shake, xi
from test_gram import OTHERS, STRUCTURED, network

from fisher_keras.classifier import Classifier
from fisher_keras.fisher import gram, loss_gradient_gram
from fisher_keras.fisher.gram_function import GramFunction


class ByXla(GramFunction):
    """Compiles its trace."""

    def _trace_anew(self):
        self._traced = tf.function(self._evaluate, autograph=False, jit_compile=True)


def assert_exact(monkeypatch, model, x, y):
    monkeypatch.setattr(gram, "GramFunction", ByXla)
    classifier = Classifier(model)
    found = xi(loss_gradient_gram(classifier, x, y))
    j = jacobian(model, x, y)
    np.testing.assert_allclose(found, j @ j.T, rtol=1e-10, atol=1e-12)
    assert not classifier.cached(ByXla, False, False).fallback_weights


# Factored, pulled back to a weight, and several operations in one. XLA compiles for seconds.
IN_CI = ("strided", "batch norm", "attention")


@pytest.mark.parametrize(
    "name", [name if name in IN_CI else nightly(name) for name in STRUCTURED | OTHERS]
)
def test_layers(float64, monkeypatch, name):
    assert_exact(monkeypatch, network(*(STRUCTURED | OTHERS)[name]()), *images())


def test_a_table_that_is_looked_up(float64, monkeypatch):
    h = [layers.Embedding(7, 5), layers.GlobalAveragePooling1D(), layers.Dense(3)]
    model = shake(keras.Sequential([keras.Input((4,), dtype="int32"), *h]))
    x = np.random.default_rng(0).integers(0, 7, (5, 4))
    assert_exact(monkeypatch, model, x, np.arange(5) % 3)


@pytest.mark.nightly
def test_a_loop_takes_example_after_example(float64, monkeypatch):
    """XLA does not compile its vectorized form."""
    model = shake(keras.Sequential([keras.Input((4, 3)), layers.GRU(5), layers.Dense(3)]))
    assert_exact(monkeypatch, model, *images(6, (4, 3)))
