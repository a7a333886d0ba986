"""The plain CNN of Appendix E, similar to the baseline of Lee et al. (2016).

Chen-Yu Lee, Patrick Gallagher, Zhuowen Tu: Generalizing Pooling Functions in Convolutional Neural
Networks: Mixed, Gated, and Tree. AISTATS 2016.
"""

import keras

from fisher_keras.arguments import real_number
from fisher_keras.models import layers

FILTERS = (64, 64, 128, 128, 192, 192)
# Appendix E: "l2 regularization of a coefficient 0.0001".
L2_PENALTY = 1e-4


def build(
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    width: float = 1.0,
    l2_penalty: float = L2_PENALTY,
) -> keras.Model:
    """Builds the plain CNN.

    Six 3x3 convolutions with ReLU, a 2x2 max pooling after the second and the fourth, global
    average pooling and a linear layer. All kernels, and no biases, are penalized.

    Args:
        num_classes: the number of classes K.
        input_shape: (H, W, channels) of an image.
        width: factor on the numbers of filters 64, 64, 128, 128, 192, 192.
        l2_penalty: coefficient of the sum of squares of all kernels.

    Returns:
        A functional model with logits of shape (batch, num_classes).

    Raises:
        ValueError: if the width is not a positive number.
    """
    width = real_number("The width of cnn (factor on its filters)", width, above=0)
    inputs = keras.Input(input_shape)
    x = inputs
    for index, filters in enumerate(FILTERS, start=1):
        x = keras.layers.Conv2D(
            max(1, round(width * filters)),
            3,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",
            kernel_regularizer=layers.l2(l2_penalty),
        )(x)
        if index in (2, 4):
            x = keras.layers.MaxPooling2D(2)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    logits = keras.layers.Dense(
        num_classes,
        kernel_initializer="he_normal",
        kernel_regularizer=layers.l2(l2_penalty),
        dtype=layers.logits_dtype(),
    )(x)
    return keras.Model(inputs, logits, name="cnn")
