"""share_gradients="auto": two gradients a step, where that is the step of three."""

import keras
import numpy as np
import pytest
from marks import nightly

from fisher_keras import FisherRegularizedModel
from fisher_keras.regularizer.losses import BatchLosses

CLASSES = 3
L2 = keras.regularizers.L2(0.1)


class AddedLoss(keras.layers.Layer):
    """Adds a penalty that is a sum over examples."""

    def call(self, x):
        self.add_loss(keras.ops.sum(x**2))
        return x


class Centred(keras.layers.Layer):
    """Takes the mean over the batch from each example."""

    def call(self, x):
        return x - keras.ops.mean(x, axis=0, keepdims=True)


class Unused(keras.layers.Layer):
    """Has a weight that nothing depends on."""

    def build(self, _):
        self.add_weight(shape=(2,))

    def call(self, x):
        return x


def network(*layers, **options):
    head = keras.layers.Dense(CLASSES, **options)
    return keras.Sequential([keras.Input((6, 6, 2)), *layers, keras.layers.Flatten(), head])


def convolution(**options):
    return keras.layers.Conv2D(4, 3, activation="relu", **options)


SEPARABLE = {
    "linear": lambda: network(),
    "convolution": lambda: network(convolution(), keras.layers.MaxPooling2D()),
    "penalty of weights": lambda: network(convolution(kernel_regularizer=L2), bias_regularizer=L2),
    "probabilities": lambda: network(convolution(), activation="softmax"),
    "average": lambda: network(convolution(), keras.layers.GlobalAveragePooling2D()),
}
NOT_SEPARABLE = {
    "batch normalization": lambda: network(keras.layers.BatchNormalization()),
    "dropout": lambda: network(keras.layers.Dropout(0.5)),
    "noise": lambda: network(keras.layers.GaussianNoise(0.1)),
    "mean over the batch": lambda: network(Centred()),
    "penalty of activations": lambda: network(convolution(activity_regularizer=L2)),
    "added loss": lambda: network(AddedLoss()),
    "unused weight": lambda: network(Unused()),
}


# As noise, and as an added loss.
ALIKE = ("dropout", "penalty of activations")


def data(count=11):
    random = np.random.default_rng(0)
    return random.normal(size=(count, 6, 6, 2)), random.integers(CLASSES, size=count)


def step_of(make, loss, share_gradients, monkeypatch, labels=None, count=11, **compile_options):
    """Returns the weights after two steps, their logs, and whether a whole batch was needed."""
    keras.utils.set_random_seed(0)
    whole_batches = []
    original = BatchLosses.whole_batch
    monkeypatch.setattr(
        BatchLosses, "whole_batch", lambda *a, **k: whole_batches.append(1) or original(*a, **k)
    )
    model = FisherRegularizedModel(
        make(), 0.1, 5.0, num_sub_batches=4, share_gradients=share_gradients, seed=0
    )
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1)
    model.compile(optimizer, loss, **compile_options)
    x, y = data(count)
    y = y if labels is None else labels(y)
    weight = np.linspace(0.5, 2, count)
    logs = [model.train_on_batch(x, y, sample_weight=weight, return_dict=True) for _ in range(2)]
    return [np.array(w) for w in model.get_weights()], logs, bool(whole_batches)


def sparse(from_logits=True, **options):
    return keras.losses.SparseCategoricalCrossentropy(from_logits, **options)


@pytest.mark.parametrize(
    ("name", "count", "options"),
    [
        *((name, 11, {}) for name in SEPARABLE if name != "convolution"),
        nightly("convolution", 11, {}),
        nightly("convolution", 12, {}),
        ("convolution", 3, {}),
        nightly("penalty of weights", 11, {"run_eagerly": True}),
        ("penalty of weights", 11, {"jit_compile": True}),
    ],
)
def test_the_step_is_the_same(float64, monkeypatch, name, count, options):
    make, loss = SEPARABLE[name], sparse(name != "probabilities")
    found = step_of(make, loss, "auto", monkeypatch, count=count, **options)
    # In a graph each time.
    right = step_of(make, loss, False, monkeypatch, count=count)
    assert (found[2], right[2]) == (False, True)
    for mine, expected in zip(found[0], right[0], strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-9, atol=1e-12)
    for mine, expected in zip(found[1], right[1], strict=True):
        assert mine == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "name", [nightly(name) if name in ALIKE else name for name in NOT_SEPARABLE]
)
def test_else_it_is_the_step_of_three_gradients(float64, monkeypatch, name):
    found = step_of(NOT_SEPARABLE[name], sparse(), "auto", monkeypatch)
    right = step_of(NOT_SEPARABLE[name], sparse(), False, monkeypatch)
    assert found[2]
    for mine, expected in zip(found[0], right[0], strict=True):
        np.testing.assert_array_equal(mine, expected)


def test_a_loss_that_is_not_the_mean_hard_label_loss(float64, monkeypatch):
    smoothed = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    one_hot = np.eye(CLASSES).__getitem__
    assert step_of(SEPARABLE["linear"], smoothed, "auto", monkeypatch, one_hot)[2]
    assert step_of(SEPARABLE["linear"], sparse(reduction="sum"), "auto", monkeypatch)[2]


@pytest.mark.parametrize("value", ["yes", None, 2, "True"])
def test_bad_values(value):
    with pytest.raises(ValueError, match=r"share_gradients must be one of .*'auto'"):
        FisherRegularizedModel(network(), share_gradients=value)
