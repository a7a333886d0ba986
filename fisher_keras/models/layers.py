"""Layers shared by the networks with batch normalization, as their authors' code has them."""

import keras

from fisher_keras.arguments import whole_number


def blocks_per_stage(arch: str, depth: int, remainder: int) -> int:
    """Returns n of a network of three stages whose depth is 6n + `remainder`.

    Args:
        arch: The architecture's name, for the message.
        depth: Number of layers with weights, counted as in the architecture's paper.
        remainder: The layers outside the three stages.

    Returns:
        The number n of two-layer blocks in each stage.

    Raises:
        ValueError: If no n >= 1 gives this depth; the message names the nearest depths.
    """
    depth = whole_number(f"The depth of {arch}", depth, least=1)
    blocks, rest = divmod(depth - remainder, 6)
    if blocks < 1 or rest:
        below = 6 * max(blocks, 1) + remainder
        raise ValueError(
            f"The depth of {arch} must be 6n+{remainder} with n >= 1, got {depth}; "
            f"use {below} or {below + 6}, for example."
        )
    return blocks


def l2(l2_penalty: float) -> keras.regularizers.Regularizer | None:
    """Returns the Keras regularizer `l2_penalty * sum(w ** 2)`; None for a penalty of 0."""
    return keras.regularizers.L2(l2_penalty) if l2_penalty else None


def conv(
    x: keras.KerasTensor, filters: int, kernel_size: int, l2_penalty: float, strides: int = 1
) -> keras.KerasTensor:
    """Applies a square convolution without bias.

    The padding is kernel_size // 2 zeros on every side. Keras' "same" puts them at the bottom
    right only where a 3x3 convolution has stride 2, which shifts its output by one pixel against
    a shortcut that keeps the pixels of even coordinates.

    Args:
        x: Images of shape (batch, H, W, channels).
        filters: Channels of the output.
        kernel_size: 1 or 3.
        l2_penalty: Coefficient of the kernel's sum of squares.
        strides: 1, or 2 to halve H and W (rounded up).

    Returns:
        Images of shape (batch, ceil(H / strides), ceil(W / strides), filters).
    """
    padding = "same"
    if strides > 1 and kernel_size > 1:
        x = keras.layers.ZeroPadding2D(kernel_size // 2)(x)
        padding = "valid"
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding=padding,
        use_bias=False,
        # He et al. (2015), Section 2.2, the form with fan-out: N(0, 2 / (k^2 filters)).
        kernel_initializer=keras.initializers.VarianceScaling(
            2.0, "fan_out", "untruncated_normal"
        ),
        kernel_regularizer=l2(l2_penalty),
    )(x)


def batch_norm_relu(x: keras.KerasTensor, l2_penalty: float) -> keras.KerasTensor:
    """Applies batch normalization and ReLU; the shape stays.

    Momentum and epsilon are Torch's, with which all these networks were trained (Torch's momentum
    of 0.1 is the weight of the new value, Keras' 0.9 that of the old one).
    """
    x = keras.layers.BatchNormalization(
        momentum=0.9,
        epsilon=1e-5,
        beta_regularizer=l2(l2_penalty),
        gamma_regularizer=l2(l2_penalty),
    )(x)
    return keras.layers.ReLU()(x)


def classifier(x: keras.KerasTensor, num_classes: int, l2_penalty: float) -> keras.KerasTensor:
    """Applies batch normalization, ReLU, global average pooling and a linear layer.

    Args:
        x: Images of shape (batch, H, W, channels).
        num_classes: The number of classes K.
        l2_penalty: Coefficient of every parameter's sum of squares.

    Returns:
        Logits of shape (batch, num_classes).
    """
    x = batch_norm_relu(x, l2_penalty)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.layers.Dense(
        num_classes,
        # Torch's linear layer: uniform within 1 / sqrt(fan-in). The bias starts at 0.
        kernel_initializer=keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
        kernel_regularizer=l2(l2_penalty),
        bias_regularizer=l2(l2_penalty),
        dtype=logits_dtype(),
    )(x)


def logits_dtype() -> str:
    """Returns the dtype of the variables: under mixed precision logits keep full precision."""
    return keras.config.dtype_policy().variable_dtype
