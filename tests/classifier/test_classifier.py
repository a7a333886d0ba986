"""One object for a model and what was traced of it: made once, and never stale."""

import doctest
import gc
import math
import sys
import weakref

import keras
import numpy as np
import pytest

from fisher_keras import FisherRegularizedModel
from fisher_keras.classifier import Classifier
from fisher_keras.classifier.classifier import as_classifier
from fisher_keras.fisher import loss_gradient_gram
from fisher_keras.fisher.gram_function import GramFunction
from fisher_keras.metrics import evaluate_local_minimum, hessian, robustness


def network(*middle, ends_in=None):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((4,)), *middle, keras.layers.Dense(3, ends_in)])


def examples(count=5):
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, 4)).astype("float32"), np.arange(count) % 3


def assert_same(gram, expected):
    np.testing.assert_array_equal(gram.matrix, expected.matrix)
    np.testing.assert_array_equal(gram.log_scale, expected.log_scale)


def test_the_example_runs():
    assert doctest.testmod(sys.modules[Classifier.__module__]).failed == 0


def test_a_function_is_made_once_for_its_options():
    made = []

    def make(classifier, *options):
        made.append((classifier, *options))
        return object()

    first, second = Classifier(network()), Classifier(network())
    assert first.cached(make, 1) is first.cached(make, 1)
    assert first.cached(make, 2) is not first.cached(make, 1)
    assert second.cached(make, 1) is not first.cached(make, 1)
    assert made == [(first, 1), (first, 2), (second, 1)]


def test_functions_see_the_weights_of_the_moment():
    classifier, (x, y) = Classifier(network()), examples()
    before = robustness(classifier, x), loss_gradient_gram(classifier, x, y)
    classifier.model.layers[0].kernel.assign(np.zeros((4, 3)))
    assert before[0] > 0
    assert robustness(classifier, x) == 0
    gram = loss_gradient_gram(classifier, x, y)
    assert_same(gram, loss_gradient_gram(classifier.model, x, y))
    assert not np.array_equal(gram.log_scale, before[1].log_scale)


class Scaled(keras.layers.Layer):
    """Has an attribute that counts, and some that each call leaves behind."""

    def __init__(self):
        super().__init__()
        self.scale = 2.0
        self.last = self.last_shape = None
        self.num_calls = 1000

    def call(self, x):
        self.last, self.last_shape = self.scale * x, x.shape
        self.num_calls += 1
        return self.last


def test_what_a_call_leaves_behind_is_no_change():
    model, (x, y) = network(Scaled()), examples()
    classifier = Classifier(model)
    loss_gradient_gram(classifier, x, y)
    function, num_calls = classifier.cached(GramFunction, False), model.layers[0].num_calls
    loss_gradient_gram(classifier, x, y)
    loss_gradient_gram(classifier, 2 * x, y)
    assert classifier.cached(GramFunction, False) is function
    assert model.layers[0].num_calls == num_calls


def frozen(model):
    model.layers[0].trainable = False


def with_lora(model):
    model.layers[0].enable_lora(1)


def with_another_head(model):
    model.pop()
    model.add(keras.layers.Dense(5))


def with_another_activation(model):
    model.layers[0].activation = keras.activations.sigmoid


def with_another_policy(model):
    model.layers[0].dtype_policy = "mixed_bfloat16"


def with_a_scale(model):
    model.layers[1].scale = 3.0


@pytest.mark.parametrize(
    "change",
    [
        *(frozen, with_lora, with_another_head),
        *(with_another_activation, with_another_policy, with_a_scale),
    ],
)
def test_no_trace_is_stale(change):
    model, (x, y) = network(keras.layers.Dense(6, "tanh"), Scaled()), examples()
    classifier = Classifier(model)
    before = loss_gradient_gram(classifier, x, y)
    change(model)
    gram = loss_gradient_gram(classifier, x, y)
    assert_same(gram, loss_gradient_gram(model, x, y))
    assert not np.array_equal(gram.log_scale, before.log_scale)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model", None),
        ("from_logits", True),
        ("normalize_logits", 0.3),
        ("labels", "binary"),
        ("likelihood_name", "bernoulli"),
    ],
)
def test_settings_are_kept(setting, value):
    """They would not act on what was traced."""
    classifier = Classifier(network(), normalize_logits=0.1)
    before = getattr(classifier, setting)
    with pytest.raises(AttributeError, match=f"keeps its {setting}: make a new one"):
        setattr(classifier, setting, value)
    assert getattr(classifier, setting) == getattr(classifier.copy(), setting) == before


def test_layers_that_are_frozen_and_unfrozen():
    model, (x, y) = network(keras.layers.Dense(2)), examples()
    classifier = Classifier(model)
    before = loss_gradient_gram(classifier, x, y)
    assert hessian(classifier, x, y).shape == (4 * 2 + 2 + 2 * 3 + 3,) * 2
    frozen(model)
    assert hessian(classifier, x, y).shape == (2 * 3 + 3,) * 2
    model.layers[0].trainable = True
    assert_same(loss_gradient_gram(classifier, x, y), before)


def test_a_layer_that_is_frozen_without_weights_that_train():
    """BatchNormalization then takes its moving statistics in training mode, too."""
    normalization = keras.layers.BatchNormalization(center=False, scale=False)
    model, (x, y) = network(keras.Sequential([normalization])), examples()
    classifier = Classifier(model)
    before = loss_gradient_gram(classifier, x, y, training=True)
    normalization.trainable = False
    gram = loss_gradient_gram(classifier, x, y, training=True)
    assert_same(gram, loss_gradient_gram(model, x, y, training=True))
    assert not np.array_equal(gram.log_scale, before.log_scale)


def test_a_model_is_not_kept():
    model, (x, y) = network(), examples(9)
    options = {"num_samples": 4, "num_trials": 1, "metrics": ("trace", "robustness")}
    evaluate_local_minimum(model, (x, y), progress=False, **options)
    classifier = Classifier(model)
    loss_gradient_gram(classifier, x, y)
    reference = weakref.ref(model)
    del model, classifier
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("ends_in", [None, "softmax"])
def test_logits(ends_in):
    model, (x, _) = network(ends_in=ends_in), examples()
    classifier = Classifier(model, normalize_logits=0.3)
    assert classifier.num_classes is None
    z = classifier.logits(x)
    np.testing.assert_allclose(z, x @ model.layers[0].kernel.numpy(), rtol=1e-5, atol=1e-6)
    assert z.dtype == "float64"
    assert classifier.num_classes == 3
    np.testing.assert_array_equal(classifier.logits(x[:2]), z[:2])


def test_logits_of_a_sigmoid_unit_are_those_of_two_classes():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, "sigmoid")])
    x, _ = examples()
    classifier = Classifier(model)
    z = classifier.logits(x).numpy()
    np.testing.assert_array_equal(z[:, 0], 0)
    np.testing.assert_allclose(1 / (1 + np.exp(-z[:, 1:])), model(x), rtol=1e-5)
    assert classifier.num_classes == 2


def test_logits_of_a_model_that_is_not_built_yet():
    classifier = Classifier(keras.Sequential([keras.layers.Dense(3)]))
    assert classifier.logits(examples()[0]).shape == (5, 3)


def test_the_classifier_in_a_regularized_model():
    model = network()
    assert Classifier(FisherRegularizedModel(model)).model is model


def test_options():
    model = network()
    classifier = Classifier(model, np.True_, np.float32(0.5))
    assert classifier.from_logits is True
    assert classifier.normalize_logits == 0.5
    assert as_classifier(classifier) is classifier
    assert as_classifier(model, False, 0.1).normalize_logits == 0.1


def test_a_classifier_has_its_options():
    classifier, (x, y) = Classifier(network(), normalize_logits=0.3), examples()
    expected = loss_gradient_gram(classifier.model, x, y, normalize_logits=0.3)
    assert_same(loss_gradient_gram(classifier, x, y), expected)
    assert robustness(classifier, x) == robustness(classifier.model, x, normalize_logits=0.3)
    with pytest.raises(ValueError, match=r"A Classifier has .* Given: from_logits=True"):
        loss_gradient_gram(classifier, x, y, True)
    with pytest.raises(ValueError, match=r"A Classifier has .* normalize_logits=0\.3"):
        robustness(classifier, x, normalize_logits=0.3)
    with pytest.raises(ValueError, match="A Classifier has"):
        evaluate_local_minimum(classifier, (x, y), from_logits=False)
    with pytest.raises(ValueError, match="Classifier without normalize_logits"):
        hessian(classifier, x, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_logits": "maybe"}, "from_logits must be"),
        ({"normalize_logits": 0}, "normalize_logits must be"),
        ({"normalize_logits": math.nan}, "normalize_logits must be"),
        ({"normalize_logits": True}, "normalize_logits must be"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Classifier(network(), **options)
