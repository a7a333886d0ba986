"""A model's head gives logits or probabilities of classes; anything else is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from marks import each_value
from scipy.special import log_softmax

from fisher_keras import FisherRegularizedModel
from fisher_keras.classifier import Classifier
from fisher_keras.fisher import loss_gradient_gram
from fisher_keras.metrics import evaluate_local_minimum, hessian, robustness

X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
LOSSES = {
    "probabilities": "sparse_categorical_crossentropy",
    "logits": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
}


class Head(keras.Model):
    """A subclassed model, whose layers do not tell how it ends."""

    def __init__(self, units, function, dtype=None):
        super().__init__(dtype=dtype)
        self.dense = layers.Dense(units)
        self.function = function

    def call(self, x):
        return self.function(self.dense(x))


class Traced(Head):
    """One whose graph holds no more than a call of its function, and of one in it."""

    @tf.function
    def call(self, x):
        return tf.function(super().call)(x)


def functional(units, *activations):
    inputs = keras.Input((4,))
    outputs = layers.Dense(units)(inputs)
    for activation in activations:
        outputs = activation(outputs)
    return keras.Model(inputs, outputs)


def sequential(*parts):
    return keras.Sequential([keras.Input((4,)), *parts])


def hidden_sigmoid(z):
    return 1 / (1 + ops.exp(-z))


def hidden_softmax(z):
    return ops.exp(z) / ops.sum(ops.exp(z), axis=-1, keepdims=True)


HEADS = {
    "activation of a layer": lambda f, k: sequential(layers.Dense(k, f)),
    "layer": lambda f, k: sequential(layers.Dense(k), layers.Activation(f)),
    "function": lambda f, k: functional(k, getattr(ops, f)),
    "cast": lambda f, k: functional(k, getattr(ops, f), lambda p: ops.cast(p, "float64")),
    "nested": lambda f, k: sequential(keras.Sequential([functional(k, layers.Activation(f))])),
    "not built": lambda f, k: keras.Sequential([layers.Dense(k), layers.Activation(f)]),
    "subclassed": lambda f, k: Head(k, getattr(tf.nn, f)),
    "traced": lambda f, k: Traced(k, getattr(tf.nn, f)),
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(
    ("activation", "units", "message"),
    [("sigmoid", 2, "sigmoid of 2 outputs"), ("softmax", 1, "softmax of one output")],
)
def test_heads_that_are_no_distribution_over_classes(kind, activation, units, message):
    model = HEADS[kind](activation, units)
    for from_logits in ("auto", False):
        with pytest.raises(ValueError, match=message):
            loss_gradient_gram(model, X, np.zeros(6), from_logits)
    assert model(X).shape == (6, units)


@pytest.mark.parametrize(("head", "loss"), each_value(HEADS, LOSSES))
def test_such_heads_are_not_trained(head, loss):
    model = FisherRegularizedModel(head("sigmoid", 2), num_sub_batches=2)

    def train():
        model.compile("sgd", loss)
        model.fit(X, np.zeros(6), verbose=0)

    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="sigmoid"):
        train()


def test_all_metrics_refuse():
    model, y = HEADS["activation of a layer"]("sigmoid", 3), np.arange(6) % 3
    for metric in (
        lambda: evaluate_local_minimum(model, (X, y), 2, 1, progress=False),
        lambda: hessian(model, X, y),
        lambda: loss_gradient_gram(model, X, y),
        lambda: Classifier(model, likelihood="categorical").logits(X),
    ):
        with pytest.raises(ValueError, match="sigmoid of 3 outputs"):
            metric()
    with pytest.raises(ValueError, match="one prediction an example"):
        robustness(model, X)


@pytest.mark.parametrize("from_logits", ["auto", False])
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_sigmoids_that_only_values_show(from_logits, shift):
    model = Head(3, lambda z: hidden_sigmoid(z + shift))
    with pytest.raises(ValueError, match=r"no probabilities .* no classifier"):
        loss_gradient_gram(model, X, np.arange(6) % 3, from_logits)


@pytest.mark.parametrize("scale", [1.005, 1.0 + 1e-4])
def test_logits_that_are_positive_and_nearly_add_up_to_one(scale):
    def nearly(z):
        return scale * hidden_softmax(z)

    model = Head(3, nearly)
    with pytest.raises(ValueError, match="pass from_logits=True"):
        Classifier(model).logits(X)
    np.testing.assert_allclose(Classifier(model, from_logits=True).logits(X), model(X), rtol=1e-6)


@pytest.mark.parametrize("make", [Head, Traced])
def test_logits_of_a_dense_layer_are_logits_whatever_they_are(make):
    """Also of few examples, whose logits are all in 0..1, or add up to 1."""
    model = make(3, tf.identity)
    model(X)
    model.dense.set_weights([1e-3 * model.dense.get_weights()[0], np.full(3, 1 / 3)])
    kernel, bias = model.dense.get_weights()
    for scale in (0, 1):
        z = Classifier(model).logits(scale * X)
        np.testing.assert_allclose(z, scale * X @ kernel + bias, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "function", [hidden_softmax, lambda z: ops.cast(hidden_softmax(z), "float32")]
)
def test_probabilities_are_found_by_their_values_in_every_precision(dtype, function):
    keras.utils.set_random_seed(0)
    model = Head(300, function, dtype)
    model.dense.dtype_policy = keras.DTypePolicy(dtype)
    z = Classifier(model).logits(X).numpy()
    expected = log_softmax(X @ model.dense.kernel.numpy(), axis=1)
    np.testing.assert_allclose(z, expected, atol=1e-5 if dtype == "float32" else 0.1)


@pytest.mark.parametrize(
    "shape", [(3,), (2, 3), (1, 2, 3)], ids=["softmax", "rows", "more axes in between"]
)
@pytest.mark.parametrize("metric", ["gram", "hessian", "logits"])
def test_probabilities_that_are_said_to_be_logits(shape, metric):
    """Values tell: training refuses them, too."""
    units = int(np.prod(shape))
    parts = [layers.Dense(units), layers.Reshape(shape), layers.Lambda(hidden_softmax)]
    model, y = sequential(*parts), np.zeros((6, *shape[:-1]), int)
    metrics = {
        "gram": lambda m: loss_gradient_gram(m, X, y),
        "hessian": lambda m: hessian(m, X, y),
        "logits": lambda m: m.logits(X),
    }
    with pytest.raises(ValueError, match=r"from_logits=True.*are probabilities"):
        metrics[metric](Classifier(model, from_logits=True))
    metrics[metric](Classifier(model))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_digits_that_the_head_loses_behind_a_reshape(activation):
    """The gradient of the bias is p - y~, of which float32's probabilities keep nothing here."""
    units = 3 if activation == "softmax" else 1
    dense = layers.Dense(units, use_bias=False)
    model = sequential(dense, layers.Activation(activation), layers.Reshape((units,)))
    dense.set_weights([np.full((4, units), 5.0) * np.arange(units, 0, -1)])
    x, y = np.full((1, 4), 1.5, "float32"), np.array([0 if units > 1 else 1])
    z = x.astype(float) @ dense.kernel.numpy()
    p = np.exp(log_softmax(z if units > 1 else np.hstack([0 * z, z]), axis=1))
    gradient = np.append(p[0, 1:].sum(), p[0, 1:]) if units > 1 else p[0, :1]
    expected = np.log(np.linalg.norm(gradient) * np.linalg.norm(x))
    gram = loss_gradient_gram(model, x, y)
    np.testing.assert_allclose(gram.log_scale[0], expected, rtol=1e-5)
    with pytest.raises(ValueError, match=activation):
        loss_gradient_gram(model, x, y, from_logits=True)


@pytest.mark.parametrize(
    "loss", [keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy]
)
def test_losses_of_labels_that_are_yes_or_no(loss):
    model, y = sequential(layers.Dense(3)), np.eye(3)[np.arange(6) % 3]
    expected = loss_gradient_gram(Classifier(model, likelihood="bernoulli"), X, y)
    model.compile("sgd", loss(from_logits=True))
    np.testing.assert_array_equal(loss_gradient_gram(model, X, y).log_scale, expected.log_scale)
