"""The plain CNN of Appendix E, similar to the baseline of Lee et al. (2016).

Chen-Yu Lee, Patrick Gallagher, Zhuowen Tu: Generalizing Pooling Functions in Convolutional Neural
Networks: Mixed, Gated, and Tree. AISTATS 2016.
"""

import keras

from fisher_keras.arguments import real_number
from fisher_keras.models import layers
from fisher_keras.models.recipe import Recipe

_FILTERS = (64, 64, 128, 128, 192, 192)
# Appendix E: "We initialize the weights according to the scheme in He et al. (2016a) and apply l2
# regularization of a coefficient 0.0001. [...] stochastic gradient descent with Nesterov
# momentum set to 0.9 and a batch size of 128. We train 200 epochs in total with the learning
# rate initially set to 0.01 and then divided by 10 at epoch 100 and 150."
RECIPE = Recipe(
    momentum=0.9,
    nesterov=True,
    learning_rate=0.01,
    schedule=((100, 0.1), (150, 0.1)),
    epochs=200,
    batch_size=128,
    l2_penalty=1e-4,
)


def build(
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    width: float = 1.0,
    l2_penalty: float = RECIPE.l2_penalty,
) -> keras.Model:
    """Builds the plain CNN.

    Six 3x3 convolutions with ReLU, a 2x2 max pooling after the second and the fourth, global
    average pooling and a linear layer. All kernels, and no biases, are penalized.

    Args:
        num_classes: The number of classes K.
        input_shape: (H, W, channels) of an image.
        width: Factor on the numbers of filters 64, 64, 128, 128, 192, 192.
        l2_penalty: Coefficient of the sum of squares of all kernels.

    Returns:
        A functional model with logits of shape (batch, num_classes).

    Raises:
        ValueError: If the width is not a positive number.
    """
    width = real_number("The width of cnn (factor on its filters)", width, above=0)
    inputs = keras.Input(input_shape)
    x = inputs
    for index, filters in enumerate(_FILTERS, start=1):
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
