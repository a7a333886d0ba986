"""Numerical precision of a model's layers."""

import functools
from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.graph import keras_private

_ROUNDING = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}
# What a device may make of float32 factors, and how to have float32 again.
_PRODUCTS = {
    2.0**-10: (
        "TensorFloat-32",
        "call tf.config.experimental.enable_tensor_float_32_execution(False)",
    ),
    2.0**-7: (
        "float32 with products in bfloat16",
        "switch them off, which TF_SET_ONEDNN_FPMATH_MODE, ONEDNN_DEFAULT_FPMATH_MODE or the "
        "option auto_mixed_precision_onednn_bfloat16 switches on",
    ),
}


def coarse_formats(model: keras.Model) -> dict[str, str]:
    """Returns the formats coarser than float32 that a model's layers compute in.

    Args:
        model: A Keras model.

    Returns:
        Of each its name, and what to do to have float32 instead.
    """
    dtypes = compute_dtypes(model)
    found = {
        name: "train in float32"
        for name in dtypes & _ROUNDING.keys()
        if _ROUNDING[name] > _ROUNDING["float32"]
    }
    if "float32" in dtypes and rounding_of_products() in _PRODUCTS:
        name, remedy = _PRODUCTS[rounding_of_products()]
        found[name] = remedy
    # The dtype policies of quantized layers do not tell.
    if any(getattr(layer, "inputs_quantizer", None) for layer in keras_private.all_layers(model)):
        found["int8"] = "quantize no inputs"
    return found


def rounding_of(model: keras.Model) -> float:
    """Returns the relative rounding of the coarsest format that a model's layers compute in.

    Args:
        model: A Keras model.

    Returns:
        2^-7 with bfloat16, 2^-10 with float16 and TensorFloat-32, else 2^-23, float32's: also for
        float64, in which what is made of gradients is no more precise.
    """
    return max(_ROUNDING["float32"], rounding_of_dtypes(compute_dtypes(model)))


def rounding_of_dtypes(dtypes: Iterable[str]) -> float:
    """Returns the relative rounding of the coarsest of some dtypes, as this device multiplies.

    Args:
        dtypes: Their names; those that are not floating are passed over.
    """
    dtypes = set(dtypes)
    roundings = [_ROUNDING[name] for name in dtypes & _ROUNDING.keys()]
    return max([*roundings, rounding_of_products() if "float32" in dtypes else 0.0])


def rounding_of_products() -> float:
    """Returns the relative rounding of the factors of float32 products, as measured.

    Environment variables, TensorFlow's options and the device decide together: GPUs from Ampere
    on round factors to 10 bits unless they are told not to, and CPUs to 7 if they are told to.
    """
    options = tf.config.optimizer.get_experimental_options()
    switches = tf.config.experimental.tensor_float_32_execution_enabled(), *options.items()
    return _measured_rounding(*switches)


@functools.cache
def _measured_rounding(*switches: object) -> float:
    """Multiplies by one what bfloat16 rounds, and what TensorFloat-32 rounds.

    Args:
        *switches: All that can change it while the process runs.
    """
    size = 256  # Smaller products may have other kernels.
    with tf.init_scope():
        one = tf.eye(size)

        @tf.function(autograph=False)
        def products(values: tf.Tensor) -> list[tf.Tensor]:
            images = tf.reshape(values, [1, 16, 16, size])
            pixel = tf.reshape(one, [1, 1, size, size])
            wide = tf.pad(pixel, [[1, 1], [1, 1], [0, 0], [0, 0]])
            convolved = [tf.nn.conv2d(images, filters, 1, "SAME") for filters in (pixel, wide)]
            matrices = [
                tf.matmul(values, one),
                tf.matmul(one, values),
                tf.nn.bias_add(tf.matmul(values, one, transpose_b=True), tf.zeros([size])),
            ]
            return [tf.reshape(product, [size, size]) for product in matrices + convolved]

        # A graph, also where functions run eagerly: metrics are computed in graphs.
        in_graph = products.get_concrete_function(tf.TensorSpec([size, size]))
        # One times a number is the number itself, unless a factor was rounded: 9 binary digits are
        # too many for bfloat16, and 12 for TensorFloat-32.
        for rounding, tell_tale in ((2.0**-7, 1 + 2.0**-9), (2.0**-10, 1 + 2.0**-12)):
            found = np.stack(in_graph(tf.fill([size, size], tell_tale)))
            if np.any(found != np.float32(tell_tale)):
                return rounding
    return _ROUNDING["float32"]


def compute_dtypes(model: keras.Model) -> set[str]:
    """Returns the names of the dtypes that a model's layers compute in."""
    # What computes nothing, as an input, has Keras' floatx or global policy whatever the others'.
    return {o.compute_dtype for o in keras_private.all_layers(model) if keras_private.computes(o)}
