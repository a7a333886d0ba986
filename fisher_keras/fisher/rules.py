"""Per-example gradients of a weight at one TensorFlow operation that uses it."""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

# Stands for a row or column outside of an image.
_NOWHERE = -1
# Entries of a block of per-example gradients: 64 MiB in float32, 128 MiB in float64.
_BLOCK_ENTRIES = 2**24


@dataclasses.dataclass(frozen=True)
class Use:
    """An operation, and the place of its input that is a weight or computed from weights."""

    op: tf.Operation
    position: int

    @property
    def tensor(self) -> tf.Tensor:
        """The input at that place."""
        return self.op.inputs[self.position]

    @property
    def other(self) -> tf.Tensor:
        """The other input of an operation that has two."""
        return self.op.inputs[1 - self.position]


@dataclasses.dataclass(frozen=True)
class Sum:
    """Gradients of N examples that are there as a tensor.

    Attributes:
        gradients: Shape (N, *weight.shape).
    """

    gradients: tf.Tensor

    def whole(self) -> tf.Tensor:
        """Returns the gradients, shape (N, *weight.shape)."""
        return self.gradients

    def combination(self, factors: tf.Tensor) -> tf.Tensor:
        """Returns the sum of the gradients, each times its factor, of the weight's shape."""
        return tf.tensordot(tf.cast(factors, self.gradients.dtype), self.gradients, 1)

    def blocks(self) -> list[Callable[[], tf.Tensor]]:
        """Returns a function that gives the gradients as a matrix of shape (N, P)."""
        return [lambda: _flat(self.gradients)]


@dataclasses.dataclass(frozen=True)
class Product:
    r"""Gradients of N examples that are $\sum_l X_{nla} \Delta_{nlb}$, over positions l.

    Attributes:
        size: N, L, A and B.
        make_factors: Returns X, shape (N, L, A), and Delta, shape (N, L, B). Both may be several
            times as large as what they are made of: they are made when they are asked for.
        restore: Takes gradients of shape (n, A, B), for any n, to (n, *weight.shape).
    """

    size: tuple[int, int, int, int]
    make_factors: Callable[[], tuple[tf.Tensor, tf.Tensor]]
    restore: Callable[[tf.Tensor], tf.Tensor]

    @functools.cached_property
    def factors(self) -> tuple[tf.Tensor, tf.Tensor]:
        """X and Delta."""
        return self.make_factors()

    def whole(self) -> tf.Tensor:
        """Returns the gradients, shape (N, *weight.shape)."""
        return self.restore(self._columns(0, self.size[-1]))

    def combination(self, factors: tf.Tensor) -> tf.Tensor:
        """Returns the sum of the gradients, each times its factor, of the weight's shape."""
        x, delta = self.factors
        delta *= tf.cast(factors, delta.dtype)[:, tf.newaxis, tf.newaxis]
        x, delta = (tf.reshape(t, [-1, t.shape[-1]]) for t in (x, delta))
        return self.restore(tf.matmul(x, delta, transpose_a=True)[tf.newaxis])[0]

    def blocks(self) -> list[Callable[[], tf.Tensor]]:
        """Returns functions that give columns of the matrix of gradients, in any order."""
        count, _, rows, columns = self.size
        step = max(1, _BLOCK_ENTRIES // (count * rows))
        return [
            lambda first=first: _flat(self._columns(first, first + step))
            for first in range(0, columns, step)
        ]

    def _columns(self, first: int, last: int) -> tf.Tensor:
        x, delta = self.factors
        return tf.matmul(x, delta[..., first:last], transpose_a=True)


Gradients = Sum | Product


def _flat(gradients: tf.Tensor) -> tf.Tensor:
    count, *shape = gradients.shape
    return tf.reshape(gradients, [count, math.prod(shape)])


def _matrix_product(use: Use, delta: tf.Tensor, count: int) -> Gradients | None:
    """The weight is a matrix; its other factor (N, ..., A), or (N L, A) as layers flatten it."""
    names = ("transpose_a", "transpose_b") if use.op.type == "MatMul" else ("adj_x", "adj_y")
    other_transposed, transposed = map(use.op.get_attr, names)
    is_matrix = use.position == 1 and not other_transposed and use.tensor.shape.rank == 2
    shape = use.other.shape
    if not is_matrix or not shape.is_fully_defined() or shape[0] % count:
        return None
    length = math.prod(shape[:-1]) // count
    factors = (delta, use.other) if transposed else (use.other, delta)
    x, delta = (_wide(tf.reshape(t, [count, length, t.shape[-1]])) for t in factors)
    size = (count, length, x.shape[-1], delta.shape[-1])
    return Product(size, lambda: (x, delta), lambda gradients: gradients)


def _lookup(use: Use, delta: tf.Tensor, count: int) -> Gradients | None:
    """The weight is a table of which the examples take rows: a product with one-hot vectors."""
    indices = use.op.inputs[1]
    plain = use.op.get_attr("batch_dims") == 0 and tf.get_static_value(use.op.inputs[2]) == 0
    if use.position != 0 or not plain or not _leads(indices, count):
        return None
    rows, *entries = use.tensor.shape
    size = count, math.prod(indices.shape[1:]), rows, math.prod(entries)

    def make_factors() -> tuple[tf.Tensor, tf.Tensor]:
        row_gradients = _wide(tf.reshape(delta, [*size[:2], size[3]]))
        ones = tf.one_hot(tf.reshape(indices, size[:2]), rows, dtype=row_gradients.dtype)
        return ones, row_gradients

    return Product(size, make_factors, lambda g: tf.reshape(g, [-1, rows, *entries]))


def _convolution(use: Use, delta: tf.Tensor, count: int) -> Gradients | None:
    """The weight is a filter of a two-dimensional convolution (of which 1D ones are made)."""
    x = use.other
    channels_first = use.op.get_attr("data_format") == b"NCHW"
    if channels_first:
        x, delta = (tf.transpose(t, [0, 2, 3, 1]) for t in (x, delta))
    kernel = use.tensor.shape
    grouped = x.shape[-1] != kernel[2]
    if use.position != 1 or grouped or not _leads(x, count) or None in x.shape[1:]:
        return None
    rows, columns = _window_axes(use.op, x.shape, delta.shape, kernel, channels_first)
    x, delta = _wide(x), _wide(delta)
    if rows.stride == columns.stride == 1:
        return _dense_convolution(x, delta, kernel, rows, columns)
    height, width, inputs, outputs = kernel
    length = rows.outputs * columns.outputs

    def make_factors() -> tuple[tf.Tensor, tf.Tensor]:
        windows = _gather_pixels(x, rows.inputs_of_outputs(), columns.inputs_of_outputs())
        return windows, tf.reshape(delta, [count, length, outputs])

    return Product(
        (count, length, height * width * inputs, outputs),
        make_factors,
        lambda gradients: tf.reshape(gradients, [-1, *kernel]),
    )


@dataclasses.dataclass(frozen=True)
class _WindowAxis:
    """How the windows of a convolution lie along one axis of its images."""

    inputs: int
    kernel: int
    stride: int
    dilation: int
    padding: int
    outputs: int

    def inputs_of_outputs(self) -> np.ndarray:
        """Returns where each output meets each of the kernel's entries, (outputs, kernel)."""
        first = np.arange(self.outputs)[:, np.newaxis] * self.stride - self.padding
        return _inside(first + np.arange(self.kernel) * self.dilation, self.inputs)

    def outputs_of_inputs(self) -> np.ndarray:
        """Returns which output meets each input with each entry, (inputs, kernel); stride 1."""
        last = np.arange(self.inputs)[:, np.newaxis] + self.padding
        return _inside(last - np.arange(self.kernel) * self.dilation, self.outputs)


def _inside(places: np.ndarray, size: int) -> np.ndarray:
    """Marks places that are not of the image."""
    return np.where((places >= 0) & (places < size), places, _NOWHERE)


def _window_axes(
    op: tf.Operation,
    inputs: tf.TensorShape,
    outputs: tf.TensorShape,
    kernel: tf.TensorShape,
    channels_first: bool,
) -> list[_WindowAxis]:
    axes = []
    for axis in (1, 2):
        place = axis + 1 if channels_first else axis
        stride, dilation = op.get_attr("strides")[place], op.get_attr("dilations")[place]
        size, entries, count = inputs[axis], kernel[axis - 1], outputs[axis]
        padding = op.get_attr("padding")
        before = 0
        if padding == b"EXPLICIT":
            before = op.get_attr("explicit_paddings")[2 * place]
        elif padding == b"SAME":
            before = max((count - 1) * stride + (entries - 1) * dilation + 1 - size, 0) // 2
        axes.append(_WindowAxis(size, entries, stride, dilation, before, count))
    return axes


def _dense_convolution(
    x: tf.Tensor, delta: tf.Tensor, kernel: tf.TensorShape, rows: _WindowAxis, columns: _WindowAxis
) -> Product:
    """Takes the kernel's columns from shifts of X, and its rows from shifts of Delta.

    One product over the pixels of X's rows and Delta's columns then gives all pairs, and each is
    copied k times instead of k^2 times one of them.
    """
    height, width, inputs, outputs = kernel

    def make_factors() -> tuple[tf.Tensor, tf.Tensor]:
        rows_of_x, columns_of_delta = np.arange(rows.inputs), np.arange(columns.outputs)
        return (
            _gather_pixels(x, rows_of_x[:, np.newaxis], columns.inputs_of_outputs()),
            _gather_pixels(delta, rows.outputs_of_inputs(), columns_of_delta[:, np.newaxis]),
        )

    def restore(gradients: tf.Tensor) -> tf.Tensor:
        gradients = tf.reshape(gradients, [-1, width, inputs, height, outputs])
        return tf.transpose(gradients, [0, 3, 1, 2, 4])

    size = (x.shape[0], rows.inputs * columns.outputs, width * inputs, height * outputs)
    return Product(size, make_factors, restore)


def _gather_pixels(images: tf.Tensor, rows: np.ndarray, columns: np.ndarray) -> tf.Tensor:
    """Collects, for each position, the pixels that meet there.

    Args:
        images: Shape (N, H, W, C).
        rows: For each position along the height, rows of images, shape (P, S).
        columns: For each position along the width, columns of images, shape (Q, T).

    Returns:
        Shape (N, P Q, S T C); zero where a row or column is `_NOWHERE`.
    """
    count, height, width, channels = images.shape
    rows, columns = rows[:, np.newaxis, :, np.newaxis], columns[np.newaxis, :, np.newaxis, :]
    outside = (rows == _NOWHERE) | (columns == _NOWHERE)
    # A pixel of zeros behind the last one stands for all that are outside.
    pixels = np.where(outside, height * width, rows * width + columns)
    pixels = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1)
    images = tf.reshape(images, [count, height * width, channels])
    if np.array_equal(pixels[:, 0], np.arange(height * width)) and pixels.shape[1] == 1:
        return images
    if outside.any():
        # Faster than `tf.pad`, which does not copy whole images at once.
        images = tf.concat([images, tf.zeros([count, 1, channels], images.dtype)], axis=1)
    gathered = tf.gather(images, pixels.astype(np.int32), axis=1)
    return tf.reshape(gathered, [count, len(pixels), pixels.shape[1] * channels])


def _einsum(use: Use, delta: tf.Tensor, count: int) -> Gradients | None:
    """The weight is a factor of an `einsum`, as in EinsumDense and attention."""
    inputs, output = use.op.get_attr("equation").decode().split("->")
    if "." in inputs or inputs.count(",") != 1:
        return None
    mine, other = inputs.split(",")[use.position], inputs.split(",")[1 - use.position]
    example = output[:1]
    examples_lead = other[:1] == example and example not in mine
    summed_alone = set(mine) - set(other) - set(output)
    repeated = len(set(mine)) < len(mine)
    if not examples_lead or summed_alone or repeated or not _leads(use.other, count):
        return None
    equation = f"{other},{output}->{example}{mine}"
    return Sum(tf.einsum(equation, _wide(use.other), _wide(delta)))


def _broadcast_product(use: Use, delta: tf.Tensor, count: int) -> Gradients | None:
    return _broadcast(use, _wide(delta) * _wide(use.other), count)


def _broadcast_sum(use: Use, delta: tf.Tensor, count: int) -> Gradients | None:
    return _broadcast(use, _wide(delta), count)


def _broadcast_difference(use: Use, delta: tf.Tensor, count: int) -> Gradients | None:
    return _broadcast(use, _wide(-delta if use.position == 1 else delta), count)


def _broadcast(use: Use, products: tf.Tensor, count: int) -> Gradients | None:
    """Sums over the axes along which the weight was repeated, but for the examples'."""
    shape, full = use.tensor.shape, products.shape
    missing = len(full) - len(shape)
    if not _leads(use.other, count) or full[0] != count or (missing == 0 and shape[0] != 1):
        return None
    repeated = [
        axis
        for axis in range(1, len(full))
        if axis < missing or (shape[axis - missing] == 1 and full[axis] != 1)
    ]
    return Sum(tf.reshape(tf.reduce_sum(products, repeated), [count, *shape.as_list()]))


def _bias(use: Use, delta: tf.Tensor, count: int) -> Gradients | None:
    if use.position != 1 or not _leads(delta, count):
        return None
    channels = 1 if use.op.get_attr("data_format") == b"NCHW" else len(delta.shape) - 1
    return Sum(
        tf.reduce_sum(_wide(delta), [a for a in range(1, len(delta.shape)) if a != channels])
    )


def _leads(values: tf.Tensor, count: int) -> bool:
    """Returns whether the leading axis can be that of the examples."""
    return bool(values.shape.rank) and values.shape[0] == count


def _wide(values: tf.Tensor) -> tf.Tensor:
    """Sums of many products are taken in float32 at least."""
    return tf.cast(values, tf.float32) if values.dtype.size < 4 else values


# Each takes a use, the gradient at the operation's output, and N; returns None if it is not of
# the form that it knows.
RULES: dict[str, Callable[[Use, tf.Tensor, int], Gradients | None]] = {
    "Add": _broadcast_sum,
    "AddV2": _broadcast_sum,
    "BatchMatMulV2": _matrix_product,
    "BiasAdd": _bias,
    "Conv2D": _convolution,
    "Einsum": _einsum,
    "GatherV2": _lookup,
    "MatMul": _matrix_product,
    "Mul": _broadcast_product,
    "Sub": _broadcast_difference,
}
