"""Second derivatives that TensorFlow lacks: against the same map as a matrix, or refused."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.framework import ops

from fisher_keras.graph import second_derivatives
from fisher_keras.graph.operations import traced_operations
from fisher_keras.graph.second_derivatives import (
    check_second_derivatives,
    exact_second_derivatives,
)
from fisher_keras.metrics import hessian

X = np.random.default_rng(0).normal(size=(4, 3, 3, 1)).astype("float32")
Y = np.arange(4) % 2


def network(middle):
    keras.utils.set_random_seed(1)
    first = [layers.Conv2D(2, 2, activation="tanh"), middle]
    last = [layers.Conv2D(1, 2, activation="tanh"), layers.Flatten(), layers.Dense(2)]
    return keras.Sequential([keras.Input((3, 3, 1)), *first, *last])


def as_matrix(layer):
    """The same layer, linear and the same for all channels, as an einsum with a matrix."""
    basis = np.eye(4, dtype="float32").reshape(4, 2, 2, 1)
    matrix = np.asarray(layer(basis))[..., 0]
    matrix = matrix.reshape(2, 2, *matrix.shape[1:])
    return layers.Lambda(lambda x: tf.einsum("nabc,abhw->nhwc", x, matrix))


RESIZING = {
    "UpSampling2D": lambda method: layers.UpSampling2D(2, interpolation=method),
    "Resizing": lambda method: layers.Resizing(5, 3, interpolation=method),
    "smaller": lambda method: layers.Lambda(
        lambda x: tf.image.resize(x, (2, 2), method, antialias=True)
    ),
    "kept aspect ratio": lambda method: layers.Lambda(
        lambda x: tf.image.resize(x, (5, 3), method, preserve_aspect_ratio=True)
    ),
    "align_corners": lambda method: layers.Lambda(
        lambda x: tf.compat.v1.image.resize(x, (3, 4), method, align_corners=True)
    ),
}


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("UpSampling2D", "bilinear"),
        ("UpSampling2D", "bicubic"),
        ("UpSampling2D", "lanczos3"),
        ("UpSampling2D", "nearest"),
        ("Resizing", "bilinear"),
        ("Resizing", "nearest"),
        ("smaller", "bilinear"),
        ("kept aspect ratio", "bilinear"),
        ("align_corners", "bicubic"),
    ],
)
def test_resized_images(kind, method):
    layer = RESIZING[kind](method)
    found, expected = (hessian(network(m), X, Y) for m in (layer, as_matrix(layer)))
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.exactness
@pytest.mark.usefixtures("float64")
def test_softsign():
    def softsign(x):
        return x / (1 + tf.abs(x))

    found, expected = (
        hessian(network(layers.Activation(f)), X, Y) for f in ("softsign", softsign)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "nearest", "lanczos3"])
@pytest.mark.parametrize("eager", [False, True])
def test_forward_mode_over_reverse_mode(method, eager):
    """As the regularizer's Hessian-vector product does."""
    x = tf.constant(X)
    ones = tf.ones_like(x)

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.image.resize(x, (5, 4), method) ** 3)
        return tape.gradient(loss, x)

    def product(x):
        with tf.autodiff.ForwardAccumulator(x, ones) as accumulator:
            result = gradient(x)
        return accumulator.jvp(result)

    with exact_second_derivatives(""):
        found = product(x) if eager else tf.function(product, autograph=False)(x)
    # The loss is cubic: the central difference is exact.
    expected = gradient(x + 0.5 * ones) - gradient(x - 0.5 * ones)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(5, 4), (3, 3), (2, 7)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8"])
@pytest.mark.parametrize("dimensions", [3, 4])
def test_values_and_first_derivatives_are_tensorflows_own(size, dtype, dimensions):
    x = tf.cast(50 * np.abs(X), dtype)[0 if dimensions == 3 else slice(None)]
    results = []
    for context in (exact_second_derivatives(""), contextlib.nullcontext()):
        with context, tf.GradientTape() as tape:
            tape.watch(x)
            resized = tf.image.resize(x, size)
            loss = tf.reduce_sum(tf.cast(resized, tf.float32) ** 2)
        results.append([resized, *([tape.gradient(loss, x)] if x.dtype.is_floating else [])])
    for found, expected in zip(*results, strict=True):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        tolerance = 1e-3 if dtype == "float16" else 1e-5
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_outside_of_the_context_nothing_is_changed():
    x = tf.constant(X)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            loss = tf.reduce_sum(tf.image.resize(x, (5, 4)) ** 3)
        gradient = inner.gradient(loss, x)
    assert outer.gradient(gradient, x) is None


def fake_quant(x):
    return tf.quantization.fake_quant_with_min_max_args(x)


def fake_quant_of_variables(x):
    return tf.quantization.fake_quant_with_min_max_vars(x, -6.0, 6.0)


def in_a_branch(x):
    return tf.cond(tf.reduce_sum(x) > 0, lambda: fake_quant(x), lambda: x)


def in_a_loop(x):
    return tf.while_loop(lambda i, _: i < 2, lambda i, x: (i + 1, fake_quant(x)), (0, x))[1]


def in_a_function(x):
    return tf.function(fake_quant)(x)


def in_numpy(x):
    return x + tf.ensure_shape(tf.numpy_function(np.sin, [x], tf.float32), x.shape)


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (fake_quant, "FakeQuantWithMinMaxArgsGradient"),
        (fake_quant_of_variables, "FakeQuantWithMinMaxVarsGradient"),
        (in_a_branch, "FakeQuantWithMinMaxArgsGradient"),
        (in_a_loop, "FakeQuantWithMinMaxArgsGradient"),
        (in_a_function, "FakeQuantWithMinMaxArgsGradient"),
        (
            lambda x: tf.compat.v1.image.resize(x, (3, 4), "bilinear", align_corners=True),
            "ResizeBilinearGrad",
        ),
        (lambda x: x * tf.stop_gradient(tf.sin(x)), "StopGradient in layer 'here'"),
        (lambda x: x + tf.stop_gradient(tf.round(x) - x), "StopGradient in layer 'here'"),
        (tf.function(lambda x: x * tf.stop_gradient(x)), "StopGradient in layer 'here'"),
        (in_numpy, "PyFunc in layer 'here'"),
        (tf.nn.lrn, "LRNGrad"),
        (lambda x: tf.nn.max_pool_with_argmax(x, 2, 1, "SAME")[0], "MaxPoolGradWithArgmax"),
    ],
)
def test_what_has_none_is_refused(function, op):
    model = network(layers.Lambda(function, name="here"))
    before = model.predict(X, verbose=0)
    with pytest.raises(ValueError, match=rf"{op}.* not to be had") as caught:
        hessian(model, X, Y)
    assert len(str(caught.value)) < 500
    np.testing.assert_array_equal(model.predict(X, verbose=0), before)


@pytest.mark.parametrize(
    ("shape", "middle"),
    [
        ((3, 2), [layers.GRU(2, use_cudnn=False), layers.LayerNormalization()]),
        ((6, 6, 1), [layers.Conv2D(2, 3), layers.BatchNormalization(), layers.MaxPooling2D()]),
    ],
)
def test_nothing_vanishes_in_an_ordinary_network(shape, middle):
    last = [layers.Dropout(0.5), layers.Flatten(), layers.Dense(2)]
    model = keras.Sequential([keras.Input(shape), *middle, *last])

    @tf.function(autograph=False)
    def gradient(x):
        with traced_operations() as operations, tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=True) ** 2)
            gradient = tape.gradient(loss, model.trainable_variables)
        check_second_derivatives(operations, handles, model, "")
        return gradient

    handles = [v.value.handle for v in model.trainable_variables]
    with exact_second_derivatives(""):
        gradient.get_concrete_function(tf.ones([2, *shape]))


def test_what_tensorflow_takes_for_constant():
    """A TensorFlow that takes other first derivatives for constant fails here."""
    registered = ops._gradient_registry._registry
    others = ("StopGradient", "BroadcastGradientArgs", "TensorArrayGrad")
    constant = {
        name
        for name, entry in registered.items()
        if entry["type"] is None and "Grad" in name and not name.startswith(others)
    }
    assert constant == set(second_derivatives.TAKEN_FOR_CONSTANT)


@pytest.mark.parametrize(
    "op",
    ["ResizeBicubicGrad", "ResizeNearestNeighborGrad", "ScaleAndTranslateGrad", "SoftsignGrad"],
)
def test_what_tensorflow_does_not_know(op):
    """A TensorFlow that has a gradient of its own fails here: ours is then to go."""
    assert ops._gradient_registry.lookup(op).__module__ == second_derivatives.__name__
