"""Batch axis and side effects of a model's call, from its graph.

A model is traced for a number of examples that divides no other size in it, so that an axis of
that size is the examples', whatever sizes a user's data happen to have. Nothing is computed.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.graph.operations import (
    assigns,
    calls_function,
    downstream,
    nodes,
    traced_operations,
    upstream,
)
from fisher_keras.graph.tracing import concrete_function

# Larger than most sizes in a model, and small enough for loops over examples in Python.
_LEAST_COUNT = 251
# With these, rows stay what they are, also where a row is one of several of an example.
_ROW_BY_ROW = {
    *("Add", "AddV2", "BiasAdd", "Cast", "Elu", "Erf", "Exp", "Identity", "LeakyRelu", "MatMul"),
    *("Maximum", "Minimum", "Mul", "Neg", "Pow", "RealDiv", "Relu", "Relu6", "Rsqrt", "Selu"),
    *("Sigmoid", "Softplus", "Sqrt", "Square", "SquaredDifference", "Sub", "Tanh"),
}
# And with these, where the examples are in front before and behind.
_EXAMPLE_BY_EXAMPLE = _ROW_BY_ROW | {
    *("AvgPool", "BatchMatMulV2", "ConcatV2", "Conv2D", "DepthwiseConv2dNative", "ExpandDims"),
    *("FusedBatchNormV3", "Max", "MaxPool", "Mean", "Pack", "Pad", "PadV2", "Reshape", "Softmax"),
    *("Squeeze", "StopGradient", "Sum"),
}


@dataclasses.dataclass(frozen=True)
class CallGraph:
    """Properties of a traced call of a model.

    Attributes:
        changes_variables: Whether it writes a variable, as moving statistics or a seed.
        operations: The types of the call's operations, in order.
        leading: The outputs of these that have the examples on the leading axis, in order: pairs
            of the operation's index and the output's.
        independent: Whether no operation can let examples interact, or is random, by its type.
    """

    changes_variables: bool = True
    operations: tuple[str, ...] = ()
    batch_leading: frozenset[tuple[int, int]] = frozenset()
    independent: bool = False

    def leading_in(self, operations: Sequence[tf.Operation]) -> frozenset:
        """Returns references to the tensors with leading examples in another trace of the call.

        Args:
            operations: Those of the other trace. Where they begin to be of other types, nothing
                is known any more.
        """
        pairs = zip(self.operations, operations, strict=False)
        same = list(itertools.takewhile(lambda pair: pair[0] == pair[1].type, pairs))
        return frozenset(
            operations[index].outputs[output].ref()
            for index, output in self.batch_leading
            if index < len(same)
        )


# Of a model that cannot be traced for another number of examples: nothing is taken for granted.
_UNKNOWN = CallGraph()


def call_graph(model: keras.Model, specs: Any, training: bool) -> CallGraph:
    """Traces a model's call, and looks at the graph.

    Args:
        model: A built Keras model.
        specs: A `tf.TensorSpec` for each of its inputs, (N, ...), in a structure.
        training: Whether in training mode.

    Returns:
        Its properties.

    Raises:
        ValueError: If examples interact in inference mode, so that there is no loss of one alone;
            or if what the call changes cannot be kept from changing.
    """
    sizes = [*keras.tree.flatten(specs), *model.variables]
    count = _prime({size for sized in sizes for size in sized.shape if size})
    specs = keras.tree.map_structure(
        lambda spec: tf.TensorSpec([count, *spec.shape[1:]], spec.dtype), specs
    )
    trace = _trace(model, specs, training)
    if trace is None:
        return _UNKNOWN
    changes_variables = trace.writes()
    if changes_variables:
        trace.check_functions(model)
        # What it would change is dropped, in this and in all traces.
        with stateless.dropping_changes():
            trace = _trace(model, specs, training)
    if not training:
        trace.check_interaction(model, count)
    operations = tuple(op.type for op in trace.operations)
    leading = trace.leading(count)
    return CallGraph(changes_variables, operations, leading, trace.independent(leading))


@dataclasses.dataclass(frozen=True)
class _Trace:
    """The graph of a call."""

    graph: tf.Graph
    inputs: list[tf.Tensor]
    outputs: list[tf.Tensor]
    operations: list[tf.Operation]

    def writes(self) -> bool:
        return any(assigns(node) for _, node in nodes(self.operations))

    def check_functions(self, model: keras.Model) -> None:
        """Refuses a `tf.function` that writes: it keeps its trace, with or without the writing."""
        for op in self.operations:
            if calls_function(op) and any(t.dtype == tf.resource for t in op.inputs):
                raise ValueError(
                    f"A tf.function inside of the model {model.name!r} ({op.name!r}) may change "
                    "variables, which an evaluation must not. Remove tf.function there: Keras "
                    "makes a graph of the whole model anyway."
                )

    def check_interaction(self, model: keras.Model, count: int) -> None:
        """Raises a ValueError if something is computed of all examples that outputs depend on."""
        for tensor in self.between():
            op = tensor.op
            normalizes = op.type.startswith("FusedBatchNorm") and op.get_attr("is_training")
            if not normalizes and (_number_of_axes(tensor, count) == 1 or not _is_float(tensor)):
                continue
            if normalizes or self._depend_on(tensor):
                raise ValueError(
                    f"Examples of a batch interact in the model {model.name!r}, in inference "
                    f"mode, too: {op.name!r} takes them together, as a normalization by the "
                    "moments of the batch does, so that no loss is of one example. Change that "
                    "layer, or use loss_gradient_gram(training=True), whose gradients take the "
                    "effect on the others into account."
                )

    def between(self) -> list[tf.Tensor]:
        """Returns all that is computed from the inputs, and outputs from it."""
        outputs_use = upstream(self.outputs)
        return [ref.deref() for ref in downstream(self.inputs) if ref in outputs_use]

    def independent(self, batch_leading: frozenset[tuple[int, int]]) -> bool:
        leads = {self.operations[index].outputs[output].ref() for index, output in batch_leading}
        leads |= {tensor.ref() for tensor in self.inputs}
        if any(_is_stateful(op) and op.type != "ReadVariableOp" for op in self.operations):
            return False
        return all(
            tensor.ref() in leads and tensor.op.type in _EXAMPLE_BY_EXAMPLE | {"Placeholder"}
            for tensor in self.between()
        )

    def _depend_on(self, tensor: tf.Tensor) -> bool:
        """Returns whether the outputs have a derivative by a tensor."""
        with self.graph.as_default():
            return tf.gradients(self.outputs, [tensor])[0] is not None

    def leading(self, count: int) -> frozenset[tuple[int, int]]:
        """Returns which outputs of the operations have the examples in front."""
        found = {tensor.ref() for tensor in self.inputs}
        indices = set()
        for index, op in enumerate(self.operations):
            for output, tensor in enumerate(op.outputs):
                if _examples_lead(tensor, count, found):
                    found.add(tensor.ref())
                    indices.add((index, output))
        return frozenset(indices)


def _trace(model: keras.Model, specs: Any, training: bool) -> _Trace | None:
    """Returns the trace, or None where there is none for this number of examples."""
    traces = []

    def call(x: Any) -> None:
        graph = tf.compat.v1.get_default_graph()
        with traced_operations() as operations:
            outputs = keras.tree.flatten(stateless.call(model, x, training))
        traces.append(_Trace(graph, keras.tree.flatten(x), outputs, operations))

    try:
        with tf.init_scope():
            concrete_function(tf.function(call, autograph=False), specs)
    except Exception:  # Of any kind. What is wrong with the model itself, its own trace raises.
        return None
    return traces[0]


def _examples_lead(tensor: tf.Tensor, count: int, leading: set) -> bool:
    shape, op = tensor.shape, tensor.op
    if not shape.rank or not shape[0] or shape[0] % count or _number_of_axes(tensor, count) != 1:
        return False
    if op.type == "Reshape":  # Keeps the order, whatever it is.
        return op.inputs[0].ref() in leading
    if shape[0] == count:
        return True
    same = [t for t in op.inputs if t.shape.rank and t.shape[0] == shape[0]]
    return op.type in _ROW_BY_ROW and bool(same) and all(t.ref() in leading for t in same)


def _number_of_axes(tensor: tf.Tensor, count: int) -> int:
    """Returns the number of axes that are the examples'; 1 where it is not known."""
    if tensor.shape.rank is None or None in tensor.shape.as_list():
        return 1
    number = 0
    for size in tensor.shape:
        while size and size % count == 0:
            size, number = size // count, number + 1
    return number


def _is_stateful(op: tf.Operation) -> bool:
    """Returns whether an operation does anything but compute: draw, assert, call a function."""
    return op.op_def.is_stateful


def _is_float(tensor: tf.Tensor) -> bool:
    return tensor.dtype.is_floating or tensor.dtype.is_complex


def _prime(sizes: set[int]) -> int:
    """Returns the least prime number from `_LEAST_COUNT` on that divides none of the sizes."""
    for number in itertools.count(_LEAST_COUNT, 2):
        is_prime = all(number % divisor for divisor in range(3, int(number**0.5) + 1, 2))
        if is_prime and all(size % number for size in sizes):
            return number
    raise AssertionError
