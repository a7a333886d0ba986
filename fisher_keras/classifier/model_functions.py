"""Traced functions of a model, made once and kept as long as the model is."""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

_FUNCTIONS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_TRACING = threading.RLock()


def function_of(model: keras.Model, make: Callable[..., Callable], *options: Any) -> Callable:
    """Returns what `make(model, *options)` made, for as long as the model's variables stay.

    Freezing or unfreezing some makes the function anew. Each thread gets its own, as what is made
    may hold a state.

    Args:
        model: A built Keras model. `make` gets a weak proxy of it: kept here, its function must
            not keep the model.
        make: Makes the function.
        *options: Further arguments, hashable.

    Returns:
        The function.
    """
    functions = _FUNCTIONS.setdefault(model, {})
    variables = map(_identities, (model.variables, model.trainable_variables))
    key = (threading.get_ident(), make, options, *variables)
    if key not in functions:
        functions[key] = make(weakref.proxy(model), *options)
    return functions[key]


def _identities(variables: list[keras.Variable]) -> tuple[int, ...]:
    return tuple(map(id, variables))


def concrete_function(function: Any, *arguments: Any) -> Callable:
    """Returns the graph of a `tf.function`, tracing it if needed.

    Only one is traced at a time, for a layer may keep a tensor from one line of its `call` to the
    next.

    Args:
        function: The `tf.function`.
        *arguments: What to trace it for: tensors, `tf.TensorSpec`s, Python values.

    Returns:
        The graph, to be called with arguments of that kind.
    """
    with _TRACING:
        return function.get_concrete_function(*arguments)


def for_batches(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Traces a function of a batch once for all sizes of the batch.

    Args:
        function: Takes a structure of tensors with a row for each example.

    Returns:
        The traced function.
    """
    traced = tf.function(function, autograph=False)

    def call(x: Any) -> Any:
        x = keras.tree.map_structure(tf.convert_to_tensor, x)
        specs = keras.tree.map_structure(
            lambda leaf: tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype), x
        )
        # Asked for it so, TensorFlow does not warn that several models mean several traces.
        return concrete_function(traced, specs)(x)

    return call
