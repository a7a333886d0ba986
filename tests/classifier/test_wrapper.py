"""The classifier inside of what trains it: found, saved and converted."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel
from fisher_keras.classifier.wrapper import ClassifierWrapper, unwrap

X, Y = np.random.RandomState(0).randn(8, 4).astype("float32"), np.arange(8) % 3


class Scaled(keras.Model):
    """Has a weight of its own."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.dropout, self.head = keras.layers.Dropout(0.5), keras.layers.Dense(3)
        self.head.build(shape)

    def call(self, x, training=None):
        return self.head(self.dropout(self.scale * x, training=training))


def sequential(*inside):
    layers = [keras.layers.Dense(4), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((4,)), *inside, *layers])


def nested():
    """Has a model of its own class inside, with weights of the shapes of its own."""
    return sequential(keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(3)]))


def functional():
    model = sequential()
    return keras.Model(model.inputs, model.outputs)


def trained(make):
    model = FisherRegularizedModel(make(), seed=1)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(X, Y)
    return model


def test_the_classifier_inside():
    classifier = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    regularized = FisherRegularizedModel(classifier)
    assert isinstance(regularized, ClassifierWrapper)
    assert unwrap(regularized) is classifier
    assert unwrap(FisherRegularizedModel(regularized)) is classifier
    assert unwrap(classifier) is classifier


def test_another_classifier_needs_another_wrapper():
    model = trained(sequential)
    model.model = model.model
    with pytest.raises(ValueError, match=r"wrap the other one.*Given: <Sequential"):
        model.model = sequential()


@pytest.mark.parametrize("make", [sequential, functional, Scaled, nested])
def test_files_of_weights(make, tmp_path):
    path, plain, model = tmp_path / "a.weights.h5", make(), trained(make)
    model.save_weights(path)
    other = trained(make)
    other.train_on_batch(X, Y)
    other.load_weights(path)
    for mine, saved in zip(other.variables, model.variables, strict=True):
        np.testing.assert_array_equal(mine, saved)
    plain(X)
    if make is nested:  # Both are where Keras keeps what is of a class: neither can be taken.
        with pytest.raises(ValueError, match="could not be loaded"):
            plain.load_weights(path)
    else:
        plain.load_weights(path)
        for mine, saved in zip(plain.get_weights(), model.model.get_weights(), strict=True):
            np.testing.assert_array_equal(mine, saved)
    plain.save_weights(path)
    with pytest.raises(ValueError, match=r"a\.weights\.h5 does not hold.*attribute `model`"):
        other.load_weights(path)


def test_converters_take_the_classifier_alone():
    model = trained(sequential)
    with pytest.raises(ValueError, match=r"give its attribute `model`"):
        tf.lite.TFLiteConverter.from_keras_model(model).convert()
    assert len(tf.lite.TFLiteConverter.from_keras_model(model.model).convert())


class NoTrainingArgument(keras.Model):
    """Keras' own steps do not tell its layers in which mode they are called."""

    def __init__(self, *layers):
        super().__init__()
        self.layers_inside = layers

    def call(self, x):
        for layer in self.layers_inside:
            x = layer(x)
        return x


class NoisyByDefault(keras.layers.Layer):
    """Is in the mode of training unless it is told otherwise."""

    def call(self, x, training=True):
        return 2 * x if training else x


@pytest.mark.parametrize(
    ("method", "options", "inside"),
    [
        (FisherRegularizedModel, {"beta": 0}, keras.layers.BatchNormalization),
        (
            FisherRegularizedModel,
            {"beta": 1e-30, "clip_norm": None, "share_gradients": False},
            lambda: keras.layers.Dropout(0.5, seed=1),
        ),
        (SharpnessAwareModel, {"rho": 0}, NoisyByDefault),
    ],
)
def test_a_call_without_the_argument_training_is_that_of_keras_own_steps(method, options, inside):
    results = []
    for wrap in (lambda model: model, lambda model: method(model, **options)):
        keras.utils.set_random_seed(0)
        classifier = NoTrainingArgument(keras.layers.Dense(8), inside(), keras.layers.Dense(3))
        model = wrap(classifier)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss)
        model.train_on_batch(X, Y)
        evaluated = model.evaluate(X, Y, verbose=0)
        results.append([*classifier.get_weights(), model.predict(X, verbose=0), evaluated])
    for plain, wrapped in zip(*results, strict=True):
        np.testing.assert_allclose(wrapped, plain, rtol=1e-5, atol=1e-7)
