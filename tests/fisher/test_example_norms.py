"""example_gradient_norms against explicit Jacobians."""

import doctest

import keras
import numpy as np
import pytest
import tensorflow as tf
from slow_jacobian import jacobian
from test_layers import CLASSES, COUNT, NETWORKS, network_and_data

from fisher_keras import Classifier, example_gradient_norms
from fisher_keras.fisher import example_norms


@pytest.mark.parametrize("name", NETWORKS)
def test_norms_of_the_rows_of_the_jacobian(float64, name):
    model, x, y = network_and_data(name)
    before = [v.numpy() for v in model.variables]
    expected = np.linalg.norm(jacobian(model, x, y), axis=1)
    classifier = Classifier(model)
    for chunk_size in (7, 30, 1000):
        norms = example_gradient_norms(classifier, (x, y), chunk_size=chunk_size)
        np.testing.assert_allclose(norms, expected, rtol=1e-9)
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())


def test_all_forms_of_labels_give_the_same():
    model, x, y = network_and_data("images")
    expected = example_gradient_norms(model, (x, y))
    smoothed = 0.9 * np.eye(CLASSES)[y] + 0.1 / CLASSES
    np.testing.assert_array_equal(example_gradient_norms(model, (x, smoothed)), expected)
    weighted = tf.data.Dataset.from_tensor_slices((x, y, np.arange(COUNT))).batch(8)
    np.testing.assert_array_equal(example_gradient_norms(Classifier(model), weighted), expected)


def test_gradients_that_no_float32_holds():
    """At a margin of m, p - y is (-1, 1) e^-m."""
    layer = keras.layers.Dense(2, use_bias=False)
    model = keras.Sequential([keras.Input((1,)), layer])
    layer.set_weights([np.array([[100.0, -100.0]])])
    x = np.array([[0.5], [1.0], [3.0], [10.0]], "float32")
    norms = example_gradient_norms(model, (x, np.zeros(4, int)))
    inputs = x[:, 0].astype(float)
    expected = np.sqrt(2) * inputs * np.exp(-200 * inputs)
    np.testing.assert_allclose(norms, expected, rtol=1e-5)
    assert norms[2] > 0 == norms[3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: x.__setitem__((20, 0), np.nan), r"first at \[20\]"),
        (lambda x, y: y.__setitem__(20, CLASSES), "20"),
    ],
)
def test_what_is_wrong_is_named_by_its_row(change, message):
    model, x, y = network_and_data("images")
    change(x, y)
    with pytest.raises(ValueError, match=message):
        example_gradient_norms(model, (x, y), chunk_size=8)


def test_a_frozen_model_has_no_gradients():
    model, x, y = network_and_data("images")
    model.trainable = False
    with pytest.raises(ValueError, match="no trainable variables"):
        example_gradient_norms(model, (x, y))


@pytest.mark.parametrize("chunk_size", [0, -1, 1.5])
def test_chunks_have_examples(chunk_size):
    model, x, y = network_and_data("images")
    with pytest.raises(ValueError, match=f"chunk_size must .* Given: {chunk_size}"):
        example_gradient_norms(model, (x, y), chunk_size=chunk_size)


def test_examples_that_interact_are_refused():
    class Centered(keras.layers.Layer):
        def call(self, x):
            return x - tf.reduce_mean(x, axis=0, keepdims=True)

    inputs = keras.Input((5,))
    model = keras.Model(inputs, keras.layers.Dense(2)(Centered()(inputs)))
    x = np.random.default_rng(0).normal(size=(8, 5)).astype("float32")
    with pytest.raises(ValueError, match="interact"):
        example_gradient_norms(model, (x, np.arange(8) % 2))


def test_the_example_runs():
    assert doctest.testmod(example_norms).failed == 0


def test_another_activation_is_another_likelihood():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "sigmoid")])
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    y = np.arange(6) % 3
    classifier = Classifier(model)
    example_gradient_norms(classifier, (x, np.eye(3)[y]))  # Three labels that are yes or no.
    model.layers[-1].activation = keras.activations.softmax
    norms = example_gradient_norms(classifier, (x, y))
    logits = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    logits.set_weights(model.get_weights())
    np.testing.assert_allclose(norms, np.linalg.norm(jacobian(logits, x, y), axis=1), rtol=1e-4)


def test_errors_count_all_examples():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    x = np.ones((6, 4), np.float32)
    x[3] = np.nan
    with pytest.raises(ValueError, match=r"1 of 6 examples have no finite gradient, .* at \[3\]"):
        example_gradient_norms(model, (x, np.arange(6) % 3), chunk_size=4)
