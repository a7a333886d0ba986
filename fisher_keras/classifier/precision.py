"""How precise what a model computes is."""

import keras
import tensorflow as tf

from fisher_keras.classifier import stateless

_EPSILONS = {tf.bfloat16: 2.0**-7, tf.float16: 2.0**-10}


def rounding_of(model: keras.Model) -> float:
    """Returns the relative rounding of the coarsest format that a model's layers compute in.

    Args:
        model: A Keras model.

    Returns:
        2^-7 with bfloat16, 2^-10 with float16, else 2^-23, float32's: also for float64, in which
        what is made of gradients is no more precise.
    """
    dtypes = {tf.as_dtype(layer.compute_dtype) for layer in stateless.all_layers(model)}
    return max((_EPSILONS[dtype] for dtype in dtypes & _EPSILONS.keys()), default=2.0**-23)
