"""The walker over traced operations and the functions that they call. Nothing is computed."""

import collections
import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.graph import keras_private

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
# These return only a tensor's shape: what depends on these alone does not depend on its values.
_SHAPE_OPS = ("Shape", "ShapeN", "Size", "Rank")
# These give others each time, and have no attribute "seed" to tell them by: seeds may be the time,
# and noise may come from a data set.
_RANDOM = (
    *("Rng", "StatefulRandom", "StatefulStandard", "StatefulTruncated", "StatefulUniform"),
    *("IteratorGetNext", "NonDeterministicInts", "Timestamp"),
)
# And these the same numbers for the same seed.
_BY_SEED = ("StatelessMultinomial", "StatelessParam", "StatelessRandom", "StatelessTruncated")
_ASSIGNING = (
    *("Assign", "LookupTableImport", "LookupTableInsert", "LookupTableRemove", "QueueDequeue"),
    *("QueueEnqueue", "ResourceApply", "ResourceCountUpTo", "ResourceScatter"),
    *("ResourceSparseApply", "ResourceStridedSliceAssign"),
)
# How many of these a trace of a call has depends on the scope of its weights.
_OF_SCOPE = (
    *("Assert", "AssignVariableOp", "Case", "Const", "EmptyTensorList", "GatherNd", "GatherV2"),
    *("Identity", "If", "NoOp", "PartitionedCall", "Placeholder", "ReadVariableOp"),
    *("ResourceGather", "ResourceGatherNd", "StatefulPartitionedCall", "StatelessCase"),
    *("StatelessIf", "StatelessWhile", "While", "ZerosLike"),
)


@contextlib.contextmanager
def traced_operations() -> Iterator[list[tf.Operation]]:
    """Collects the operations that are added to the graph in scope; in eager mode there are none.

    Yields:
        The list, filled at the end.
    """
    operations: list[tf.Operation] = []
    if tf.executing_eagerly():
        yield operations
        return
    graph = tf.compat.v1.get_default_graph()
    before = len(graph.get_operations())
    yield operations
    operations += graph.get_operations()[before:]


def nodes(
    operations: Iterable[tf.Operation], add_shapes: bool = False
) -> Iterator[tuple[tf.Operation, Any]]:
    """Yields operations and those inside of the functions that they call, as NodeDefs.

    Bodies of loops and branches are functions, too. Each NodeDef comes with the operation that it
    is, or that calls it. Constants and placeholders of the graph itself are left out.

    Args:
        operations: Of one graph.
        add_shapes: Whether the nodes inside of functions have an attribute "_output_shapes".
    """
    library: dict[str, Any] = {}
    for operation in operations:
        if operation.type in ("Const", "Placeholder"):  # May be large, and tell nothing.
            continue
        node = operation.node_def
        yield operation, node
        called, seen = called_functions(node), set()
        if called and not library:
            library = _library(operation.graph, add_shapes)
        while called:
            name = called.pop()
            if name in seen or name not in library:
                continue
            seen.add(name)
            for inner in library[name].node_def:
                yield operation, inner
                called |= called_functions(inner)


def contents(operations: Sequence[tf.Operation], results: Any) -> list[tuple]:
    """Returns the types of a call's operations, and the constants that these take.

    They are those of all operations, and those of the operations that results need: a tape in the
    call computes more where it watches variables, and nobody uses that.
    """
    tensors = tf.nest.flatten(results, expand_composites=True)
    needed = upstream([tensor for tensor in tensors if tf.is_symbolic_tensor(tensor)])
    used = [op for op in operations if any(output.ref() in needed for output in op.outputs)]
    return [_contents(operations), _contents(used)]


def _contents(operations: Sequence[tf.Operation]) -> tuple[collections.Counter, set[bytes]]:
    types = collections.Counter(o.type for o in operations if o.type not in _OF_SCOPE)
    constants = (o for o in operations if o.type == "Const")
    taken = (o for o in constants if any(c.type in types for c in o.outputs[0].consumers()))
    return types, {o.get_attr("value").SerializeToString() for o in taken}


def called_functions(node: Any) -> set[str]:
    """Returns the names of the functions that a NodeDef calls."""
    names = set()
    for attribute in node.attr.values():
        names |= {f.name for f in [attribute.func, *attribute.list.func] if f.name}
    return names


def functions_called(operations: Iterable[tf.Operation]) -> set[str]:
    """Returns the names of the functions that operations call by themselves."""
    return set().union(*(called_functions(operation.node_def) for operation in operations))


def calls_function(operation: tf.Operation) -> bool:
    """Returns whether an operation is the call of a `tf.function`."""
    return operation.type in _CALLS


def assigns(node: Any) -> bool:
    """Returns whether a NodeDef assigns to a variable."""
    return node.op.startswith(_ASSIGNING)


def is_random(node: Any) -> bool:
    """Returns whether a NodeDef draws other numbers each time it runs."""
    if node.op.startswith("CudnnRNN"):
        return node.attr["dropout"].f > 0
    if "seed" in node.attr:
        return not node.attr["deterministic"].b
    return node.op.startswith(_RANDOM)


def draws_by_seed(node: Any) -> bool:
    """Returns whether a NodeDef draws the numbers that belong to a given seed."""
    return node.op.startswith(_BY_SEED)


def runs_python(node: Any) -> bool:
    """Returns whether a NodeDef runs code that is not in the graph."""
    return node.op in ("PyFunc", "EagerPyFunc")


def layer_of(operation: tf.Operation, model: keras.Model) -> str:
    """Returns the layer that an operation belongs to, by the scopes in its name."""
    names = {layer.name for layer in keras_private.all_layers(model)}
    for scope in reversed(operation.name.split("/")):
        for name in (scope, re.sub(r"_\d+$", "", scope)):
            if name in names:
                return f"layer {name!r}"
    return f"operation {operation.name!r}"


def downstream(tensors: Sequence[tf.Tensor], avoiding: Any = ()) -> dict:
    """Returns references to all that is computed from tensors without going through others.

    What depends on their shapes alone is left out.

    Args:
        tensors: The tensors, which are among those that are returned.
        avoiding: References to the others.

    Returns:
        The references as the keys of a dictionary, a set that keeps its order: results are the
        same to the bit each time.
    """
    found = dict.fromkeys(tensor.ref() for tensor in tensors)
    waiting = list(tensors)
    while waiting:
        for op in waiting.pop().consumers():
            if op.type in _SHAPE_OPS:
                continue
            new = [t for t in op.outputs if t.ref() not in found and t.ref() not in avoiding]
            found |= dict.fromkeys(t.ref() for t in new)
            waiting += new
    return found


def upstream(tensors: Sequence[tf.Tensor]) -> dict:
    """Returns references to all that tensors are computed from, as the keys of a dictionary."""
    found = dict.fromkeys(tensor.ref() for tensor in tensors)
    waiting = list(tensors)
    while waiting:
        new = [t for t in waiting.pop().op.inputs if t.ref() not in found]
        found |= dict.fromkeys(t.ref() for t in new)
        waiting += new
    return found


def depending_on(
    tensors: Iterable[Any], operations: Iterable[tf.Operation]
) -> Iterator[tuple[tf.Operation, Any]]:
    """Yields the `nodes` of those operations that depend on some tensors.

    Args:
        tensors: Tensors or handles of variables, of this graph or captured from outside of it.
        operations: Of one graph, in the order in which they were made: one pass is then enough.
    """
    source = sources()
    depending = {id(source(tensor)) for tensor in tensors}
    for operation, node in nodes(operations):
        if any(id(source(tensor)) in depending for tensor in operation.inputs):
            depending |= {id(tensor) for tensor in operation.outputs}
            yield operation, node


def sources() -> Callable[[Any], Any]:
    """Returns a function that takes a tensor to the one that its graph has captured as it."""
    captures = functools.cache(
        lambda graph: {id(inner): outer for outer, inner in getattr(graph, "captures", ())}
    )

    def source(tensor: Any) -> Any:
        while not hasattr(tensor, "numpy") and id(tensor) in captures(tensor.graph):
            tensor = captures(tensor.graph)[id(tensor)]
        return tensor

    return source


def behind(tensor: tf.Tensor, transparent: tuple[str, ...]) -> tf.Tensor:
    """Returns the tensor that operations of some types only pass on."""
    while tensor.op.type in transparent:
        tensor = tensor.op.inputs[0]
    return tensor


def producer(tensor: tf.Tensor, transparent: tuple[str, ...]) -> str:
    """Returns the type of the operation that produces a tensor, also inside called functions.

    Args:
        tensor: A tensor of a graph.
        transparent: Types of operations that only pass a tensor on; they are passed over.

    Returns:
        The type; "" if a function returns one of its arguments.
    """
    tensor = behind(tensor, transparent)
    op, index = tensor.op, tensor.value_index
    if not calls_function(op):
        return op.type
    # The functions of a graph have no public side but its serialized form.
    library = _library(op.graph)
    function = library[op.get_attr("f").name]
    while True:
        by_name = {node.name: node for node in function.node_def}
        source = function.ret[function.signature.output_arg[index].name]
        node = by_name.get(source.split(":")[0])
        while node is not None and node.op in transparent:
            source = node.input[0]
            node = by_name.get(source.split(":")[0])
        if node is None:  # An argument of the function.
            return ""
        if node.op not in _CALLS:
            return node.op
        function, index = library[node.attr["f"].func.name], int(source.split(":")[-1])


def _library(graph: tf.Graph, add_shapes: bool = False) -> dict[str, Any]:
    """Returns the functions of a graph by name, as FunctionDefs."""
    definition = graph.as_graph_def(add_shapes=add_shapes).library
    return {function.signature.name: function for function in definition.function}
