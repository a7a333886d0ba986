"""Moments with right second derivatives, in one thread and in several."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import each_value

from fisher_keras.graph.second_derivatives import exact_second_derivatives

X = np.array([0.5, -1.0, 2.0, 0.25])
# Of the mean of (x - mean)^2, by hand: 2 / n (I - 1 1' / n). TensorFlow's lacks the second term.
EXACT = 2 / 4 * (np.eye(4) - 1 / 4)
INEXACT = 2 / 4 * np.eye(4)


def hessian_of_the_variance():
    x = tf.constant(X)
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            _, variance = keras.ops.moments(x, [0])
        gradient = inner.gradient(variance, x)
    return outer.jacobian(gradient, x, experimental_use_pfor=False).numpy()


def test_values_and_gradients_stay():
    x = tf.constant(np.random.default_rng(0).normal(size=(6, 3, 2)).astype(np.float32))
    results = []
    for context in (None, exact_second_derivatives("")):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            if context is None:
                moments = tf.nn.moments(x, [0, 1]), tf.nn.moments(x, [1], keepdims=True)
            else:
                with context:
                    moments = tf.nn.moments(x, [0, 1]), tf.nn.moments(x, [1], None, True, "name")
        flat = tf.nest.flatten(moments)
        results.append([*flat, *(tape.gradient(m, x) for m in flat)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        assert a.dtype == b.dtype


def test_half_precision_is_computed_in_float32():
    x = tf.constant([3e2, -3e2, 1e2], tf.float16)
    with exact_second_derivatives(""):
        mean, variance = tf.nn.moments(x, [0])
    assert mean.dtype == variance.dtype == tf.float16
    np.testing.assert_allclose([mean, variance], [100 / 3, 62222], rtol=1e-3)


def test_second_derivatives_are_right_inside_and_tensorflows_outside():
    """Should the last line fail, TensorFlow has mended it, and `_moments` has had its day."""
    with exact_second_derivatives(""):
        np.testing.assert_allclose(hessian_of_the_variance(), EXACT)
        with exact_second_derivatives(""):
            np.testing.assert_allclose(hessian_of_the_variance(), EXACT)
        np.testing.assert_allclose(hessian_of_the_variance(), EXACT)
    np.testing.assert_allclose(hessian_of_the_variance(), INEXACT)


def test_an_error_leaves_the_context():
    with pytest.raises(RuntimeError), exact_second_derivatives(""):
        raise RuntimeError
    np.testing.assert_allclose(hessian_of_the_variance(), INEXACT)


LAYERS = {
    "BatchNormalization": lambda: keras.layers.BatchNormalization(),
    "GroupNormalization": lambda: keras.layers.GroupNormalization(2),
    "LayerNormalization": lambda: keras.layers.LayerNormalization(),
    "ops.var": lambda: keras.layers.Lambda(
        lambda x: (x - keras.ops.mean(x, 0)) / keras.ops.sqrt(keras.ops.var(x, 0) + 0.1)
    ),
}


@pytest.mark.parametrize(("layer", "traced"), each_value(LAYERS, [False, True]))
def test_second_derivatives_of_keras_layers(float64, layer, traced):
    """Reverse over reverse and forward over reverse, against differences of gradients."""
    random = np.random.RandomState(0)
    x, direction, factors = random.randn(5, 4), random.randn(5, 4), random.randn(5, 4)
    layer = layer()
    layer.build((5, 4))
    mode = {"training": True} if isinstance(layer, keras.layers.BatchNormalization) else {}

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(factors * layer(x, **mode) ** 3)
        return tape.gradient(value, x)

    def reverse_over_reverse(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            along = tf.reduce_sum(gradient(x) * direction)
        return tape.gradient(along, x)

    def forward_over_reverse(x):
        with tf.autodiff.ForwardAccumulator(x, tf.constant(direction)) as accumulator:
            return accumulator.jvp(gradient(x))

    step = 1e-5
    above, below = (gradient(tf.constant(x + s * direction)) for s in (step, -step))
    expected = (above - below) / (2 * step)
    for product in (reverse_over_reverse, forward_over_reverse):
        with exact_second_derivatives(""):
            found = (tf.function(product) if traced else product)(tf.constant(x))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_threads_do_not_see_each_others_context():
    """Two threads enter and leave interleaved, and a third never enters."""
    turn, found = threading.Barrier(3, timeout=60), []

    def run(enter_at, leave_at):
        context = exact_second_derivatives("")
        for moment in range(5):
            turn.wait()
            if moment == enter_at:
                context.__enter__()
            if moment == leave_at:
                context.__exit__(None, None, None)
            turn.wait()
            expected = EXACT if enter_at <= moment < leave_at else INEXACT
            found.append((hessian_of_the_variance(), expected))

    before = tf.nn.moments if hasattr(tf.nn.moments, "asks_for_exact_second_derivatives") else None
    threads = [threading.Thread(target=run, args=moments) for moments in ((0, 2), (1, 3), (9, 9))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15
    for hessian, expected in found:
        np.testing.assert_allclose(hessian, expected)
    np.testing.assert_allclose(hessian_of_the_variance(), INEXACT)
    assert before in (None, tf.nn.moments)  # Installed once, and not taken away.
