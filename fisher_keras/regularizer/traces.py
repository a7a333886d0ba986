"""Properties of a classifier's losses that are established once for each signature of a batch.

To establish them, graphs are traced and thrown away. Nothing is computed, and nothing changes.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.classifier.batch_axis import call_graph
from fisher_keras.graph.operations import functions_called
from fisher_keras.graph.tracing import specs_of_any_size, trace_and_discard
from fisher_keras.regularizer import preconditions
from fisher_keras.regularizer.losses import BatchLosses, ordinary_gradient


def check_whole_batch(losses: BatchLosses) -> None:
    """Refuses a classifier for which L at other weights would be wrong.

    Raises:
        ValueError: See `fisher_keras.regularizer.preconditions`.
    """
    if tf.executing_eagerly():  # In a graph, the step itself is traced next.
        for _ in range(2):  # To be compared.
            trace_and_discard(losses.part_at, losses.weights)


def check_sub_batches(losses: BatchLosses, *call: Any) -> None:
    """Refuses a classifier for which L~ of sub-batches would be wrong.

    Args:
        losses: Its losses.
        *call: What `losses.call` returned on the classifier's variables; if nothing is given, it
            is traced here.

    Raises:
        ValueError: If its outputs are not those of a classifier. See also
            `fisher_keras.regularizer.preconditions`.
    """
    preconditions.check_layers(losses.model.model)
    check = functools.partial(_check_call, losses)
    if call:
        check(*call)
    else:  # In no init_scope: that would stop the tapes of a layer that takes gradients.
        _trace_call(losses, check)
    if tf.executing_eagerly():  # In a graph, the step itself is traced next.
        rows = tf.range(losses.batch_size)
        sub_batch = losses.sub_batch(tf.constant(0), rows, losses.state)
        twice = losses.second_derivatives
        with preconditions.second_derivatives() if twice else contextlib.nullcontext():
            for _ in range(2):  # To be compared.
                trace_and_discard(losses.hard_label_loss, sub_batch, losses.weights)


def _trace_call(losses: BatchLosses, use: Callable[[tf.Tensor, list[tf.Operation]], Any]) -> None:
    """Traces the classifier's call on its variables, and gives outputs and operations to `use`."""

    def call(x: Any) -> None:
        with losses.replica.local_batch_norm(losses.model.model):
            use(*losses.call(x))

    trace_and_discard(call, specs_of_any_size(losses.batch.x))


def _check_call(losses: BatchLosses, outputs: Any, operations: list[tf.Operation]) -> None:
    """Checks a classifier's call on its variables, traced for a batch of any size."""

    def functions() -> set[str]:
        found: set[str] = set()
        _trace_call(losses, lambda _, others: found.update(functions_called(others)))
        return found

    preconditions.check_calls(operations, functions, losses.model.model)
    size = tf.TensorShape(getattr(outputs, "shape", None))[:1].as_list()
    if size not in ([], [None]):
        raise ValueError(
            f"The model takes batches of {size[0]} examples only, and Algorithm 1 splits them. "
            "Let its shapes follow the batch, as by tf.reshape(x, (-1, ...)). Given: outputs of "
            f"shape {tuple(outputs.shape)} for any number of examples."
        )
    losses.cross_entropy.check_shape(outputs)


def decomposes_over_examples(losses: BatchLosses) -> bool:
    """Returns whether L(B, w) is the mean of the examples' L~ for any sub-batches.

    This is the case if the compiled loss is L~ except for penalties of weights, and if the
    classifier has no state and no random numbers and processes each example by itself.
    """
    classifier = losses.model.model
    if losses.replica_weights is not None or not losses.cross_entropy.equals_compiled_loss:
        return False
    if classifier.non_trainable_variables:
        return False
    (outputs,) = keras.tree.flatten(losses.model.output_spec(losses.batch.x))
    if None in outputs.shape[1:]:  # The sub-batches' outputs are put together in one tensor.
        return False
    specs = specs_of_any_size(losses.batch.x)
    if not call_graph(classifier, specs, training=True).independent:
        return False
    gradient, others = ordinary_gradient(losses)
    # An optimizer leaves a weight alone that the loss does not depend on; it would not, were
    # the gradient 0 instead of None.
    return not others and all(derivative is not None for derivative in gradient)
