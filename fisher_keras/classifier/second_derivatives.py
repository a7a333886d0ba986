"""Second derivatives that TensorFlow lacks: made up for where they are simple, else refused.

A gradient that TensorFlow registers as not differentiable has a derivative of zero in a Hessian,
without a word; one that it does not register at all is an error. Resizing an image is linear, so
that the derivative of its gradient is the resizing itself.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

# tf.RegisterGradient, the public side of it, tells nothing of what is registered, and refuses to
# replace "not differentiable".
from tensorflow.python.framework.ops import _gradient_registry

from fisher_keras.classifier.moments import exact_moments

_EXACT = contextvars.ContextVar("exact_second_derivatives", default=False)
# What asks for zero, reckons with shapes, or is a place to add gradients up in.
_NO_FIRST_DERIVATIVES = ("StopGradient", "BroadcastGradientArgs", "TensorArray")


@contextlib.contextmanager
def exact_second_derivatives(way_out: str) -> Iterator[None]:
    """The context in which a function is traced that takes second derivatives.

    It has `exact_moments` and a bilinear resizing that can be differentiated twice, and its error
    for what has no second derivative is one of a line.

    Args:
        way_out: What to do without them, a sentence that ends the error.

    Raises:
        ValueError: If an operation has no second derivative that TensorFlow knows of.
    """
    token = _EXACT.set(True)
    try:
        with exact_moments():
            yield
    except LookupError as error:
        if type(error) is not LookupError:  # A KeyError is something else.
            raise
        # TensorFlow's message has the name and the type of the operation at its beginning.
        what = str(error).split(").", maxsplit=1)[0]
        raise ValueError(f"There is no second derivative here. {what}). {way_out}") from error
    finally:
        _EXACT.reset(token)


def check_second_derivatives(graph: tf.Graph, way_out: str) -> None:
    """Raises a ValueError if second derivatives vanish in a graph that should not.

    Args:
        graph: The graph of a function that takes them.
        way_out: What to do without them, a sentence that ends the error.
    """
    vanishing = vanishing_second_derivatives(graph)
    if vanishing:
        raise ValueError(
            f"TensorFlow takes the derivative of {', '.join(vanishing[:3])} for zero, which it is "
            f"not: second derivatives would be wrong. {way_out}"
        )


def vanishing_second_derivatives(graph: tf.Graph) -> list[str]:
    """Finds first derivatives that TensorFlow registers as not differentiable.

    Args:
        graph: A graph. The bodies of its loops, branches and functions are looked at, too.

    Returns:
        The operations, each by its type and name.
    """
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    found = (f"{node.op} ({node.name!r})" for node in nodes if _is_taken_for_constant(node.op))
    return list(dict.fromkeys(found))


def _is_taken_for_constant(op_type: str) -> bool:
    if "Grad" not in op_type or op_type.startswith(_NO_FIRST_DERIVATIVES):
        return False
    try:
        return _gradient_registry.lookup(op_type) is None
    except LookupError:
        return False


def _register(op_type: str, gradient: Any) -> None:
    """Registers the gradient of an operation unless TensorFlow has one: it was an error before."""
    try:
        _gradient_registry.lookup(op_type)
    except LookupError:
        tf.RegisterGradient(op_type)(gradient)


def _of_resizing(name: str, *attributes: str) -> Any:
    """Returns the gradient of `name`Grad(g, ...), A^T g, where `name` takes images x to A x."""

    def gradient(op: tf.Operation, cotangent: tf.Tensor) -> list[tf.Tensor | None]:
        # ScaleAndTranslateGrad has the image, scale and translation; the others image or size.
        further = dict(zip(("scale", "translation"), op.inputs[2:], strict=False))
        size = tf.shape(op.inputs[0])[1:3]
        resize = getattr(tf.raw_ops, name)
        resized = resize(images=cotangent, size=size, **further, **_options(op, *attributes))
        return [resized, *[None] * (len(op.inputs) - 1)]

    return gradient


def _of_softsign_grad(op: tf.Operation, cotangent: tf.Tensor) -> list[tf.Tensor]:
    """Returns the gradient of SoftsignGrad(g, x), g / (1 + |x|)^2."""
    g, x = op.inputs
    along = cotangent / tf.square(1 + tf.abs(x))
    return [along, -2 * g * along * tf.sign(x) / (1 + tf.abs(x))]


def _install_bilinear() -> None:
    """Lets the gradient of ResizeBilinear ask for the context.

    A gradient for ResizeBilinearGrad itself would not do: a tape keeps no inputs of an operation
    that is registered as not differentiable, and with them the size is lost.
    """
    entry = _gradient_registry._registry["ResizeBilinear"]
    original = entry["type"]

    def gradient(op: tf.Operation, cotangent: tf.Tensor) -> list[tf.Tensor | None]:
        if not _EXACT.get():
            return original(op, cotangent)
        image, options = op.inputs[0], _options(op, "align_corners", "half_pixel_centers")
        rows, columns = (
            _resizing_matrix(tf.shape(image)[axis], tf.shape(cotangent)[axis], options)
            for axis in (1, 2)
        )
        # All of it is products, which can be differentiated as often as one likes.
        transposed = tf.einsum("nhwc,hi->niwc", cotangent, rows)
        transposed = tf.einsum("niwc,wj->nijc", transposed, columns)
        return [tf.cast(transposed, image.dtype), None]

    entry["type"] = gradient


def _resizing_matrix(size: tf.Tensor, new_size: tf.Tensor, options: dict) -> tf.Tensor:
    """Returns the matrix of a bilinear resizing along one axis, shape (new_size, size)."""
    image = tf.eye(size)[tf.newaxis, :, :, tf.newaxis]
    resized = tf.raw_ops.ResizeBilinear(images=image, size=tf.stack([new_size, size]), **options)
    return resized[0, :, :, 0]


def _options(op: tf.Operation, *attributes: str) -> dict[str, Any]:
    return {attribute: op.get_attr(attribute) for attribute in attributes}


_install_bilinear()
for _name in ("ResizeBicubic", "ResizeNearestNeighbor"):
    _register(f"{_name}Grad", _of_resizing(_name, "align_corners", "half_pixel_centers"))
_register("ScaleAndTranslateGrad", _of_resizing("ScaleAndTranslate", "kernel_type", "antialias"))
_register("SoftsignGrad", _of_softsign_grad)
