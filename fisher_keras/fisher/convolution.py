"""Per-example gradients of the filters of two-dimensional convolutions."""

import dataclasses

import numpy as np
import tensorflow as tf

from fisher_keras.fisher.gradients import Explicit, Factored

# The index of a row or column outside of an image.
_PADDING = -1


def filter_gradients(op: tf.Operation, x: tf.Tensor, delta: tf.Tensor) -> Factored:
    """Returns the gradients of the filter, factored over the positions of the images.

    Args:
        op: A `Conv2D` of one group, in any data format.
        x: Its images, shape (N, H, W, A).
        delta: The gradient at its output, shape (N, H', W', B).

    Returns:
        The gradients of N examples.
    """
    kernel = op.inputs[1].shape
    rows, columns = _window_axes(op, x.shape, delta.shape)
    if rows.stride == columns.stride == 1:
        return _dense_convolution(x, delta, kernel, rows, columns)
    height, width, inputs, outputs = kernel
    length = rows.outputs * columns.outputs

    def make_factors() -> tuple[tf.Tensor, tf.Tensor]:
        windows = _gather_pixels(x, rows.inputs_of_outputs(), columns.inputs_of_outputs())
        return windows, tf.reshape(delta, [x.shape[0], length, outputs])

    return Factored(
        (x.shape[0], length, height * width * inputs, outputs),
        make_factors,
        lambda gradients: tf.reshape(gradients, [-1, *kernel]),
    )


def depthwise_gradients(op: tf.Operation, x: tf.Tensor, delta: tf.Tensor) -> Explicit:
    """Returns the gradients of the filters of a depthwise convolution.

    Args:
        op: A `DepthwiseConv2dNative`, in any data format.
        x: Its images, shape (N, H, W, A).
        delta: The gradient at its output, shape (N, H', W', A M), with M outputs per channel.

    Returns:
        The gradients of N examples.
    """
    height, width, channels, multiplier = op.inputs[1].shape
    rows, columns = _window_axes(op, x.shape, delta.shape)
    x = tf.pad(x, [[0, 0], rows.margins(), columns.margins(), [0, 0]])
    delta = tf.reshape(delta, [*delta.shape[:3], channels, multiplier])
    # Row by row over the kernel, the order in which `stack` and `reshape` put them together.
    entries = [
        tf.reduce_sum(
            x[:, rows.input_slice(i), columns.input_slice(j), :, tf.newaxis] * delta, [1, 2]
        )
        for i in range(height)
        for j in range(width)
    ]
    gradients = tf.stack(entries, axis=1)
    return Explicit(tf.reshape(gradients, [-1, height, width, channels, multiplier]))


@dataclasses.dataclass(frozen=True)
class _WindowAxis:
    """Geometry of convolution windows along one axis."""

    inputs: int
    kernel: int
    stride: int
    dilation: int
    padding: int
    outputs: int

    def margins(self) -> list[int]:
        """Returns the padding on both sides, so that no window leaves the images."""
        span = (self.outputs - 1) * self.stride + (self.kernel - 1) * self.dilation + 1
        # Windows need not reach the end of the image: its last rows are then read by none.
        return [self.padding, max(span - self.inputs - self.padding, 0)]

    def input_slice(self, entry: int) -> slice:
        """Returns the slice of padded inputs that a kernel entry reads."""
        first = entry * self.dilation
        return slice(first, first + (self.outputs - 1) * self.stride + 1, self.stride)

    def inputs_of_outputs(self) -> np.ndarray:
        """Returns the input index that each output reads by each entry, (outputs, kernel)."""
        first = np.arange(self.outputs)[:, np.newaxis] * self.stride - self.padding
        return _inside(first + np.arange(self.kernel) * self.dilation, self.inputs)

    def outputs_of_inputs(self) -> np.ndarray:
        """Returns the output that reads each input by each entry, (inputs, kernel); stride 1."""
        last = np.arange(self.inputs)[:, np.newaxis] + self.padding
        return _inside(last - np.arange(self.kernel) * self.dilation, self.outputs)


def _inside(positions: np.ndarray, size: int) -> np.ndarray:
    """Marks positions outside the image."""
    return np.where((positions >= 0) & (positions < size), positions, _PADDING)


def _window_axes(
    op: tf.Operation, inputs: tf.TensorShape, outputs: tf.TensorShape
) -> list[_WindowAxis]:
    channels_first = op.get_attr("data_format") == b"NCHW"
    kernel = op.inputs[1].shape
    axes = []
    for axis in (1, 2):
        # Attributes are in the operation's data format; images and delta have their channels last.
        index = axis + 1 if channels_first else axis
        stride, dilation = op.get_attr("strides")[index], op.get_attr("dilations")[index]
        size, entries, count = inputs[axis], kernel[axis - 1], outputs[axis]
        padding = op.get_attr("padding")
        before = 0
        if padding == b"EXPLICIT":
            # Pairs of the padding before and behind, for each axis.
            before = op.get_attr("explicit_paddings")[2 * index]
        elif padding == b"SAME":
            # Where the padding is odd, TensorFlow puts the larger part behind.
            before = max((count - 1) * stride + (entries - 1) * dilation + 1 - size, 0) // 2
        axes.append(_WindowAxis(size, entries, stride, dilation, before, count))
    return axes


def _dense_convolution(
    x: tf.Tensor, delta: tf.Tensor, kernel: tf.TensorShape, rows: _WindowAxis, columns: _WindowAxis
) -> Factored:
    """Factors of a convolution with stride 1: kernel columns shift X, kernel rows shift Delta.

    One product over the pixels of X's rows and Delta's columns then gives all pairs. Both factors
    are copied k times, instead of one of them k^2 times.
    """
    height, width, inputs, outputs = kernel

    def make_factors() -> tuple[tf.Tensor, tf.Tensor]:
        rows_of_x, columns_of_delta = np.arange(rows.inputs), np.arange(columns.outputs)
        return (
            _gather_pixels(x, rows_of_x[:, np.newaxis], columns.inputs_of_outputs()),
            _gather_pixels(delta, rows.outputs_of_inputs(), columns_of_delta[:, np.newaxis]),
        )

    def restore(gradients: tf.Tensor) -> tf.Tensor:
        # Columns of the kernel are part of X's entries, and its rows part of Delta's: they go back
        # to (height, width, inputs, outputs).
        gradients = tf.reshape(gradients, [-1, width, inputs, height, outputs])
        return tf.transpose(gradients, [0, 3, 1, 2, 4])

    size = (x.shape[0], rows.inputs * columns.outputs, width * inputs, height * outputs)
    return Factored(size, make_factors, restore)


def _gather_pixels(images: tf.Tensor, rows: np.ndarray, columns: np.ndarray) -> tf.Tensor:
    """Gathers, for each position, the pixels that a window reads there.

    Args:
        images: Shape (N, H, W, C).
        rows: For each position along the height, rows of images, shape (P, S).
        columns: For each position along the width, columns of images, shape (Q, T).

    Returns:
        Shape (N, P Q, S T C); zero where a row or column is `_PADDING`.
    """
    count, height, width, channels = images.shape
    rows, columns = rows[:, np.newaxis, :, np.newaxis], columns[np.newaxis, :, np.newaxis, :]
    outside = (rows == _PADDING) | (columns == _PADDING)
    # A pixel of zeros behind the last one stands for all that are outside.
    pixels = np.where(outside, height * width, rows * width + columns)
    pixels = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1)
    images = tf.reshape(images, [count, height * width, channels])
    # Each pixel once and in order, as for a kernel of 1 x 1: nothing need be copied.
    if np.array_equal(pixels[:, 0], np.arange(height * width)) and pixels.shape[1] == 1:
        return images
    if outside.any():
        # Faster than `tf.pad`, which does not copy whole images at once.
        images = tf.concat([images, tf.zeros([count, 1, channels], images.dtype)], axis=1)
    gathered = tf.gather(images, pixels.astype(np.int32), axis=1)
    return tf.reshape(gathered, [count, len(pixels), pixels.shape[1] * channels])
