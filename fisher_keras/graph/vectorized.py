"""`tf.vectorized_map` with a sequential fallback."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.graph.operations import nodes
from fisher_keras.graph.tracing import specs


def map_examples(function: Callable[[Any], Any], examples: Any, sequential: bool = False) -> Any:
    """Calls a function for each example, for all of them at once where that is safe.

    `tf.matmul` of one example's (1, L, A) and a weight (A, B), as in EinsumDense and attention,
    becomes one of (N, 1, L, A) and (A, B). For it oneDNN, in TensorFlow up to 2.21, writes where
    it must not: the process dies, or results are wrong
    (https://github.com/tensorflow/tensorflow/issues/117700). Then examples take turns, and so they
    do where an operation cannot be vectorized, as an einsum that takes a diagonal cannot.

    Args:
        function: Takes one example to a structure of tensors. May use tensors of the graph that
            it is called in, and their gradients.
        examples: A structure of tensors of shape (N, ...), in a graph.
        sequential: Whether they take turns anyway: what TensorFlow has vectorized may still fail
            when it runs, as where an operation gives each example another number of rows.

    Returns:
        What the function returns, stacked along a new first axis.
    """
    vectorized = None if sequential else _vectorized(function, examples)
    if vectorized is not None:
        return vectorized(examples)
    one = keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape[1:], t.dtype), examples)
    outputs = tf.function(function, autograph=False).get_concrete_function(one).structured_outputs
    return map_sequentially(function, examples, fn_output_signature=specs(outputs))


def map_sequentially(function: Callable[[Any], Any], elements: Any, **options: Any) -> Any:
    """Calls a function for each element, as `tf.map_fn` does, and leaves nothing if that raises.

    `tf.map_fn` gives the scope of variables a caching device for as long as it traces the
    function. If that raises, the device stays, and in this process no strategy's scope can be
    entered, and no variable made in one, any more.

    Args:
        function: Takes an element to a structure of tensors.
        elements: A structure of tensors of shape (N, ...).
        options: Of `tf.map_fn`.

    Returns:
        What the function returns, stacked along a new first axis.
    """
    scope = tf.compat.v1.get_variable_scope()
    before = scope.caching_device
    try:
        return tf.map_fn(function, elements, **options)
    finally:
        if scope.caching_device is not before:
            scope.set_caching_device(before)


def _vectorized(function: Callable[[Any], Any], examples: Any) -> Callable[[Any], Any] | None:
    """Returns the function of all examples, or None where TensorFlow has none, or a wrong one."""

    def all_at_once(examples: Any) -> Any:
        return tf.vectorized_map(function, examples)

    # Traced apart: even unused, what has effects would run if it were in the graph.
    try:
        with _quiet_logger():
            traced = tf.function(all_at_once, autograph=False).get_concrete_function(
                specs(examples)
            )
    except Exception:  # Of any kind. What is wrong with the function itself, its own trace raises.
        return None
    return None if _has_unsafe_product(traced.graph) else traced


@contextlib.contextmanager
def _quiet_logger() -> Iterator[None]:
    """Keeps TensorFlow from logging pages about an operation that it cannot vectorize."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _has_unsafe_product(graph: tf.Graph) -> bool:
    """Returns whether there may be a product with batch axes (N, 1), one factor broadcast."""
    for operation, node in nodes(graph.get_operations(), add_shapes=True):
        if node.op != "BatchMatMulV2":
            continue
        shape = operation.outputs[0].shape
        if operation.type != node.op:  # Inside of a function that the operation calls.
            shape = tf.TensorShape(node.attr["_output_shapes"].list.shape[0])
        if shape.is_compatible_with([None, 1, None, None]):
            return True
    return False
