"""The answers of check_classifier are true: of all that works, and of all that is refused."""

import doctest

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import nightly

import fisher_keras
from fisher_keras import FisherRegularizedModel, check_classifier, classifier_check

FINITE = "regularizer, finite_difference"
SHARED = f"{FINITE}, shared gradients"
PRODUCT = "regularizer, hessian_vector_product"
AUTO = 'sharing by "auto"'


def data():
    random = np.random.default_rng(0)
    return random.normal(size=(20, 6)).astype("float32"), random.integers(0, 3, 20)


def network(*layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(3)])


def names(report, works):
    return {feature.name for feature in report.features if feature.works is works}


class NoSecondDerivative(keras.layers.Layer):
    def call(self, x):
        return tf.stop_gradient(x) * x


def test_a_plain_classifier_is_changed_by_nothing():
    model = network(keras.layers.Dense(4, "tanh"))
    before = [value.copy() for value in model.get_weights()]
    report = check_classifier(model, *data())
    assert names(report, False) == set()
    assert report.num_parameters == 28 + 15
    assert not model.compiled
    for value, weight in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, weight)
    text = str(report).splitlines()
    assert "43 trainable parameters" in text[0]
    assert len(text) == 2 + len(report.features)
    assert fisher_keras.check_classifier is check_classifier


@pytest.mark.parametrize(
    ("layers", "dtype", "refused"),
    [
        (
            [keras.layers.BatchNormalization(), keras.layers.Dense(5, dtype="mixed_bfloat16")],
            "float32",
            {AUTO: "three gradients", FINITE: "bfloat16", SHARED: "bfloat16"},
        ),
        (
            [keras.layers.Embedding(9, 4), keras.layers.Flatten(), keras.layers.Dense(700)],
            "int32",
            {"robustness": "int32", "Hessian": "not tried"},
        ),
    ],
)
def test_what_is_refused_and_why(layers, dtype, refused):
    x, y = data()
    x = np.abs(x).astype(dtype)
    report = check_classifier(network(*layers), x, y)
    assert refused.keys() <= names(report, False)
    for feature in report.features:
        assert refused.get(feature.name, "") in feature.note


def test_what_is_refused_is_refused_by_the_feature_itself():
    model, (x, y) = network(NoSecondDerivative()), data()
    report = check_classifier(model, x, y)
    for feature in report.features:
        if feature.name in (FINITE, PRODUCT):
            method = FisherRegularizedModel(model, gradient=feature.name.split(", ")[1])
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            method.compile("sgd", loss)
            if feature.works:
                method.regularized_gradients(x, y)
            else:
                with pytest.raises(ValueError, match=r".+") as caught:
                    method.regularized_gradients(x, y)
                assert str(caught.value).splitlines()[0] == feature.note


@pytest.mark.parametrize(
    ("units", "activation", "loss"),
    [
        nightly(3, "softmax", None),
        (3, None, "compiled"),
        (1, "sigmoid", None),
    ],
)
def test_the_loss_that_belongs_to_the_outputs(units, activation, loss):
    x, y = data()
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(units, activation)])
    if loss:
        model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
        y = np.eye(3)[y]
    report = check_classifier(model, x, y if units == 3 else y % 2)
    assert names(report, False) <= {AUTO}


def test_docstring():
    results = doctest.testmod(classifier_check, extraglobs={"np": np, "keras": keras})
    assert results.attempted
    assert not results.failed


class OwnLoss(keras.Model):
    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        return 2 * super().compute_loss(x, y, y_pred, sample_weight, training)


class OwnCompile(OwnLoss):
    """Makes a metric whenever it is compiled, which Keras adds to a list."""

    def compile(self, *args, **kwargs):
        super().compile(*args, **kwargs)
        self.mine = keras.metrics.Mean(name="mine")


@pytest.mark.parametrize(("make", "wrapped"), [nightly(OwnLoss, False), (OwnCompile, True)])
def test_what_a_classifier_is_compiled_with_stays(make, wrapped):
    layers = network(keras.layers.Dense(4, "tanh"))
    model = make(layers.inputs, layers.outputs)
    if not wrapped:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, metrics=["accuracy"], loss_weights=[3.0])
    given = FisherRegularizedModel(model) if wrapped else model
    before, metrics = dict(vars(model)), list(model.metrics)
    report = check_classifier(given, *data())
    assert names(report, False) <= {AUTO}
    assert vars(model).keys() == before.keys()
    changed = {name for name, value in vars(model).items() if value is not before[name]}
    assert changed <= {"_called"}
    assert [id(metric) for metric in model.metrics] == [id(metric) for metric in metrics]
