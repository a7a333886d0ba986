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
from fisher_keras.classifier.batch_rules import RULES, BatchAxis
from fisher_keras.classifier.inputs import leaves
from fisher_keras.graph import keras_private
from fisher_keras.graph import operations as walker
from fisher_keras.graph.tracing import concrete_function

# Larger than most sizes in a model, and small enough for loops over examples in Python.
_LEAST_COUNT = 251
# Operations that TensorFlow calls stateful, though they give the same each time.
_ONLY_READ = ("Assert", "ReadVariableOp", "ResourceGather")
_REMEDY = (
    "use loss_gradient_gram(training=True), whose gradients take the effect on the others into "
    "account"
)


@dataclasses.dataclass(frozen=True)
class CallGraph:
    """Properties of a traced call of a model.

    Attributes:
        changes_variables: Whether it writes a variable, as moving statistics or a seed.
        operations: The types of the call's operations, in order.
        batch_leading: The outputs of these that have the examples on the leading axis, in order:
            pairs of the operation's index and the output's.
        established: Whether rules alone establish that, for everything between inputs and
            outputs. Otherwise there are operations without a rule, and it is assumed by the
            shapes: for each batch anew the result is to be verified.
        independent: Whether it is established, and neither gradients nor random numbers can let
            examples interact.
    """

    changes_variables: bool = True
    operations: tuple[str, ...] = ()
    batch_leading: frozenset[tuple[int, int]] = frozenset()
    established: bool = False
    independent: bool = False

    def leading_in(self, operations: Sequence[tf.Operation]) -> frozenset:
        """Returns references to the tensors with leading examples in another trace of the call.

        Args:
            operations: Those of the other trace. Where they begin to be of other types, nothing
                is known any more.
        """
        same = self._number_of_same(operations)
        return frozenset(
            operations[index].outputs[output].ref()
            for index, output in self.batch_leading
            if index < same
        )

    def established_in(self, operations: Sequence[tf.Operation]) -> bool:
        """Returns whether rules alone establish `leading_in`."""
        return self.established and self._number_of_same(operations) == len(self.operations)

    def _number_of_same(self, operations: Sequence[tf.Operation]) -> int:
        pairs = zip(self.operations, operations, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1].type, pairs))


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
            if it draws random numbers in inference mode; or if what the call changes cannot be
            kept from changing.
    """
    sizes = [*leaves(specs), *model.variables]
    # An axis is then a multiple of the number only if examples are in it.
    count = _prime({size for sized in sizes for size in sized.shape if size})
    counted = keras.tree.map_structure(
        lambda spec: tf.TensorSpec([count, *spec.shape[1:]], spec.dtype),
        specs,
        none_is_leaf=False,
    )
    trace = _trace(model, counted, training)
    if trace is None:  # Where it takes batches of one size only.
        if not training:
            _check_batch_size(model)
        count, counted = None, specs
        trace = _trace(model, specs, training)
    if trace is None:  # Nothing is taken for granted.
        return CallGraph()
    changes_variables = any(walker.assigns(node) for _, node in walker.nodes(trace.operations))
    if changes_variables:
        trace.check_functions(model)
        # What it would change is dropped, in this and in all traces.
        with stateless.dropping_changes() as scope:
            trace = _trace(model, counted, training)
        trace.check_state(model)
    if not training:
        moves_seeds = changes_variables and keras_private.moves_seeds(scope, model)
        trace.check_randomness(model, moves_seeds)
    if count is None:
        return CallGraph(changes_variables)
    if not training:
        trace.check_interaction(model, count)
    apart = trace.batch_axis(count).apart
    established = all(apart.get(tensor.ref()) for tensor in trace.between())
    return CallGraph(
        changes_variables,
        tuple(op.type for op in trace.operations),
        trace.positions(apart),
        established,
        established and not trace.has_hidden_interaction(),
    )


@dataclasses.dataclass(frozen=True)
class _Trace:
    """The graph of a call."""

    graph: tf.Graph
    inputs: list[tf.Tensor]
    outputs: list[tf.Tensor]
    operations: list[tf.Operation]

    def check_functions(self, model: keras.Model) -> None:
        """Refuses a `tf.function` that writes: it keeps its trace, with or without the writing."""
        for op in self.operations:
            if walker.calls_function(op) and any(t.dtype == tf.resource for t in op.inputs):
                raise ValueError(
                    f"A tf.function inside of the model {model.name!r} ({op.name!r}) may change "
                    "variables, which an evaluation must not. Remove tf.function there: Keras "
                    "makes a graph of the whole model anyway."
                )

    def check_state(self, model: keras.Model) -> None:
        """Refuses what is assigned in spite of `stateless.dropping_changes`."""
        for op, node in walker.nodes(self.operations):
            if walker.assigns(node):
                raise ValueError(
                    f"The model {model.name!r} would assign to something that Keras does not know "
                    f"({node.op}), and an evaluation must not change a model. Make the variable "
                    f"with add_weight or keras.Variable. Given: {walker.layer_of(op, model)}."
                )

    def check_randomness(self, model: keras.Model, moves_seeds: bool) -> None:
        """Raises a ValueError if outputs depend on random numbers, which metrics would freeze."""
        used = walker.upstream(self.outputs)
        operations = [op for op in self.operations if any(t.ref() in used for t in op.outputs)]
        for op, node in walker.nodes(operations):
            if walker.is_random(node) or (moves_seeds and walker.draws_by_seed(node)):
                raise ValueError(
                    f"The model {model.name!r} draws random numbers in inference mode, too "
                    f"({node.op}): its losses differ each time. Call that layer with "
                    f"training=False, or leave it out. Given: {walker.layer_of(op, model)}."
                )

    def check_interaction(self, model: keras.Model, count: int) -> None:
        """Raises a ValueError if something is computed of all examples that outputs depend on."""
        for tensor in self.between():
            op = tensor.op
            normalizes = op.type.startswith("FusedBatchNorm") and op.get_attr("is_training")
            # No axis of the examples means that all were reduced to one, two that each meets each
            # other. Integers, such as shapes, have no gradient.
            differentiable = tensor.dtype.is_floating or tensor.dtype.is_complex
            if not normalizes and (_number_of_axes(tensor, count) == 1 or not differentiable):
                continue
            if normalizes or self._depend_on(tensor):
                raise interaction(
                    model,
                    f"{op.name!r} takes them together, as a normalization by the moments of the "
                    "batch does, so that no loss is of one example",
                )

    def between(self) -> list[tf.Tensor]:
        """Returns all that is computed from the inputs, and outputs from it."""
        outputs_use = walker.upstream(self.outputs)
        return [ref.deref() for ref in walker.downstream(self.inputs) if ref in outputs_use]

    def has_hidden_interaction(self) -> bool:
        """Returns whether gradients or random numbers may let examples interact."""
        used = dict.fromkeys(tensor.op for tensor in self.between())
        # A custom gradient is code that is traced later, if at all.
        custom = any("_gradient_op_type" in op.node_def.attr for op in used)
        return custom or any(
            op.op_def.is_stateful and op.type not in _ONLY_READ for op in self.operations
        )

    def _depend_on(self, tensor: tf.Tensor) -> bool:
        """Returns whether the outputs have a derivative by a tensor."""
        with self.graph.as_default():
            return tf.gradients(self.outputs, [tensor])[0] is not None

    def batch_axis(self, count: int) -> BatchAxis:
        """Finds the tensors that keep examples apart.

        Where an operation has a rule, that decides. Of any other it is assumed, if so do its
        inputs and if its output has a row for each example.
        """
        found = BatchAxis(
            count,
            varying=walker.downstream(self.inputs).keys(),
            apart=dict.fromkeys((tensor.ref() for tensor in self.inputs), True),
        )
        for op in self.operations:
            # Operations come in the order in which they were made: inputs are decided by now.
            inputs = [tensor for tensor in op.inputs if found.varies(tensor)]
            if not inputs or not all(map(found.is_apart, inputs)):
                continue
            rule = RULES.get(op.type)
            if rule is not None and not rule(op, found):
                continue
            established = rule is not None and all(found.apart[t.ref()] for t in inputs)
            for tensor in op.outputs:
                # A rule may give an example several rows; without one, only N rows are believed.
                if _has_rows(tensor, count, only_one=rule is None):
                    found.apart[tensor.ref()] = established
        return found

    def positions(self, apart: Any) -> frozenset[tuple[int, int]]:
        """Returns the places of tensors among the operations' outputs."""
        return frozenset(
            (index, output)
            for index, op in enumerate(self.operations)
            for output, tensor in enumerate(op.outputs)
            if tensor.ref() in apart
        )


def interaction(model: keras.Model, reason: str, remedy: str = _REMEDY) -> ValueError:
    """Returns the error about a model in which the examples of a batch interact.

    Args:
        model: The model.
        reason: What shows it.
        remedy: What to do instead of changing the model.
    """
    return ValueError(
        f"Examples of a batch interact in the model {model.name!r}, in inference mode, too: "
        f"{reason}. Change the layer that does it, or {remedy}."
    )


def _check_batch_size(model: keras.Model) -> None:
    """Raises a ValueError if a model that was not traced declares the size of its batches."""
    declared = [tensor.shape[0] for tensor in getattr(model, "inputs", None) or []]
    if any(declared):
        raise ValueError(
            f"The model {model.name!r} takes batches of {max(filter(None, declared))} examples "
            "only, as a stateful layer does, and metrics are of batches of any size. Build it "
            "with keras.Input(shape), without batch_size, batch_shape and stateful=True."
        )


def _trace(model: keras.Model, specs: Any, training: bool) -> _Trace | None:
    """Returns the trace, or None where there is none for this number of examples."""
    traces = []

    def call(x: Any) -> None:
        graph = tf.compat.v1.get_default_graph()
        with walker.traced_operations() as operations:
            outputs = keras.tree.flatten(stateless.call(model, x, training))
        traces.append(_Trace(graph, leaves(x), outputs, operations))

    try:
        with tf.init_scope():
            concrete_function(tf.function(call, autograph=False), specs)
    except Exception:  # Of any kind. What is wrong with the model itself, its own trace raises.
        return None
    return traces[0]


def _has_rows(tensor: tf.Tensor, count: int, only_one: bool) -> bool:
    """Returns whether the leading axis alone is the examples', with one or several rows each."""
    shape = tensor.shape
    if not shape.rank or not shape[0] or _number_of_axes(tensor, count) != 1:
        return False
    return shape[0] == count if only_one else shape[0] % count == 0


def _number_of_axes(tensor: tf.Tensor, count: int) -> int:
    """Returns the number of axes that are the examples'; 1 where it is not known."""
    if tensor.shape.rank is None or None in tensor.shape.as_list():
        return 1
    number = 0
    for size in tensor.shape:
        # An axis that joins two of the examples' counts twice.
        while size and size % count == 0:
            size, number = size // count, number + 1
    return number


def _prime(sizes: set[int]) -> int:
    """Returns the least prime number from `_LEAST_COUNT` on that divides none of the sizes."""
    for number in itertools.count(_LEAST_COUNT, 2):
        # All numbers here are odd, so that 2 need not be tried.
        is_prime = all(number % divisor for divisor in range(3, int(number**0.5) + 1, 2))
        if is_prime and all(size % number for size in sizes):
            return number
    raise AssertionError
