"""Evaluating a Keras model at any weights without a trace in it (design: no hidden state)."""

from typing import Any

import keras
import tensorflow as tf


def values(variables: list[keras.Variable]) -> list[tf.Tensor]:
    """Returns the variables' values as tensors."""
    return [tf.convert_to_tensor(v.value) for v in variables]


def scope(
    model: keras.Model, weights: list[tf.Tensor], state: list[tf.Tensor]
) -> keras.StatelessScope:
    """Makes the scope in which a model has other values, and what it assigns is dropped.

    `keras.Model.stateless_call` is this scope around `call`; we need `__call__`, which also casts
    to the compute dtype, and the penalties.

    Args:
        model: A built Keras model.
        weights: Values of its `trainable_variables`.
        state: Values of its `non_trainable_variables`.

    Returns:
        The scope. It collects the penalties that layers add.
    """
    mapping = [
        *zip(model.trainable_variables, weights, strict=True),
        *zip(model.non_trainable_variables, state, strict=True),
    ]
    return keras.StatelessScope(state_mapping=mapping, collect_losses=True)


def apply(model: keras.Model, x: Any, training: bool | None) -> Any:
    """Calls a model, telling it the mode if its `call` asks for one."""
    return model(x, training=training) if model._call_has_training_arg else model(x)


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """Returns a model and all layers in it, at any depth."""
    # `Model.layers` has the first level alone, and a layer that holds layers has no such list.
    return model._flatten_layers()
