"""Second derivatives missing in TensorFlow: registered where simple, refused otherwise.

A gradient that TensorFlow registers as not differentiable has a derivative of zero in a Hessian,
without a word; one that it does not register at all is an error. Resizing an image is linear, so
that the derivative of its gradient is the resizing itself.
"""

import contextlib
import contextvars
import functools
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.graph.operations import depending_on, layer_of

# A function of TensorFlow that holds constant what makes no difference: the shift of a logarithm
# of sums.
_HARMLESS = re.compile(r"(^|/)ReduceLogSumExp(_\d+)?/StopGradient(_\d+)?$")
_INSTALLING = threading.Lock()
_EXACT = contextvars.ContextVar("exact_second_derivatives", default=False)
# First derivatives that TensorFlow registers as not differentiable, though they are. It has no
# public list; tests/graph/test_second_derivatives.py compares this one with its own.
TAKEN_FOR_CONSTANT = (
    "FakeQuantWithMinMaxArgsGradient",
    "FakeQuantWithMinMaxVarsGradient",
    "FakeQuantWithMinMaxVarsPerChannelGradient",
    "ResizeBilinearGrad",
    "SparseAddGrad",
)


@contextlib.contextmanager
def exact_second_derivatives(remedy: str) -> Iterator[None]:
    """The context in which a function is traced that takes second derivatives.

    It has moments and a bilinear resizing that can be differentiated twice, with the same values
    and gradients, and its error for what has no second derivative is one of a line.

    Args:
        remedy: What to do without them, a sentence that ends the error.

    Raises:
        ValueError: If an operation has no second derivative that TensorFlow knows of, as a loop
            or a recomputed function may have none.
    """
    _lets_ask(tf.nn, "moments", _moments)
    _lets_ask(tf.image, "resize", _resize)
    token = _EXACT.set(True)
    try:
        yield
    except LookupError as error:
        if type(error) is not LookupError:  # A KeyError is something else.
            raise
        text = str(error)
        operation = re.search(r"op type: (\w+)|no entry for: (\w+)", text)
        where = re.search(r"operation ?'([^']+)'|calling (\S+)\.call", text)
        what, name = (next(filter(None, m.groups())) if m else "?" for m in (operation, where))
        raise ValueError(
            f"TensorFlow has no derivative of {what} ({name!r}), a first derivative: there is no "
            f"second one. {remedy}"
        ) from error
    except (NotImplementedError, TypeError) as error:  # Of loops and recomputed functions.
        bold = re.search(r"\x1b\[1m(.*?)\x1b\[0m", str(error), re.DOTALL)  # By Keras.
        raise ValueError(
            f"TensorFlow gives no second derivative: {bold[1] if bold else error} {remedy}"
        ) from error
    finally:
        _EXACT.reset(token)


def check_second_derivatives(
    operations: Iterable[tf.Operation], weights: list[tf.Tensor], model: keras.Model, remedy: str
) -> None:
    """Checks that no second derivative of a loss is dropped.

    Args:
        operations: Those of a loss and its gradient, in the order in which they were made.
        weights: The tensors, or handles of variables, that the loss is a function of.
        model: The model, to name the layer.
        remedy: What to do without them, a sentence that ends the error.

    Raises:
        ValueError: If TensorFlow takes one of the operations as not differentiable, or if the
            model holds constant what depends on weights.
    """
    for operation, node in depending_on(weights, operations):
        if _holds_constant(node, operation.name) or node.op in TAKEN_FOR_CONSTANT:
            raise ValueError(
                f"TensorFlow takes the derivative of {node.op} in {layer_of(operation, model)} "
                f"for zero, which makes second derivatives wrong. {remedy}"
            )


def _holds_constant(node: Any, name: str) -> bool:
    """Returns whether a node stops a gradient."""
    if node.op == "PyFunc":  # Of tf.numpy_function; that of tf.py_function has a gradient.
        return True
    if node.op != "StopGradient" or not tf.as_dtype(node.attr["T"].type).is_floating:
        return False  # A shape, such as the one that the gradient of average pooling holds.
    return not _HARMLESS.search(name)


def _lets_ask(module: Any, name: str, exact: Callable) -> None:
    """Lets a function of TensorFlow ask for the context, in which `exact` takes its place.

    Keras' layers offer no place to hand them another function, so that TensorFlow's own has to
    know of the context. It is replaced for good, by one that asks whether the thread that calls it
    is in one, and otherwise does what it always did: what other threads compute or trace meanwhile
    is not touched, and what was traced outside of the context stays as it was traced.
    """
    with _INSTALLING:
        original = getattr(module, name)
        if hasattr(original, "asks_for_exact_second_derivatives"):
            return

        @functools.wraps(original)
        def asking(*args: Any, **kwargs: Any) -> Any:
            if _EXACT.get():
                return exact(original, *args, **kwargs)
            return original(*args, **kwargs)

        asking.asks_for_exact_second_derivatives = True
        setattr(module, name, asking)


def _moments(
    original: Callable,
    x: tf.Tensor,
    axes: Sequence[int],
    shift: None = None,
    keepdims: bool = False,
    name: str | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns mean and variance by the plain formula; the arguments are TensorFlow's.

    `tf.nn.moments` holds the mean constant inside the variance. That is right for the gradient,
    to which the mean contributes nothing there, but not for the gradient's own derivatives: a
    Hessian through BatchNormalization, GroupNormalization or LayerNormalization would lack a
    term.
    """
    del original, shift, name  # Nothing of them changes a number.
    values = tf.cast(x, tf.float32) if x.dtype == tf.float16 else x
    mean = tf.reduce_mean(values, axes, keepdims=True)
    variance = tf.reduce_mean(tf.math.squared_difference(values, mean), axes, keepdims=True)
    if not keepdims:
        mean, variance = tf.squeeze(mean, axes), tf.squeeze(variance, axes)
    return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)


def _resize(
    original: Callable,
    images: Any,
    size: Any,
    method: str = "bilinear",
    preserve_aspect_ratio: bool = False,
    antialias: bool = False,
    name: str | None = None,
) -> tf.Tensor:
    """Returns resized images, bilinear ones by products; the arguments are TensorFlow's."""
    if method != "bilinear" or antialias:
        return original(images, size, method, preserve_aspect_ratio, antialias, name)
    images = tf.convert_to_tensor(images)
    # No derivative comes by its shape.
    resized = original(images, size, method, preserve_aspect_ratio)

    def matrix(axis: int) -> tf.Tensor:
        old, new = tf.shape(images)[axis], tf.shape(resized)[axis]
        return original(tf.eye(old)[:, :, tf.newaxis], tf.stack([new, old]))[:, :, 0]

    # The same as products, which can be differentiated as often as one likes.
    product = tf.einsum("hi,...ijc->...hjc", matrix(-3), tf.cast(images, tf.float32))
    product = tf.einsum("wj,...hjc->...hwc", matrix(-2), product)
    product = tf.cast(product, resized.dtype)
    product.set_shape(resized.shape)
    return product


def _of_resizing(name: str, *attributes: str) -> Any:
    """Returns the gradient of `name`Grad(g, ...), A^T g, where `name` takes images x to A x."""

    def gradient(op: tf.Operation, cotangent: tf.Tensor) -> list[tf.Tensor | None]:
        # ScaleAndTranslateGrad has the image, scale and translation; the others image or size.
        further = dict(zip(("scale", "translation"), op.inputs[2:], strict=False))
        size = tf.shape(op.inputs[0])[1:3]
        options = {attribute: op.get_attr(attribute) for attribute in attributes}
        resize = getattr(tf.raw_ops, name)
        resized = resize(images=cotangent, size=size, **further, **options)
        return [resized, *[None] * (len(op.inputs) - 1)]

    return gradient


def _of_softsign_grad(op: tf.Operation, cotangent: tf.Tensor) -> list[tf.Tensor]:
    """Returns the gradient of SoftsignGrad(g, x), g / (1 + |x|)^2."""
    g, x = op.inputs
    along = cotangent / tf.square(1 + tf.abs(x))
    return [along, -2 * g * along * tf.sign(x) / (1 + tf.abs(x))]


def _register(op_type: str, gradient: Any) -> None:
    """Registers the gradient of an operation, which was an error to ask for before."""
    # TensorFlow may have one by now.
    with contextlib.suppress(KeyError):
        tf.RegisterGradient(op_type)(gradient)


for _name in ("ResizeBicubic", "ResizeNearestNeighbor"):
    _register(f"{_name}Grad", _of_resizing(_name, "align_corners", "half_pixel_centers"))
_register("ScaleAndTranslateGrad", _of_resizing("ScaleAndTranslate", "kernel_type", "antialias"))
_register("SoftsignGrad", _of_softsign_grad)
