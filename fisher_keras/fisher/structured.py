"""Per-example gradients of weights from the structure of the operations that use them.

One forward and one backward pass over a batch give an operation's input X and the gradient Delta
at its output. The gradient of one example with respect to the operation's weight is computed from
these two. For a convolution or a matrix product, it is a product of the two over positions. For a
broadcast sum or product, it is a sum. No example needs its own pass.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence, Set

import keras
import tensorflow as tf

from fisher_keras.fisher.gradients import Explicit, Factored, Gradients, together
from fisher_keras.fisher.rules import RULES, WeightUse
from fisher_keras.graph.operations import downstream
from fisher_keras.graph.vectorized import map_examples


@dataclasses.dataclass(frozen=True)
class Weight:
    """A trainable variable and its reads in a graph that evaluates the model.

    Attributes:
        variable: TensorFlow's variable. If it is mirrored, this is the copy that the graph uses.
        handle: The graph's own handle of it, for taking gradients; None if the graph does not use
            the variable.
        reads: The values that the graph has read. All of them are equal.
        read_in_this_graph: Whether the graph itself does all reads of the variable. Otherwise a
            function that the graph calls reads it (`tf.function`, a loop), and its uses in there
            are not searched.
    """

    variable: tf.Variable
    handle: tf.Tensor | None
    reads: tuple[tf.Tensor, ...]
    read_in_this_graph: bool


def weights_in_graph(variables: Sequence[keras.Variable], graph: tf.Graph) -> list[Weight]:
    """Finds trainable variables in a graph that has evaluated the model.

    Args:
        variables: Its weights.
        graph: The graph of a `tf.function`.

    Returns:
        A `Weight` for each variable, in their order.
    """
    # A graph has a placeholder of its own for the handle of each variable outside of it.
    handles = {id(outside): inside for outside, inside in graph.captures}
    return [_weight(variable.value, handles) for variable in variables]


def structured_gradients(
    outputs: tf.Tensor,
    cotangents: tf.Tensor,
    inputs: Sequence[tf.Tensor],
    weights: Sequence[Weight],
    leading: Set,
) -> list[Gradients | None]:
    """Finds the per-example gradients of weights that only known operations use.

    Args:
        outputs: A model's outputs for a batch of N examples, shape (N, K), in a graph that has no
            gradients yet.
        cotangents: The gradient of each example's loss at `outputs`, of the same shape and dtype.
        inputs: The inputs with the examples, each of shape (N, ...).
        weights: The weights at which the model was evaluated.
        leading: References to the tensors with the examples on the leading axis, in order.

    Returns:
        For each weight, its gradients, or None if an operation that uses it is not known, or
        separates examples in an unknown way. The caller must verify the result.
    """
    count = outputs.shape[0]
    # Everything downstream of the inputs belongs to the examples. Rules are for the operations at
    # the border: those that take a tensor without examples and return one with examples.
    with_examples = downstream(inputs)
    known = {}
    for index, weight in enumerate(weights):
        uses = list(_uses(weight, with_examples, leading))
        # All uses or none: a weight's gradient is the sum over its uses, and one that a called
        # function reads may have uses that are not seen here.
        if weight.read_in_this_graph and all(use.op.type in RULES for use in uses):
            known[index] = uses
    # Weights that meet in one tensor have its uses in common. The order stays the same each time.
    used = list(dict.fromkeys(itertools.chain.from_iterable(known.values())))
    # One backward pass for all operations. What does not reach the outputs has a gradient of zero.
    results = [use.op.outputs[0] for use in used]
    deltas = tf.gradients(outputs, results, cotangents, unconnected_gradients="zero")
    # By tensor rather than by weight: several weights may meet in one tensor, and one weight may
    # reach the examples by several.
    gradients: dict[object, list] = {}
    for use, delta in zip(used, deltas, strict=True):
        gradients.setdefault(use.tensor.ref(), []).append(RULES[use.op.type](use, delta, count))
    combined = {tensor: _combined(parts) for tensor, parts in gradients.items()}

    result: list[Gradients | None] = [None] * len(weights)
    indirect = []
    for index, uses in known.items():
        tensors = list(dict.fromkeys(use.tensor.ref() for use in uses))
        if any(combined[tensor] is None for tensor in tensors):
            continue
        if not tensors:  # The outputs do not depend on it.
            variable = weights[index].variable
            result[index] = Explicit(tf.zeros([count, *variable.shape], variable.dtype))
        # Reads are the weight itself: their gradients are its own, and add up.
        elif set(tensors) <= {read.ref() for read in weights[index].reads}:
            result[index] = _combined([combined[tensor] for tensor in tensors])
        else:
            indirect.append((index, tensors))
    _pull_back(result, indirect, combined, weights)
    return result


def _weight(variable: tf.Variable, handles: dict[int, tf.Tensor]) -> Weight:
    # Of a mirrored variable, a graph captures the copy of the replica that it runs on.
    copies = getattr(variable, "values", [variable])
    for copy in copies:
        if id(copy.handle) in handles:
            handle = handles[id(copy.handle)]
            uses = handle.consumers()
            reads = tuple(op.outputs[0] for op in uses if op.type == "ReadVariableOp")
            # Other consumers of the handle, as a function's call, may use it out of sight.
            return Weight(copy, handle, reads, len(reads) == len(uses))
    return Weight(copies[0], None, (), read_in_this_graph=True)


def _uses(weight: Weight, with_examples: dict, leading: Set) -> Iterator[WeightUse]:
    """Finds the operations that combine a weight (or a function of weights) with the examples."""
    for tensor in downstream(weight.reads, avoiding=with_examples):
        for op in tensor.deref().consumers():
            if any(output.ref() in with_examples for output in op.outputs):
                # The same tensor may be taken twice: each of these is a use, and they add up.
                for input_index, value in enumerate(op.inputs):
                    if value is tensor.deref():
                        yield WeightUse(op, input_index, leading)


def _combined(parts: list[Gradients | None]) -> Gradients | None:
    """Adds the gradients of several uses of the same tensor; None if a rule gave none."""
    if None in parts or len(parts) == 1:
        return parts[0] if len(parts) == 1 else None
    factored = all(isinstance(part, Factored) for part in parts)
    if factored and len({part.size[2:] for part in parts}) == 1:
        return together(parts)  # The sum of L positions and of L' others is one of L + L'.
    return Explicit(tf.add_n([part.explicit() for part in parts]))


def _pull_back(result: list, indirect: list, combined: dict, weights: Sequence[Weight]) -> None:
    """Completes the weights that act on the examples through other tensors, as gamma does.

    BatchNormalization multiplies by gamma / sqrt(variance + epsilon). Gradients at such tensors
    are pulled back to the weights, one example after another (vectorized). The part of the graph
    between the weights and these tensors has no examples, so that it is the same for all examples.
    """
    if not indirect:
        return
    tensors = list(dict.fromkeys(tensor for _, between in indirect for tensor in between))
    handles = [weights[index].handle for index, _ in indirect]

    def one_example(rows: list[tf.Tensor]) -> list[tf.Tensor]:
        return tf.gradients([t.deref() for t in tensors], handles, rows)

    # Rules add up in float32 at least, while the graph takes back gradients of its own dtype.
    rows = [tf.cast(combined[t].explicit(), t.deref().dtype) for t in tensors]
    gradients = map_examples(one_example, rows)
    for (index, _), found in zip(indirect, gradients, strict=True):
        result[index] = Explicit(found)
