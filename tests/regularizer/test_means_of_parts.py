"""The mean of the losses of sub-batches is the loss of the mini-batch, or it is refused."""

import keras
import numpy as np
import pytest
from small_models import NUM_CLASSES, sparse_loss

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel
from fisher_keras.regularizer import losses

RANDOM = np.random.RandomState(0)
X, Y = RANDOM.randn(12, 4).astype("float32"), RANDOM.randint(0, NUM_CLASSES, 12)
WEIGHTS = np.linspace(0, 2, 12)
SUM, MEAN = keras.ops.sum, keras.ops.mean

SHARED = lambda model: FisherRegularizedModel(  # noqa: E731
    model, num_sub_batches=4, share_gradients=True, beta=1e-12, clip_norm=None, seed=0
)
M_SAM = lambda model: SharpnessAwareModel(model, rho=0, sub_batches=4)  # noqa: E731


class Penalty(keras.layers.Layer):
    """A penalty of activations, added up or averaged over the examples."""

    def __init__(self, reduce, only_in_training=False):
        super().__init__()
        self.reduce, self.only_in_training = reduce, only_in_training

    def call(self, x, training=None):
        if training or not self.only_in_training:
            self.add_loss(0.1 * self.reduce(x**2))
        return x


def network(*layers):
    keras.utils.set_random_seed(0)
    first, last = keras.layers.Dense(4), keras.layers.Dense(3)
    return keras.Sequential([keras.Input((4,)), first, *layers, last])


def first_loss(model, loss, y=Y, weights=None):
    model.compile(keras.optimizers.SGD(0.1), loss)
    model.train_on_batch(X, y, sample_weight=weights)
    return [*model.get_weights(), model.evaluate(X, y, verbose=0)]


def unreduced(y, outputs):
    """A function that has added up the examples before Keras takes the mean."""
    return SUM(keras.losses.mean_squared_error(y, outputs))


@pytest.mark.parametrize(
    ("method", "loss", "y", "weights"),
    [
        (M_SAM, sparse_loss(), Y, WEIGHTS),
        (M_SAM, keras.losses.MeanSquaredError(), RANDOM.rand(12, 3), WEIGHTS),
        (M_SAM, keras.losses.BinaryCrossentropy(), RANDOM.rand(12, 3), None),
        (M_SAM, sparse_loss(ignore_class=-1), Y, None),
    ],
)
def test_a_mean_is_that_of_keras(method, loss, y, weights):
    expected = first_loss(network(), loss, y, weights)
    for plain, mine in zip(expected, first_loss(method(network()), loss, y, weights), strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "y", "weights"),
    [
        (sparse_loss(reduction="sum"), Y, None),
        (sparse_loss(reduction="mean_with_sample_weight"), Y, WEIGHTS),
        (keras.losses.MeanSquaredError(reduction="sum"), RANDOM.rand(12, 3), None),
        (unreduced, RANDOM.rand(12, 3), None),
    ],
)
def test_what_is_no_mean_is_refused(loss, y, weights):
    with pytest.raises(ValueError, match=r"sub_batches > 1\) takes .* Use sub_batches=1\. Given"):
        first_loss(M_SAM(network()), loss, y, weights)


@pytest.mark.parametrize(
    ("method", "layer"),
    [
        (SHARED, lambda: Penalty(MEAN)),
        (M_SAM, lambda: Penalty(MEAN)),
        (M_SAM, lambda: Penalty(MEAN, only_in_training=True)),
        # Which Keras divides by the size of the batch.
        (SHARED, lambda: keras.layers.Dense(3, activity_regularizer="l2")),
    ],
)
def test_a_penalty_that_is_a_mean_is_that_of_keras(method, layer):
    expected = first_loss(network(layer()), sparse_loss())
    found = first_loss(method(network(layer())), sparse_loss())
    for plain, mine in zip(expected, found, strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_mean_in_half_precision_is_accepted(policy):
    layers = [keras.layers.Dense(64, activity_regularizer=n, dtype=policy) for n in ("l1", "l2")]
    # Keras itself cannot add such penalties to a loss in float32: no evaluation, and no m-SAM.
    model = FisherRegularizedModel(network(*layers), beta=0, share_gradients=True)
    model.compile("sgd", sparse_loss())
    assert np.isfinite(model.train_on_batch(X, Y, return_dict=True)["loss"])


def penalty_of_inputs(size, reduce):
    """A penalty of log x after a convolution that needs more than eight positions."""
    x = keras.Input((size, 2))
    wide = keras.layers.Conv1D(2, 9)(keras.layers.Conv1D(2, 9, activation="exponential")(x))
    pooled = keras.layers.GlobalAveragePooling1D()(
        wide + Penalty(reduce)(keras.ops.log(x)[:, 16:])
    )
    return keras.Model(x, keras.layers.Dense(NUM_CLASSES)(pooled))


@pytest.mark.parametrize("reduce", [MEAN, SUM])
@pytest.mark.parametrize("size", [20, None])
def test_made_up_inputs_fit_the_model(size, reduce):
    model = M_SAM(penalty_of_inputs(size, reduce))
    model.compile("sgd", sparse_loss())
    train = lambda: model.fit(RANDOM.rand(8, 20, 2), Y[:8], verbose=0)  # noqa: E731
    if reduce is MEAN:
        assert np.isfinite(train().history["loss"][0])
        return
    with pytest.raises(ValueError, match="unless it is a mean over the examples"):
        train()


def test_a_penalty_that_is_never_finite_cannot_be_told():
    layer = keras.layers.Lambda(lambda x: x), Penalty(lambda x: MEAN(keras.ops.log(-x)))
    with pytest.raises(ValueError, match=r"which cannot be told here.*Given: .*shapes"):
        first_loss(M_SAM(network(*layer)), sparse_loss())


def test_a_mean_that_only_training_adds_cannot_be_told_with_dropout():
    layers = keras.layers.Dropout(0.5), Penalty(MEAN, only_in_training=True)
    with pytest.raises(ValueError, match="only training adds: add it always"):
        first_loss(M_SAM(network(*layers)), sparse_loss())


def test_eager_steps_check_penalties_once(monkeypatch):
    calls = []
    monkeypatch.setattr(losses, "check_penalties", lambda *_: calls.append(1))
    model = SHARED(network(Penalty(MEAN)))
    model.compile("sgd", sparse_loss(), run_eagerly=True)
    for _ in range(2):
        model.train_on_batch(X, Y)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("method", "layer"),
    [
        (SHARED, lambda: Penalty(SUM)),
        (SHARED, lambda: Penalty(SUM, only_in_training=True)),
        (M_SAM, lambda: Penalty(SUM)),
    ],
)
def test_a_penalty_that_is_a_sum_is_refused(method, layer):
    with pytest.raises(ValueError, match="unless it is a mean over the examples"):
        first_loss(method(network(layer())), sparse_loss())
