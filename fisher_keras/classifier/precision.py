"""Numerical precision of a model's layers."""

import os
from collections.abc import Iterable

import keras
import tensorflow as tf

from fisher_keras.graph import keras_private

_EPSILONS = {
    "bfloat16": 2.0**-7,
    "float16": 2.0**-10,
    "TensorFloat-32": 2.0**-10,
    "float32": 2.0**-23,
    "float64": 2.0**-52,
}
_COARSE = {name for name, epsilon in _EPSILONS.items() if epsilon > 2.0**-23}


def coarsest_format(model: keras.Model) -> str | None:
    """Returns the coarsest format that a model's layers compute in, if that is not float32.

    Args:
        model: A Keras model.

    Returns:
        "bfloat16", "float16" or "TensorFloat-32", else None.
    """
    coarse = _as_computed(_compute_dtypes(model)) & _COARSE
    return max(coarse, key=_EPSILONS.get, default=None)


def rounding_of(model: keras.Model) -> float:
    """Returns the relative rounding of the coarsest format that a model's layers compute in.

    Args:
        model: A Keras model.

    Returns:
        2^-7 with bfloat16, 2^-10 with float16 and TensorFloat-32, else 2^-23, float32's: also for
        float64, in which what is made of gradients is no more precise.
    """
    return max(2.0**-23, rounding_of_dtypes(_compute_dtypes(model)))


def rounding_of_dtypes(dtypes: Iterable[str]) -> float:
    """Returns the relative rounding of the coarsest of some dtypes, as this device multiplies.

    Args:
        dtypes: Their names; those that are not floating are passed over.
    """
    return max((_EPSILONS[name] for name in _as_computed(dtypes) & _EPSILONS.keys()), default=0.0)


def _compute_dtypes(model: keras.Model) -> set[str]:
    return {layer.compute_dtype for layer in keras_private.all_layers(model)}


def _as_computed(dtypes: Iterable[str]) -> set[str]:
    """Returns dtypes with those formats that the device takes instead in products."""
    formats = set(dtypes)
    if "float32" in formats and tensor_float_32():
        formats.add("TensorFloat-32")
    return formats


def tensor_float_32() -> bool:
    """Returns whether a GPU rounds the factors of float32 products to 10 bits.

    GPUs of compute capability 8.0 and above (Ampere, Hopper) do, unless they are told not to by
    `tf.config.experimental.enable_tensor_float_32_execution(False)` or `NVIDIA_TF32_OVERRIDE=0`.
    """
    if not tf.config.experimental.tensor_float_32_execution_enabled():
        return False
    if os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
        return False
    details = map(tf.config.experimental.get_device_details, tf.config.get_visible_devices("GPU"))
    return any(detail.get("compute_capability", (0, 0)) >= (8, 0) for detail in details)
