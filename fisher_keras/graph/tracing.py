"""Traced functions: one trace at a time, and one for batches of every size."""

import threading
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.graph import keras_private
from fisher_keras.graph.operations import calls_function, traced_operations

_TRACING = threading.RLock()


def concrete_function(function: Any, *arguments: Any) -> Callable:
    """Returns the graph of a `tf.function`, tracing it if needed.

    Only one is traced at a time, for a layer may keep a tensor from one line of its `call` to the
    next. What is returned is a graph even where the user asked for eager functions.

    Args:
        function: The `tf.function`.
        *arguments: Its arguments: tensors, `tf.TensorSpec`s, Python values.

    Returns:
        The graph, to be called with arguments of that kind.
    """
    with _TRACING:
        return function.get_concrete_function(*arguments)


def specs(structure: Any) -> Any:
    """Returns the `tf.TensorSpec` of each tensor of a structure."""
    return keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), structure)


def signature(structure: Any) -> str:
    """Returns shapes and dtypes of tensors but for the number of examples, as a text."""
    leaves = keras.tree.flatten(specs(structure))
    return repr([(leaf.shape[1:].as_list(), leaf.dtype) for leaf in leaves])


def trace_for_any_batch_size(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Traces a function of a batch once for all sizes of the batch.

    Args:
        function: Takes a structure of tensors with a row for each example.

    Returns:
        The traced function.
    """
    traced = tf.function(function, autograph=False)

    def call(x: Any) -> Any:
        x = keras.tree.map_structure(tf.convert_to_tensor, x)
        # Asked for it so, TensorFlow does not warn that several models mean several traces.
        return concrete_function(traced, specs_of_any_size(x))(x)

    return call


def specs_of_any_size(examples: Any) -> Any:
    """Returns the specifications of a structure of tensors with any number of rows."""

    def spec(tensor: Any) -> tf.TypeSpec | None:
        kind = tf.SparseTensorSpec if isinstance(tensor, tf.SparseTensor) else tf.TensorSpec
        return None if tensor is None else kind([None, *tensor.shape[1:]], tensor.dtype)

    return tf.nest.map_structure(spec, examples)


def trace_and_discard(function: Callable, *arguments: Any) -> None:
    """Traces a function of specifications, and throws the graph away."""
    tf.function(function, autograph=False).get_concrete_function(*arguments)


def traced_once(function: Callable) -> Callable:
    """Returns a function that is traced once in a graph, and is unchanged in eager mode."""
    if tf.executing_eagerly():
        return function
    traced = tf.function(function, autograph=False)

    def call(*arguments: Any) -> Any:
        with traced_operations() as operations:
            found = traced(*arguments)
        for operation in filter(calls_function, operations):
            keras_private.infer_no_more_shapes(operation)
        return found

    return call
