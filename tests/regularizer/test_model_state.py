"""Moving statistics, seeds and masks: beside the weights, a step moves what a plain one moves."""

import keras
import numpy as np
import pytest
from marks import each_value, nightly
from small_models import (
    L2,
    NETWORKS,
    assert_close,
    assert_equal,
    compiled,
    conv_net,
    dense_net,
    frozen_net,
    images,
    sparse_loss,
    state_of,
    sub_batches_of,
    weights_of,
)

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel

METHODS = pytest.mark.parametrize("method", [FisherRegularizedModel, SharpnessAwareModel])
WAYS = {"graph": False, "eager": True}


@METHODS
@pytest.mark.parametrize(("network", "eager"), each_value(NETWORKS, WAYS))
def test_statistics_and_seeds_end_as_in_a_plain_step(method, network, eager):
    x, y = images()
    plain = network()
    wrapped = compiled(network(), method=method, compile_kwargs={"run_eagerly": eager})
    before = state_of(plain)
    # Keras counts the metrics of a compiled model among its state, so the plain one is wrapped.
    bare = keras.Sequential([plain])
    bare.compile("sgd", sparse_loss(), run_eagerly=eager)
    bare.train_on_batch(x, y)
    wrapped.train_on_batch(x, y)
    assert any(np.any(a != b) for a, b in zip(state_of(plain), before, strict=True))
    assert_equal(state_of(wrapped.model), state_of(plain))


def test_shared_gradients_move_the_statistics_by_the_mean(float64):
    x, y = images()
    model = compiled(frozen_net(), share_gradients=True, num_sub_batches=3)
    layer, norm = model.model.layers[0], model.model.layers[1]
    norm.trainable = True
    model.model.layers[0].trainable = True
    model.compile(keras.optimizers.SGD(0.1), sparse_loss())
    parts = sub_batches_of(model, 12)
    features = [np.array(layer(x[part])) for part in parts]
    mean = np.mean([f.mean(axis=(0, 1, 2)) for f in features], axis=0)
    variance = np.mean([f.var(axis=(0, 1, 2)) for f in features], axis=0)
    model.train_on_batch(x, y)
    np.testing.assert_allclose(norm.moving_mean, 0.01 * mean)
    np.testing.assert_allclose(norm.moving_variance, 0.99 + 0.01 * variance)


class State(keras.layers.Layer):
    """Has a state that is no statistic."""

    def __init__(self, dtype_of_state, change=None):
        super().__init__()
        self.state = self.add_weight((), "zeros", dtype_of_state, trainable=False, name="state")
        self.change = change

    def call(self, x):
        if self.change is not None:
            self.state.assign(self.change(self.state, x))
        return x


CHANGES = {
    "int64": lambda state, x: state + keras.ops.cast(keras.ops.shape(x)[0], "int64"),
    "bool": lambda state, x: keras.ops.logical_not(state),
}


@pytest.mark.parametrize("dtype", CHANGES)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        (FisherRegularizedModel, {"share_gradients": True}),
        (SharpnessAwareModel, {"sub_batches": 2}),
    ],
)
def test_parts_of_a_batch_move_no_counters_and_flags(method, options, dtype):
    x, y = images()
    trained = []
    for layers in ([State(dtype)], []):
        keras.utils.set_random_seed(7)
        layers = [keras.Input((6, 6, 2)), keras.layers.Flatten(), *layers]
        model = compiled(
            keras.Sequential([*layers, keras.layers.Dense(3)]), method=method, **options
        )
        model.train_on_batch(x, y)
        trained.append(model)
    assert_equal(*map(weights_of, trained))
    assert not np.any(state_of(trained[0].model)[0])
    changing = keras.Sequential([State(dtype, CHANGES[dtype]), *layers[1:], keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=rf"no counter or flag .* Use .*Given: .*state.* {dtype}"):
        compiled(changing, method=method, **options).train_on_batch(x, y)


@pytest.mark.parametrize("sizes", [nightly((12, 5)), (11, 3)])
def test_shared_gradients_leave_frozen_statistics_and_advance_seeds(sizes):
    count, num_sub_batches = sizes
    x, y = images(count)
    plain, shared = frozen_net(), frozen_net()
    for model in (plain, shared):
        model.layers[1].trainable = False
        model.layers[1].moving_mean.assign([0.1, 0.2, 0.3, 0.7])
    plain.compile("sgd", sparse_loss())
    plain.train_on_batch(x, y)
    wrapped = compiled(shared, share_gradients=True, num_sub_batches=num_sub_batches)
    wrapped.train_on_batch(x, y)
    assert_equal(state_of(shared), state_of(plain)[: len(state_of(shared))])


@pytest.mark.parametrize(("xla", "shared"), each_value([False, True], [False, True]))
def test_the_public_gradients_change_nothing_and_are_those_of_the_next_step(float64, xla, shared):
    """With XLA too, which draws other masks from the same seeds."""
    x, y = images()
    model = compiled(
        dense_net() if xla else conv_net(dropout=0.4, l2=L2),
        optimizer=keras.optimizers.SGD(1.0),
        clip_norm=None,
        share_gradients=shared,
        compile_kwargs={"jit_compile": xla},
    )
    model.train_on_batch(x, y)
    before, state = weights_of(model), state_of(model)
    gradients, _, _ = model.regularized_gradients(x, y)
    assert_equal(before, weights_of(model))
    assert_equal(state, state_of(model))
    model.train_on_batch(x, y)
    expected = [w - g.numpy() for w, g in zip(before, gradients, strict=True)]
    assert_close(weights_of(model), expected)


def test_sub_batches_have_masks_of_their_own(float64):
    """With the same example everywhere, only the masks tell the sub-batches apart."""
    x, y = np.ones((4, 6, 6, 2)), np.zeros(4, int)
    net = conv_net(dropout=0.5, batch_norm=False)
    whole = [
        float(compiled(net, num_sub_batches=4, seed=s).regularized_gradients(x, y)[2])
        for s in (1, 2)
    ]
    one = compiled(net, num_sub_batches=1).regularized_gradients(x[:1], y[:1])[2]
    assert whole[0] == pytest.approx(whole[1])
    assert abs(whole[0] - float(one)) > 1e-9
