"""Evaluates a Keras model at given weights, statelessly."""

import inspect
import math
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.graph import keras_private


def values(variables: list[keras.Variable]) -> list[tf.Tensor]:
    """Returns the variables' values as tensors."""
    return [tf.convert_to_tensor(v.value) for v in variables]


def move(
    variables: list[keras.Variable], before: list[tf.Tensor], changes: list[tf.Tensor]
) -> None:
    """Gives variables the values that they had before a step, plus changes.

    Args:
        variables: The variables, whatever their values are by now.
        before: Their values before.
        changes: What is added to these.
    """
    for variable, value, change in zip(variables, before, changes, strict=True):
        variable.assign(value + change)


def statistics_and_seeds(model: keras.Model) -> list[keras.Variable]:
    """Returns the non-trainable variables that a mean can move: no counters or flags."""
    seeds = set(map(id, keras_private.seed_states(model)))
    variables = model.non_trainable_variables
    return [v for v in variables if tf.as_dtype(v.dtype).is_floating or id(v) in seeds]


def weights(model: keras.Model) -> list[keras.Variable]:
    """Returns the trainable variables of a model, in its own order.

    Raises:
        ValueError: If one is overwritten instead of moved along its gradient, as the scales of
            float8 are, or if one has no real numbers.
    """
    for variable in model.trainable_variables:
        if not tf.as_dtype(variable.dtype).is_floating:
            raise ValueError(
                "Trainable weights must be real numbers: make a complex weight of two, its real "
                "and its imaginary part, and give integers trainable=False. Given: "
                f"{variable.path!r} of dtype {variable.dtype}."
            )
    overwritten = [v.path for v in model.trainable_variables if v.overwrite_with_gradient]
    if overwritten:
        raise ValueError(
            f"Models in float8 are not supported: the next value of {overwritten[0]!r} is no step "
            "along a gradient. Use another dtype policy. Given: dtype policy float8."
        )
    return model.trainable_variables


def count_parameters(variables: list[keras.Variable]) -> int:
    """Returns the number of entries of variables, which is W for all `weights` of a model."""
    return sum(math.prod(variable.shape) for variable in variables)


def handles(variables: list[keras.Variable]) -> list[tf.Tensor]:
    """Returns the resource handles of variables, in any scope."""
    with keras.StatelessScope():
        return [v.value.handle for v in variables]


def scope(
    model: keras.Model, weights: list[tf.Tensor], state: list[tf.Tensor]
) -> keras.StatelessScope:
    """Returns a StatelessScope with given values, which discards assignments.

    `keras.Model.stateless_call` is this scope around `call`. We need `__call__`, which also casts
    to the compute dtype and tells layers of the mode that `call` does not pass on; and penalties
    have to be computed inside.

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


def dropping_changes() -> keras.StatelessScope:
    """Returns a StatelessScope with the models' own values, which discards assignments."""
    return keras.StatelessScope()


def call(model: keras.Model, x: Any, training: bool | None) -> Any:
    """Calls a model, passing `training` if its `call` accepts it."""
    return model(x, training=training) if accepts_training(model) else model(x)


def accepts_training(model: keras.Model) -> bool:
    """Returns whether a model's `call` takes `training`, which Keras' own steps then give."""
    return "training" in inspect.signature(model.call).parameters


def symbolic(tensors: Any) -> Any:
    """Returns the shapes and dtypes of tensors, as Keras builds models with."""
    return keras.tree.map_structure(
        lambda t: keras.KerasTensor(t.shape, keras.backend.standardize_dtype(t.dtype)),
        tensors,
        none_is_leaf=False,
    )
