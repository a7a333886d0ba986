"""Per-example gradients of a weight at one TensorFlow operation that uses it."""

import dataclasses
import math
from collections.abc import Callable, Set

import tensorflow as tf

from fisher_keras.fisher import convolution
from fisher_keras.fisher.gradients import Explicit, Factored, Gradients, SparseRows


@dataclasses.dataclass(frozen=True)
class WeightUse:
    """An operation that uses a weight.

    Attributes:
        op: The operation.
        input_index: The index of its input that is a weight or computed from weights.
        leading: References to the tensors with the examples on the leading axis, in order. Each
            example may have several consecutive entries there.
    """

    op: tf.Operation
    input_index: int
    leading: Set

    @property
    def tensor(self) -> tf.Tensor:
        """The input with that index."""
        return self.op.inputs[self.input_index]

    @property
    def other(self) -> tf.Tensor:
        """The other input of an operation that has two."""
        return self.op.inputs[1 - self.input_index]

    def leads(self, tensor: tf.Tensor, count: int) -> bool:
        """Returns whether each entry along the leading axis of a tensor is one of N examples."""
        return tensor.ref() in self.leading and tensor.shape[0] == count


def _matrix_product(use: WeightUse, delta: tf.Tensor, count: int) -> Gradients | None:
    """The weight is a matrix; its other factor is (N, ..., A), or flattened to (N L, A)."""
    names = ("transpose_a", "transpose_b") if use.op.type == "MatMul" else ("adj_x", "adj_y")
    other_transposed, transposed = map(use.op.get_attr, names)
    # As the left factor, or with batch axes, the weight has gradients of another form.
    is_matrix = use.input_index == 1 and not other_transposed and use.tensor.shape.rank == 2
    shape = use.other.shape
    if not is_matrix or not shape.is_fully_defined() or use.other.ref() not in use.leading:
        return None
    # All axes but the last are positions of an example, in whatever form.
    length = math.prod(shape[:-1]) // count
    # Of x W^T the gradient by W is the sum of delta x^T: the two factors change places.
    factors = (delta, use.other) if transposed else (use.other, delta)
    x, delta = (_at_least_float32(tf.reshape(t, [count, length, t.shape[-1]])) for t in factors)
    size = (count, length, x.shape[-1], delta.shape[-1])
    return Factored(size, lambda: (x, delta), lambda gradients: gradients)


def _lookup(use: WeightUse, delta: tf.Tensor, count: int) -> Gradients | None:
    """The weight is a table of which the examples look up rows."""
    indices = use.op.inputs[1]
    plain = use.op.get_attr("batch_dims") == 0 and tf.get_static_value(use.op.inputs[2]) == 0
    if use.input_index != 0 or not plain or not use.leads(indices, count):
        return None
    length, entries = math.prod(indices.shape[1:]), math.prod(use.tensor.shape[1:])
    indices = tf.reshape(indices, [count, length])
    delta = _at_least_float32(tf.reshape(delta, [count, length, entries]))
    # A GPU looks up zeros outside of the table: these have no gradient.
    inside = (indices >= 0) & (indices < tf.cast(use.tensor.shape[0], indices.dtype))
    indices = tf.where(inside, indices, tf.zeros_like(indices))
    delta = tf.where(inside[..., tf.newaxis], delta, tf.zeros_like(delta))
    # The table may have far more rows than N examples look up: it is not filled in here.
    return SparseRows(tuple(use.tensor.shape), indices, delta)


def _convolution(use: WeightUse, delta: tf.Tensor, count: int) -> Gradients | None:
    """The weight is a filter of a two-dimensional convolution (used for 1D ones, too)."""
    images = _images(use, delta, count)
    if images is None or images[0].shape[-1] != use.tensor.shape[2]:  # Of groups.
        return None
    return convolution.filter_gradients(use.op, *images)


def _depthwise(use: WeightUse, delta: tf.Tensor, count: int) -> Gradients | None:
    """The weight is a filter for each channel."""
    images = _images(use, delta, count)
    return None if images is None else convolution.depthwise_gradients(use.op, *images)


def _images(use: WeightUse, delta: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor] | None:
    """Returns a convolution's images and the gradient at its output, channels last."""
    x = use.other
    if use.op.get_attr("data_format") == b"NCHW":
        x, delta = (tf.transpose(t, [0, 2, 3, 1]) for t in (x, delta))
    if use.input_index != 1 or not use.leads(use.other, count) or None in x.shape[1:]:
        return None
    return _at_least_float32(x), _at_least_float32(delta)


def _einsum(use: WeightUse, delta: tf.Tensor, count: int) -> Gradients | None:
    """The weight is a factor of an `einsum`, as in EinsumDense and attention."""
    inputs, output = use.op.get_attr("equation").decode().split("->")
    if "." in inputs or inputs.count(",") != 1:
        return None
    mine, other = inputs.split(",")[use.input_index], inputs.split(",")[1 - use.input_index]
    example = output[:1]
    examples_lead = other[:1] == example and example not in mine
    # An index of the weight alone that is summed over, and a diagonal, have other equations.
    summed_alone = set(mine) - set(other) - set(output)
    repeated = len(set(mine)) < len(mine)
    if not (examples_lead and use.leads(use.other, count)) or summed_alone or repeated:
        return None
    # Everything that the weight has no index for is summed over, but for the examples.
    equation = f"{other},{output}->{example}{mine}"
    return Explicit(tf.einsum(equation, _at_least_float32(use.other), _at_least_float32(delta)))


def _broadcast(use: WeightUse, delta: tf.Tensor, count: int) -> Gradients | None:
    """A sum, difference or product: sums over the axes along which the weight was repeated."""
    products = _at_least_float32(delta)
    if use.op.type == "Mul":
        products *= _at_least_float32(use.other)
    elif use.op.type == "Sub" and use.input_index == 1:
        products = -products
    shape, full = use.tensor.shape, products.shape
    missing = len(full) - len(shape)
    # A weight with as many axes as the output must have size 1 where that has the examples.
    if not use.leads(use.other, count) or full[0] != count or (missing == 0 and shape[0] != 1):
        return None
    repeated = [
        axis
        for axis in range(1, len(full))
        if axis < missing or (shape[axis - missing] == 1 and full[axis] != 1)
    ]
    return Explicit(tf.reshape(tf.reduce_sum(products, repeated), [count, *shape.as_list()]))


def _bias(use: WeightUse, delta: tf.Tensor, count: int) -> Gradients | None:
    if use.input_index != 1 or not use.leads(use.op.outputs[0], count):
        return None
    channels = 1 if use.op.get_attr("data_format") == b"NCHW" else len(delta.shape) - 1
    return Explicit(
        tf.reduce_sum(
            _at_least_float32(delta), [a for a in range(1, len(delta.shape)) if a != channels]
        )
    )


def _at_least_float32(values: tf.Tensor) -> tf.Tensor:
    """Casts half precision to float32, for sums of many products."""
    return tf.cast(values, tf.float32) if values.dtype.size < 4 else values


# Each rule takes a use, the gradient at the operation's output, and N; it returns None if the use
# is not of the form that it knows.
RULES: dict[str, Callable[[WeightUse, tf.Tensor, int], Gradients | None]] = {
    "Add": _broadcast,
    "AddV2": _broadcast,
    "BatchMatMulV2": _matrix_product,
    "BiasAdd": _bias,
    "Conv2D": _convolution,
    "DepthwiseConv2dNative": _depthwise,
    "Einsum": _einsum,
    "GatherV2": _lookup,
    "MatMul": _matrix_product,
    "Mul": _broadcast,
    "Sub": _broadcast,
}
