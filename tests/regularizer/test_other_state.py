"""State that is not among a classifier's variables: metrics of its own, a loss's, shared seeds."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import each_value, nightly

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel

Sparse = keras.losses.SparseCategoricalCrossentropy
RANDOM = np.random.RandomState(0)
X, Y = RANDOM.randn(10, 4).astype("float32"), RANDOM.randint(0, 3, 10)

# So weak a regularizer changes nothing.
pytestmark = pytest.mark.filterwarnings("ignore:The regularizer is")


class Measured(keras.Model):
    """Keeps metrics in its loss, as Keras' own examples do."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mine = keras.metrics.Mean(name="mine")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = 2 * super().compute_loss(x, y, y_pred, sample_weight, training)
        self.mine.update_state(loss)
        return loss


class Percent(Measured):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**logs, "mine": 100 * self.mine.result(), "first": y_pred[0, 0]}


class Listed(Measured):
    """The example of `keras.Model.compute_loss`: "loss" is its own metric."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mine = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.mine]

    def reset_metrics(self):
        self.mine.reset_state()


class Activity(keras.layers.Layer):
    """Keeps a metric in its call."""

    def __init__(self):
        super().__init__()
        self.activity = keras.metrics.Mean(name="activity")

    def call(self, x):
        self.activity.update_state(keras.ops.mean(x))
        return x


class Backbone(keras.Model):
    """A model inside of the classifier, with a metric of its own that Keras does not list."""

    def __init__(self):
        super().__init__()
        self.activity = keras.metrics.Mean(name="activity")

    def call(self, x):
        self.activity.update_state(keras.ops.mean(x))
        return x


def with_backbone(inputs, outputs):
    return keras.Model(inputs, Backbone()(outputs))


def with_activity(inputs, outputs):
    return keras.Model(inputs, Activity()(outputs))


class StatefulLoss(Sparse):
    def __init__(self, make=keras.Variable):
        super().__init__(from_logits=True)
        self.factor = make(1.0, trainable=False)

    def call(self, y_true, y_pred):
        self.factor.assign(1.1 * self.factor)
        return self.factor * super().call(y_true, y_pred)


class SharedSeed(keras.layers.Layer):
    def call(self, x, training=None):
        return keras.random.dropout(x, 0.5) if training else x


def network(make=keras.Model):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    features = keras.layers.Dense(5, "tanh")(inputs)
    if make is SharedSeed:
        features, make = make()(features), keras.Model
    return make(inputs, keras.layers.Dense(3)(features))


def history(model, loss):
    model.compile(keras.optimizers.SGD(0.1), loss or Sparse(from_logits=True), jit_compile=False)
    keras.utils.set_random_seed(2)
    fit = model.fit(X, Y, 4, 2, shuffle=False, validation_data=(X, Y), verbose=0)
    return fit.history


def assert_same_logs(found, expected):
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)


METHODS = {
    "plain": lambda model: FisherRegularizedModel(model, beta=0),
    "regularized": lambda model: FisherRegularizedModel(model, beta=1e-14, clip_norm=None),
    "sharpness": lambda model: SharpnessAwareModel(model, rho=1e-30),
    "shared": lambda model: FisherRegularizedModel(model, share_gradients=True),
    "m-sharpness": lambda model: SharpnessAwareModel(model, sub_batches=2),
}


MAKES = [Measured, Percent, Listed, with_activity, with_backbone]
IN_CI = [(make, "regularized") for make in MAKES]
IN_CI += [(Listed, "sharpness"), (Percent, "shared"), (with_activity, "m-sharpness")]
OTHERS = [case for case in itertools.product(MAKES, METHODS) if case not in IN_CI]


@pytest.mark.parametrize(("make", "method"), [*IN_CI, *(nightly(*case) for case in OTHERS)])
def test_metrics_that_the_classifier_updates_itself(make, method):
    wrapped = METHODS[method](network(make))
    if method in ("shared", "m-sharpness"):
        with pytest.raises(ValueError, match=r"or use .*Given: the metric '(mine|loss|activity)'"):
            history(wrapped, None)
        return
    assert_same_logs(history(wrapped, None), history(network(make), None))


def test_metrics_of_a_classifier_in_two_wrappers():
    model = FisherRegularizedModel(FisherRegularizedModel(network(Measured)))
    names = [metric.name for metric in model.metrics]
    assert sorted(names) == sorted(["mine", *model.training_logs])


def test_metrics_are_reset_once():
    class Counting(keras.metrics.Mean):
        resets = 0

        def reset_state(self):
            self.resets += 1
            super().reset_state()

    classifier = network(Measured)
    classifier.mine = mine = Counting(name="counting")
    model = FisherRegularizedModel(classifier)
    model.compile("sgd", Sparse(from_logits=True))
    mine.resets = 0
    model.reset_metrics()
    assert mine.resets == 1


@pytest.mark.parametrize(
    ("variable", "method"),
    each_value(
        {"keras": keras.Variable, "tensorflow": tf.Variable},
        [name for name in METHODS if name != "plain"],
    ),
)
def test_a_loss_with_a_state(variable, method):
    wrapped, loss = METHODS[method](network()), StatefulLoss(variable)
    if method != "regularized":
        with pytest.raises(ValueError, match=r"Given: |which this loss is not"):
            history(wrapped, loss)
        return
    expected = history(network(), StatefulLoss(variable))
    assert_same_logs(history(wrapped, loss), expected)


def test_the_seed_that_all_of_keras_shares():
    """Both weights have the same mask, or the model is refused: beta = 0 is Keras' own step."""
    expected = history(network(SharedSeed), None)["loss"]
    found = history(METHODS["regularized"](network(SharedSeed)), None)["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for method in ("sharpness", "shared", "m-sharpness"):
        with pytest.raises(ValueError, match=r"a keras.random.SeedGenerator.*Given: "):
            history(METHODS[method](network(SharedSeed)), None)
