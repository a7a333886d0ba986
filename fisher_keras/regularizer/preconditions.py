"""What Algorithm 1 takes for granted of a classifier, established from the graph that is traced.

L~ is evaluated at w and at w - alpha g_i, by values that stand in for the classifier's variables
(`stateless.scope`). That is right if its graph computes with these values alone, always does the
same, and leaves nothing behind. All functions here look at operations that have just been traced:
they cost time when a step is traced, and none when it runs.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.graph import keras_private
from fisher_keras.graph.operations import (
    assigns,
    called_functions,
    calls_function,
    is_random,
    layer_of,
    nodes,
    sources,
    traced_operations,
)
from fisher_keras.graph.second_derivatives import (
    TAKEN_FOR_CONSTANT,
    exact_second_derivatives,
)

_WAY_OUT = "Use gradient='finite_difference'. Given: gradient='hessian_vector_product'."
# Functions of TensorFlow that hold constant what makes no difference: the shift of a logarithm of
# sums, and a mean that is not held constant any more in `exact_moments`.
_HARMLESS = re.compile(r"(ReduceLogSumExp|moments)(_\d+)?/StopGradient")


def check_layers(model: keras.Model) -> None:
    """Checks that no layer holds something for each example of a batch.

    Args:
        model: The model.

    Raises:
        ValueError: If one is a stateful RNN.
    """
    for layer in keras_private.all_layers(model):
        if getattr(layer, "stateful", False):
            raise ValueError(
                "A stateful RNN carries a state from the examples of one batch to those of the "
                "next, and Algorithm 1 splits the batch at random. Use stateful=False. Given: "
                f"layer {layer.name!r} with stateful=True."
            )


def check_calls(call: Callable[[], Any], model: keras.Model) -> Any:
    """Checks, before other values stand in for a model's weights, that no function captured them.

    A `tf.function` that lasts is traced once, with the variables of its first call. Traced with
    values that stand in for them, it could never be called again. One that is made anew in each
    call, such as that of Keras' grouped convolution, has another name each time.

    Args:
        call: Calls the model, in a graph that is thrown away.
        model: The model.

    Returns:
        What the call returns.

    Raises:
        ValueError: If a function that lasts holds a trainable variable of the model.
    """
    with traced_operations() as operations:
        result = call()
    try:
        check_variables(filter(calls_function, operations), model)
    except ValueError:
        with traced_operations() as others:
            call()
        lasting = {name for op in others for name in called_functions(op.node_def)}
        check_variables(
            [op for op in operations if called_functions(op.node_def) & lasting], model
        )
    return result


def check_variables(operations: Iterable[tf.Operation], model: keras.Model) -> None:
    """Checks that a model computes with the values that are given for its weights.

    Args:
        operations: Those of a loss and its gradient, traced with values for the model's variables.
        model: The model.

    Raises:
        ValueError: If an operation takes a trainable variable itself.
    """
    weights = stateless.weights(model)
    by_handle = dict(zip(map(id, stateless.handles(weights)), weights, strict=True))
    source = sources()
    for operation in operations:
        for tensor in operation.inputs:
            if tensor.dtype == tf.resource and id(source(tensor)) in by_handle:
                raise _captured(by_handle[id(source(tensor))])


def check_evaluation(operations: Iterable[tf.Operation], model: keras.Model) -> None:
    """Checks that a loss and its gradient depend on what is given alone, and change nothing.

    Args:
        operations: Those of the loss and gradient, traced with values for the model's variables.
        model: The model.

    Raises:
        ValueError: If they read a trainable variable of the model, draw random numbers that
            cannot be drawn again, or assign to a variable.
    """
    check_variables(operations, model)
    for operation, node in nodes(operations):
        if is_random(node):
            raise ValueError(
                "Training evaluates the model with the same random numbers at several weights, "
                f"and those of {node.op} cannot be repeated. Draw them with keras.random and a "
                "keras.random.SeedGenerator, or use a layer of Keras. Given: "
                f"{layer_of(operation, model)}."
            )
        if assigns(node):
            raise ValueError(
                "Training evaluates the model at several weights, and each evaluation would "
                f"assign to a variable that Keras does not know ({node.op}). Make it with "
                "add_weight or keras.Variable, and assign to it outside of any tf.function. "
                f"Given: {layer_of(operation, model)}."
            )


def check_second_derivatives(
    operations: Iterable[tf.Operation], weights: list[tf.Tensor], model: keras.Model
) -> None:
    """Checks that no derivative of a gradient is left out silently.

    Args:
        operations: Those of a loss and its gradient, in the order in which they were made.
        weights: What the loss is a function of.
        model: The model, to name the layer.

    Raises:
        ValueError: If TensorFlow takes one of the operations as not differentiable, or if the
            model holds constant what depends on weights.
    """
    source = sources()
    depending = {id(source(weight)) for weight in weights}
    for operation, node in nodes(operations):
        if any(id(source(tensor)) in depending for tensor in operation.inputs):
            depending |= {id(tensor) for tensor in operation.outputs}
            if _holds_constant(node, operation.name) or node.op in TAKEN_FOR_CONSTANT:
                raise ValueError(
                    f"TensorFlow takes the derivative of {node.op} in {layer_of(operation, model)} "
                    f"for zero, which makes second derivatives wrong. {_WAY_OUT}"
                )


@contextlib.contextmanager
def second_derivatives() -> Iterator[None]:
    """The context in which L~ is traced where its second derivatives are asked for.

    Raises:
        ValueError: If an operation has none that TensorFlow knows of.
    """
    try:
        with exact_second_derivatives(_WAY_OUT):
            yield
    except (NotImplementedError, TypeError) as error:  # Of loops and recomputed functions.
        bold = re.search(r"\x1b\[1m(.*?)\x1b\[0m", str(error), re.DOTALL)  # By Keras.
        raise ValueError(
            f"TensorFlow gives no second derivative: {bold[1] if bold else error} {_WAY_OUT}"
        ) from error


def check_gradients(given: list, ordinary: list, weights: list[keras.Variable]) -> None:
    """Checks that a gradient by values that stand in for weights reaches all that it should.

    Args:
        given: The gradient, None where the loss does not depend on a weight.
        ordinary: The same of an ordinary backward pass on the variables.
        weights: The variables.

    Raises:
        ValueError: If a weight has a gradient in the ordinary pass alone.
    """
    for stateless_one, one, weight in zip(given, ordinary, weights, strict=True):
        if stateless_one is None and one is not None:
            raise _captured(weight)


def _captured(weight: keras.Variable) -> ValueError:
    return ValueError(
        "Training evaluates the model at other weights, too, which code that has captured a "
        "variable itself does not see: tf.function, keras.remat, tf.recompute_grad, "
        "tf.custom_gradient or a loaded SavedModel. Call the layer without that. Given: weight "
        f"{weight.path!r}."
    )


def _holds_constant(node: Any, name: str) -> bool:
    """Returns whether a node holds constant what has a derivative."""
    if node.op != "StopGradient" or not tf.as_dtype(node.attr["T"].type).is_floating:
        return False  # A shape, such as the one that the gradient of average pooling holds.
    return not _HARMLESS.search(name)
