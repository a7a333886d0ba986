"""The regularizer off and on: beta = 0, and a schedule of beta."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import each_value, nightly
from small_models import (
    L2,
    assert_equal,
    compiled,
    conv_net,
    images,
    sparse_loss,
    state_of,
    weights_of,
)


@pytest.fixture
def sums_as_written():
    """TensorFlow adds in the order of the program, not in one that goes by operations' names."""
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    yield
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": True})


@pytest.mark.parametrize(("shared", "scheduled"), each_value([False, "auto"], [False, True]))
def test_beta_zero_is_a_plain_step_to_the_last_bit(sums_as_written, scheduled, shared):
    x, y = images(40)
    beta = keras.optimizers.schedules.PiecewiseConstantDecay([100], [0.0, 5.0])
    plain = conv_net(dropout=0.4, l2=L2)
    plain.compile(keras.optimizers.SGD(0.1, momentum=0.9), sparse_loss())
    # A clipping threshold that every gradient is above: where all steps are plain, none clips.
    model = compiled(
        conv_net(dropout=0.4, l2=L2),
        beta=beta if scheduled else 0,
        clip_norm=None if scheduled else 1e-3,
        share_gradients=shared,
    )
    for m in (plain, model):
        history = m.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
    assert_equal(weights_of(plain), weights_of(model))
    assert_equal(state_of(plain)[:3], state_of(model.model)[:3])
    assert np.isnan(history["fisher_regularizer"]).all()
    assert np.isfinite(history["gradient_norm"]).all()


@pytest.mark.parametrize("shared", [nightly(False), True])
def test_a_schedule_switches_the_regularizer_on(shared):
    x, y = images(32)
    beta = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.0, 50.0])
    model = compiled(conv_net(), beta=beta, share_gradients=shared, alpha=0.01)
    history = model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
    # The step counter is 0 and 1 in the first epoch; the boundary, 2, still has the first value.
    assert np.isnan(history["fisher_trace"][0])
    assert history["fisher_trace"][1] > 0
