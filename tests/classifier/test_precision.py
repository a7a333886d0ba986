"""Products of float32 that a device rounds: as GPUs from Ampere on, and CPUs if told to."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from fisher_keras import FisherRegularizedModel
from fisher_keras.classifier import precision
from fisher_keras.classifier.precision import rounding_of, rounding_of_products
from fisher_keras.fisher import loss_gradient_gram


@pytest.fixture
def rounded_to(monkeypatch):
    """Returns a function that gives the machine products with factors of few bits."""

    def give(bits):
        monkeypatch.setattr(precision, "_measured_rounding", lambda *switches: 2.0**-bits)

    return give


@pytest.fixture
def option():
    """Returns a function that sets an option of TensorFlow's optimizer of graphs."""
    changed = []

    def set_option(name):
        changed.append(name)
        tf.config.optimizer.set_experimental_options({name: True})

    yield set_option
    for name in changed:
        tf.config.optimizer.set_experimental_options({name: False})


def network(dtype="float32"):
    layers = [keras.layers.Dense(8, "tanh", dtype=dtype), keras.layers.Dense(3, dtype=dtype)]
    return keras.Sequential([keras.Input((4,)), *layers])


def compile_regularized(model, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    FisherRegularizedModel(model, **options).compile("sgd", loss)


REFUSALS = {
    10: r"TensorFloat-32.*enable_tensor_float_32_execution",
    7: r"float32 with products in bfloat16.*ONEDNN",
}


@pytest.mark.parametrize("bits", REFUSALS)
def test_a_finite_difference_is_refused(rounded_to, bits):
    rounded_to(bits)
    with pytest.raises(ValueError, match=REFUSALS[bits]):
        compile_regularized(network())


def test_what_takes_no_difference_of_float32_is_not_refused(rounded_to):
    rounded_to(10)
    compile_regularized(network(), gradient="hessian_vector_product")
    compile_regularized(network(), beta=0.0)


def test_float64_is_exact_on_any_device(rounded_to, float64):
    rounded_to(7)
    compile_regularized(network("float64"))
    assert rounding_of(network("float64")) == 2.0**-23


@pytest.mark.exactness
@pytest.mark.usefixtures("float32")
def test_products_of_this_machine(option):
    """Against float64: a machine that says 23 bits has 23 bits, also for other operations."""
    a, b = np.random.default_rng(0).normal(size=(2, 96, 96)).astype("float32")

    def error():
        spec = tf.TensorSpec(a.shape)
        graph = tf.function(tf.matmul, autograph=False).get_concrete_function(spec, spec)
        product = graph(tf.constant(a), tf.constant(b))
        exact = a.astype("float64") @ b.astype("float64")
        return np.abs(product - exact).max() / np.abs(exact).max()

    assert error() < 10 * rounding_of_products()
    if rounding_of_products() > 2.0**-23:  # Not all products are rounded where some are.
        with pytest.raises(ValueError, match=REFUSALS[7]):
            compile_regularized(network())
        return
    assert 0.1 * rounding_of_products() < error()
    compile_regularized(network())
    option("auto_mixed_precision_onednn_bfloat16")
    assert 0.1 * rounding_of_products() < error() < 10 * rounding_of_products()
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0":  # Then the option does nothing.
        return
    assert rounding_of_products() == 2.0**-7
    with pytest.raises(ValueError, match=REFUSALS[7]):
        compile_regularized(network())


def test_metrics_know_the_rounding(rounded_to):
    model, x = network(), np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    before = loss_gradient_gram(model, x, np.arange(5) % 3)
    assert before.epsilon == 2.0**-23
    rounded_to(10)
    assert loss_gradient_gram(model, x, np.arange(5) % 3).epsilon == 2.0**-10


@pytest.mark.parametrize("head", ["float32", "mixed_float16"])
def test_gradients_below_the_range_of_float16(head):
    """Keras' recipe for half precision has a last layer in float32; a mean divides by 2^18."""
    keras.utils.set_random_seed(0)
    first = keras.layers.Dense(2, "tanh", use_bias=False, dtype="mixed_float16")
    pooling = keras.layers.GlobalAveragePooling1D(dtype="mixed_float16")
    last = keras.layers.Dense(3, dtype=head)
    model = keras.Sequential([keras.Input((2**18, 2)), first, pooling, last])
    for variable in model.variables:  # Which float16 holds.
        variable.assign(variable.numpy().astype("float16"))
    x = np.random.default_rng(0).normal(size=(2, 2**18, 2)).astype("float16").astype(float)
    h = np.tanh(x @ first.kernel.numpy())
    z = h.mean(axis=1) @ last.kernel.numpy() + last.bias.numpy()
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    delta = (p - np.eye(3)[[0, 1]]) @ last.kernel.numpy().T / 2**18
    gradients = np.einsum("nlt,nlu,nu->ntu", x, 1 - h**2, delta)
    gram = loss_gradient_gram(model, x, [0, 1], by_layer=True).layers[first.name]
    expected = np.log(np.linalg.norm(gradients, axis=(1, 2)))
    np.testing.assert_allclose(gram.log_scale, expected, atol=2e-3)
