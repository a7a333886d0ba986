"""TensorFloat-32, in which GPUs from Ampere on compute unless they are told not to."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fisher_keras import FisherRegularizedModel
from fisher_keras.classifier.precision import rounding_of
from fisher_keras.fisher import loss_gradient_gram


@pytest.fixture
def switched_on():
    """TensorFlow's default, which a training in the same process switches off."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(True)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(before)


@pytest.fixture
def gpu(monkeypatch, switched_on):
    """Returns a function that gives the machine a GPU of a compute capability, as far as asked."""

    def give(*capability):
        details = {"compute_capability": capability} if capability else {}
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda _: ["GPU:0"])
        monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda _: details)

    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    return give


def network(dtype="float32"):
    layers = [keras.layers.Dense(8, "tanh", dtype=dtype), keras.layers.Dense(3, dtype=dtype)]
    return keras.Sequential([keras.Input((4,)), *layers])


def compile_regularized(model, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    FisherRegularizedModel(model, **options).compile("sgd", loss)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_a_finite_difference_is_refused(gpu, capability):
    gpu(*capability)
    with pytest.raises(ValueError, match=r"TensorFloat-32.*enable_tensor_float_32_execution"):
        compile_regularized(network())


def test_what_takes_no_difference_of_float32_is_not_refused(gpu):
    gpu(9, 0)
    compile_regularized(network(), gradient="hessian_vector_product")
    compile_regularized(network(), beta=0.0)


def test_float64_is_exact_on_any_gpu(gpu, float64):
    gpu(9, 0)
    compile_regularized(network("float64"))
    assert rounding_of(network("float64")) == 2.0**-23


@pytest.mark.parametrize("capability", [(7, 5), ()])
def test_an_older_gpu_has_none(gpu, capability):
    gpu(*capability)
    compile_regularized(network())
    assert rounding_of(network()) == 2.0**-23


def test_switched_off_in_tensorflow(gpu):
    gpu(9, 0)
    tf.config.experimental.enable_tensor_float_32_execution(False)
    compile_regularized(network())
    assert rounding_of(network()) == 2.0**-23


def test_switched_off_in_the_driver(gpu, monkeypatch):
    gpu(9, 0)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    compile_regularized(network())


def test_metrics_know_the_rounding(gpu):
    model, x = network(), np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    before = loss_gradient_gram(model, x, np.arange(5) % 3)
    assert before.epsilon == 2.0**-23
    gpu(9, 0)
    assert loss_gradient_gram(model, x, np.arange(5) % 3).epsilon == 2.0**-10
