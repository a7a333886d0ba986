"""The regularizer in half precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import each_value
from small_models import compiled, conv_net, dense_net, images, weights_of


@pytest.mark.parametrize(
    ("policy", "shared"), each_value(["mixed_float16", "mixed_bfloat16"], [False, True])
)
def test_half_precision(policy, shared, set_policy):
    x, y = images(32)
    options = {"alpha": 1e-4, "beta": 1e4, "gradient": "hessian_vector_product"}
    full = compiled(dense_net(dropout=0.0), **options)
    set_policy(policy)
    with pytest.raises(ValueError, match="hessian_vector_product"):
        compiled(conv_net())
    # Keras' initial loss scale is meant to overflow in the first steps.
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
    model = compiled(
        dense_net(dropout=0.0), optimizer=optimizer, share_gradients=shared, **options
    )
    model.set_weights(full.get_weights())
    if not shared:
        expected, _, trace = full.regularized_gradients(x, y)
        gradients, _, half_trace = model.regularized_gradients(x, y)
        error = tf.linalg.global_norm([a - b for a, b in zip(gradients, expected, strict=True)])
        assert error < 0.05 * tf.linalg.global_norm(expected)
        assert float(half_trace) == pytest.approx(float(trace), rel=0.05)
    history = model.fit(x, y, epochs=4, verbose=0).history
    assert np.isfinite(history["fisher_trace"]).all()
    assert history["loss"][-1] < history["loss"][0]


def test_half_precision_clips_true_gradients(set_policy):
    """The loss scale of float16 is no part of the norm that is clipped."""
    x, y = images(32)
    set_policy("mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=64.0)
    model = compiled(
        conv_net(),
        optimizer=optimizer,
        clip_norm=0.01,
        gradient="hessian_vector_product",
    )
    before = weights_of(model)
    logs = model.train_on_batch(x, y, return_dict=True)
    moved = [a - b for a, b in zip(weights_of(model), before, strict=True)]
    assert np.sqrt(sum(np.sum(m**2) for m in moved)) == pytest.approx(0.01, rel=1e-3)
    assert 0.01 < logs["gradient_norm"] < 100


@pytest.mark.parametrize(
    "options", [{"gradient": "hessian_vector_product"}, {"step_length": 0.1}], ids=str
)
def test_a_small_alpha_loses_no_digits_of_weights_in_float16(options, set_policy):
    """Neither alpha times the gradient nor beta is a number of float16, but their product is."""
    x, y = images(32)
    options = options | {"alpha": 1e-6, "beta": 1e6}
    full = compiled(conv_net(batch_norm=False), **options)
    expected, *_ = full.regularized_gradients(x, y)
    set_policy("float16")
    half = compiled(conv_net(batch_norm=False), **options)
    half.set_weights(full.get_weights())
    gradients, *_ = half.regularized_gradients(x, y)
    assert {g.dtype for g in gradients} == {tf.float16}
    pairs = zip(gradients, expected, strict=True)
    error = tf.linalg.global_norm([tf.cast(a, tf.float32) - b for a, b in pairs])
    assert error < 0.01 * tf.linalg.global_norm(expected)
