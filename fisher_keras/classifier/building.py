"""Building a Keras model outside of any graph, where its variables must be made."""

from typing import Any

import keras
import tensorflow as tf


def build(model: keras.Model, x: Any) -> None:
    """Builds what is not built of a model, by calling it with one example.

    Args:
        model: A Keras model.
        x: Inputs, an array or a structure of arrays.
    """
    if not all(layer.built for layer in model._flatten_layers()):
        first = keras.tree.map_structure(lambda leaf: tf.convert_to_tensor(leaf[:1]), x)
        model(first)
