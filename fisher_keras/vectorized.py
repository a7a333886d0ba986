"""`tf.vectorized_map` without a product of matrices that TensorFlow gets wrong."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def map_examples(function: Callable[[Any], Any], examples: Any) -> Any:
    """Calls a function for each example, for all of them at once where that is safe.

    `tf.matmul` of one example's (1, L, A) and a weight (A, B), as in EinsumDense and attention,
    becomes one of (N, 1, L, A) and (A, B). For it oneDNN, in TensorFlow up to 2.21, writes where
    it must not: the process dies, or results are wrong
    (https://github.com/tensorflow/tensorflow/issues/117700). Then examples take turns.

    Args:
        function: Takes one example to a structure of tensors. May use tensors of the graph that
            it is called in, and their gradients.
        examples: A structure of tensors of shape (N, ...), in a graph.

    Returns:
        What the function returns, stacked along a new first axis.
    """

    def all_at_once(examples: Any) -> Any:
        return tf.vectorized_map(function, examples)

    # Traced apart: even unused, what has effects would run if it were in the graph.
    specs = keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), examples)
    traced = tf.function(all_at_once, autograph=False).get_concrete_function(specs)
    if not _has_unsafe_product(traced.graph.as_graph_def(add_shapes=True)):
        return traced(examples)
    signature = tf.nest.map_structure(
        lambda t: tf.TensorSpec(t.shape[1:], t.dtype), traced.structured_outputs
    )
    return tf.map_fn(function, examples, fn_output_signature=signature)


def _has_unsafe_product(graph: tf.compat.v1.GraphDef) -> bool:
    """Returns whether there may be a product with batch axes (N, 1), one factor broadcast."""
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    shapes = [
        tf.TensorShape(node.attr["_output_shapes"].list.shape[0])
        for node in nodes
        if node.op == "BatchMatMulV2"
    ]
    return any(shape.is_compatible_with([None, 1, None, None]) for shape in shapes)
