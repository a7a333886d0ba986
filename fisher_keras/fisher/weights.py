"""The trainable variables of a model in a graph that evaluates it."""

import dataclasses
from collections.abc import Sequence

import keras
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Weight:
    """A trainable variable, and where a graph reads it.

    Attributes:
        variable: TensorFlow's variable; of one that is mirrored, the copy that the graph uses.
        handle: By which the graph uses it, which gradients can be taken by; None if it does not.
        reads: The values that the graph has read, all the same.
        only_read: Whether the graph itself reads the variable wherever it is used. Otherwise a
            function that the graph calls does (`tf.function`, a loop), and is no place to look.
    """

    variable: tf.Variable
    handle: tf.Tensor | None
    reads: tuple[tf.Tensor, ...]
    only_read: bool


def weights_in_graph(variables: Sequence[keras.Variable], graph: tf.Graph) -> list[Weight]:
    """Finds trainable variables in a graph that has evaluated the model.

    Args:
        variables: Its weights.
        graph: The graph of a `tf.function`.

    Returns:
        A weight for each, in their order.
    """
    handles = {id(outside): inside for outside, inside in graph.captures}
    return [_weight(variable.value, handles) for variable in variables]


def _weight(variable: tf.Variable, handles: dict[int, tf.Tensor]) -> Weight:
    copies = getattr(variable, "values", [variable])
    for copy in copies:
        if id(copy.handle) in handles:
            handle = handles[id(copy.handle)]
            uses = handle.consumers()
            reads = tuple(op.outputs[0] for op in uses if op.type == "ReadVariableOp")
            return Weight(copy, handle, reads, len(reads) == len(uses))
    return Weight(copies[0], None, (), only_read=True)
