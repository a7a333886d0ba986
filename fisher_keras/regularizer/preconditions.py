"""Preconditions of Algorithm 1, established from the graph that is traced.

L~ is evaluated at w and at w - alpha g_i, with values in place of the classifier's variables
(`stateless.scope`). The result is right if the graph of L~ uses only these values, always computes
the same, and has no side effects. All functions here look at operations that have just been
traced. They cost time when a step is traced, and none when it runs.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.classifier.inputs import leaves
from fisher_keras.classifier.precision import coarse_formats, compute_dtypes
from fisher_keras.classifier.wrapper import ClassifierWrapper
from fisher_keras.graph import keras_private
from fisher_keras.graph import second_derivatives as second
from fisher_keras.graph.operations import (
    assigns,
    calls_function,
    contents,
    functions_called,
    is_random,
    layer_of,
    nodes,
    runs_python,
    sources,
)
from fisher_keras.regularizer.arithmetic import LossScale

_REMEDY = (
    "Use gradient='finite_difference', in half precision with step_length=0.1. Given: "
    "gradient='hessian_vector_product'."
)
# In coarse formats about three times the relative rounding: from there on, the difference is near
# that in float64 once the training has begun (benchmarks/README.md). At 0.1 it is so before, too.
# In float32 it is within about a tenth of that in float64 at 1e-5, and within a hundredth at 1e-4.
# The paper's step is 1e-5 if alpha is 1e-6 and the norm of g_i is 10, the default of `clip_norm`.
LEAST_ALPHA = 1e-6
LEAST_STEP_LENGTHS = {
    "bfloat16": 0.025,
    "int8": 0.1,
    "float32 with products in bfloat16": 0.025,
    "float16": 0.003,
    "TensorFloat-32": 0.003,
    "float32": 1e-5,
}


def check_layers(model: keras.Model) -> None:
    """Checks that no layer has a state for each example of a batch.

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


def check_difference(model: Any) -> None:
    """Checks that the options of a finite difference fit the precision, and each other.

    Args:
        model: A `FisherRegularizedModel`.

    Raises:
        ValueError: If the rounding of the classifier is too coarse for a step of alpha, or for
            `step_length`; or if these options are given without a finite difference.
    """
    step_length, formats = model.step_length, coarse_formats(model.model)
    if model.gradient != "finite_difference":
        _check_product(model, formats)
        return
    is_coarse = bool(formats)
    if "float32" in compute_dtypes(model.model):
        formats = {"float32": "train in float64"} | formats
    if not formats:
        return
    name = max(formats, key=LEAST_STEP_LENGTHS.get)
    remedy, least = f"or {formats[name]}", LEAST_STEP_LENGTHS[name]
    if "int8" not in formats:
        remedy = f"gradient='hessian_vector_product', {remedy}"
    if step_length is None:
        fits = not is_coarse and model.alpha >= _rounded_down(LEAST_ALPHA)
    else:
        fits = step_length >= _rounded_down(least)
    if fits:
        return
    if step_length is not None:
        raise ValueError(
            f"step_length must be {least:g} or greater with a model that computes in {name}: "
            f"nearer to w, the difference is lost in rounding. Use a longer one, {remedy}. Given: "
            f"step_length={step_length:g}."
        )
    raise ValueError(
        f"gradient='finite_difference' cannot be used with a model that computes in {name}: w and "
        f"w - alpha g_i (alpha={model.alpha:g}) give losses and gradients that are equal to "
        "within its rounding, so that their difference is noise. Use "
        f"{'' if is_coarse else f'alpha={LEAST_ALPHA:g} or greater, '}step_length=0.1 ({least:g} "
        f"or greater), {remedy}."
    )


def _check_product(model: Any, formats: dict[str, str]) -> None:
    if model.step_length is not None or model.direction != "descent":
        raise ValueError(
            "step_length and direction are of gradient='finite_difference': leave them out, or "
            "use that (by a new model, where one cannot be changed without the other). Given: "
            f"step_length={model.step_length!r}, direction={model.direction!r}, "
            f"gradient={model.gradient!r}."
        )
    if "int8" in formats:
        raise ValueError(
            "TensorFlow drops second derivatives where layers round their inputs to int8. Use "
            f"step_length=0.1, or {formats['int8']}. Given: gradient='hessian_vector_product'."
        )


def _rounded_down(least: float) -> float:
    """Returns a limit that the same number passes if it was rounded to float32."""
    return least * (1 - 1e-6)


def check_unscaled(optimizer: keras.optimizers.Optimizer) -> None:
    """Raises a ValueError if an optimizer takes what it applies for the gradient of a scaled loss.

    Args:
        optimizer: The optimizer that a gradient without a scale is applied with.
    """
    if LossScale.of(optimizer).factor is not None:
        raise ValueError(
            "regularized_gradients gives gradients without a scale, and this optimizer would "
            "divide them by its loss scale. For a custom training loop, compile without one: "
            "auto_scale_loss=False, or no loss_scale_factor. Given: update_state=True with the "
            f"optimizer {type(optimizer).__name__}."
        )


def normalizes_batches(model: keras.Model) -> bool:
    """Returns whether a model has batch normalization that takes its moments from a batch."""
    layers = keras_private.all_layers(model)
    return any(
        isinstance(one, keras.layers.BatchNormalization) and one.trainable for one in layers
    )


def check_calls(
    operations: Sequence[tf.Operation], functions: Callable[[], set[str]], model: keras.Model
) -> None:
    """Checks, before other values replace a model's weights, that no function captured them.

    A lasting `tf.function` is traced once, with the variables of its first call. If it were traced
    with the values that replace them, it could never be called again. A function that each call
    makes again, such as that of Keras' grouped convolution, has another name each time.

    Args:
        operations: Those of a call of the model on its variables.
        functions: Calls the model again, and returns the names of the functions that it calls.
        model: The model.

    Raises:
        ValueError: If a lasting function holds a trainable variable of the model.
    """
    calls = list(filter(calls_function, operations))
    try:
        check_variables(calls, model)
    except ValueError:
        lasting = functions()
        check_variables([op for op in calls if functions_called([op]) & lasting], model)


def check_same_call(
    calls: dict[str, list],
    model: ClassifierWrapper,
    x: Any,
    outputs: Any,
    operations: list[tf.Operation],
) -> None:
    """Checks that all traces of a model's call are the same.

    Args:
        calls: The `contents` of the first trace, by the shapes of its inputs. It is added here.
        model: The model around the classifier.
        x: The inputs of a trace.
        outputs: Its results.
        operations: Its operations.

    Raises:
        ValueError: If it differs from the first.
    """
    later = contents(operations, [outputs, keras_private.penalties_of_call(model)])
    if "VarIsInitializedOp" in later[0][0]:  # TensorFlow traces it again.
        return
    first = calls.setdefault(str([leaf.shape for leaf in leaves(x)]), later)
    pairs = zip(first, later, strict=True)
    # A graph keeps small tensors from outside: for a later call, they are not made again.
    if not any(now[0] == was[0] and now[1] <= was[1] for was, now in pairs):
        raise ValueError(
            "Training evaluates the model at several weights, and each trace of its call is "
            "another function: it draws random numbers of Python or NumPy, or changes an "
            "attribute that it depends on. Draw them with keras.random and a "
            "keras.random.SeedGenerator, and keep a state by add_weight. Given: model "
            f"{model.model.name!r}."
        )


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


def check_unassigned(weights: list[keras.Variable], before: list, after: list) -> None:
    """Checks that a call leaves the trainable variables to the optimizer.

    Args:
        weights: The variables.
        before: Their values in the scope of an evaluation.
        after: The values after the model was called: the same tensors, unless it assigns others.

    Raises:
        ValueError: If the call assigns to them, as spectral normalization does to its kernels.
    """
    for variable, value, now in zip(weights, before, after, strict=True):
        if now is not value:
            raise ValueError(
                "The model assigns to a weight in its call, as keras.layers.SpectralNormalization "
                "does: the step would be that of other weights than it is applied to. Constrain "
                "the weight, or compute from it without assigning. Given: weight "
                f"{variable.path!r}."
            )


def check_changes(
    scope: keras.StatelessScope,
    wrapper: ClassifierWrapper,
    what: str,
    remedy: str | None = None,
    state: Sequence[tf.Tensor] = (),
) -> None:
    """Checks that L is the same function in all evaluations of a step.

    Each starts from the same values of the classifier's variables, and no others.

    Args:
        scope: The scope in which L was evaluated.
        wrapper: The model around the classifier.
        what: What evaluates L more than once.
        remedy: What to use instead, where L is evaluated on sub-batches: then metrics that
            `compute_loss` or a layer updates are refused, too, for nothing adds up their changes.
        state: The values of the non-trainable variables before, on a sub-batch.

    Raises:
        ValueError: If L assigns to a variable of something else, or to a counter on a sub-batch.
    """
    moved = set(map(id, stateless.statistics_and_seeds(wrapper.model) if state else ()))
    for variable, value in zip(wrapper.model.non_trainable_variables, state, strict=False):
        if id(variable) not in moved and scope.get_current_value(variable) is not value:
            raise ValueError(
                f"{what} moves a state by the mean over the sub-batches, which no counter or flag "
                f"can follow. Use {remedy}. Given: {variable.path!r} of dtype {variable.dtype}."
            )
    others = keras_private.assigned_others(scope, wrapper.model.variables)
    if not others:  # As in most steps; in eager mode, each evaluation comes here.
        return
    # Keras leaves out those of models inside of the classifier.
    models = [m for m in keras_private.all_layers(wrapper.model) if isinstance(m, keras.Model)]
    known = itertools.chain(wrapper.metrics, *map(keras_private.metrics_made_by, models))
    metrics = [m for m in known if others & set(map(id, m.variables))]
    if remedy is None:
        others -= {id(variable) for metric in metrics for variable in metric.variables}
    if not others:
        return
    raise ValueError(
        f"{what} evaluates the loss several times in a step, each time with the same values of "
        "the classifier's variables. What else the classifier or its loss changes, such as a "
        "metric or the seed that all of keras.random shares, would be wrong afterwards. Make it "
        "a variable of the classifier (for random numbers a keras.random.SeedGenerator)"
        f"{'' if remedy is None else f', or use {remedy}'}. Given: "
        f"{f'the metric {metrics[0].name!r}' if metrics else 'a loss that changes a variable'}."
    )


def check_evaluation(
    operations: Iterable[tf.Operation], model: keras.Model, repeated: bool = True
) -> None:
    """Checks that a loss and its gradient are pure functions of the given values.

    Args:
        operations: Those of the loss and gradient, traced with values for the model's variables.
        model: The model.
        repeated: Whether they are evaluated at other weights, too, with the same random numbers.

    Raises:
        ValueError: If they read a trainable variable of the model, assign to a variable, or, if
            they are repeated, draw random numbers that cannot be drawn again.
    """
    check_variables(operations, model)
    for operation, node in nodes(operations):
        if assigns(node):
            raise ValueError(
                "Training evaluates the model at several weights, and each evaluation would "
                f"assign to a variable that Keras does not know ({node.op}). Make it with "
                "add_weight or keras.Variable, and assign to it outside of any tf.function. "
                f"Given: {layer_of(operation, model)}."
            )
        if repeated and (is_random(node) or runs_python(node)):
            raise ValueError(
                "Training evaluates the model with the same random numbers at several weights, "
                f"and those of {node.op} cannot be repeated. Draw them with keras.random and a "
                "keras.random.SeedGenerator, or use a layer of Keras; read no clock and no data "
                f"set in a call. Given: {layer_of(operation, model)}."
            )


def check_second_derivatives(
    operations: Iterable[tf.Operation], weights: list[tf.Tensor], model: keras.Model
) -> None:
    """Checks that no second derivative of L~ is dropped (see `graph.second_derivatives`)."""
    second.check_second_derivatives(operations, weights, model, _REMEDY)


def second_derivatives() -> contextlib.AbstractContextManager:
    """Returns the context for tracing L~ if its second derivatives are needed."""
    return second.exact_second_derivatives(_REMEDY)


def check_gradients(given: list, ordinary: list, weights: list[keras.Variable]) -> None:
    """Checks that a gradient by values in place of weights reaches all weights that it should.

    Args:
        given: The gradient, None where the loss does not depend on a weight.
        ordinary: The gradient from an ordinary backward pass on the variables.
        weights: The variables.

    Raises:
        ValueError: If a weight has a gradient only in the ordinary pass.
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
