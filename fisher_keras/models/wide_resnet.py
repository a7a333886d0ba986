"""Wide ResNet, WRN-d-k-B(3,3).

Sergey Zagoruyko, Nikos Komodakis: Wide Residual Networks. BMVC 2016.
"""

import keras

from fisher_keras.arguments import whole_number
from fisher_keras.models.layers import batch_norm_relu, blocks_per_stage, classifier, conv
from fisher_keras.models.recipe import Recipe

# Section 3 of the paper: Nesterov momentum 0.9, weight decay 5e-4, batches of 128, learning rate
# 0.1, multiplied by 0.2 at 60, 120 and 160 of 200 epochs. Their crops fill the 4 padded pixels
# with reflections.
RECIPE = Recipe(
    momentum=0.9,
    nesterov=True,
    learning_rate=0.1,
    schedule=((60, 0.2), (120, 0.2), (160, 0.2)),
    epochs=200,
    batch_size=128,
    l2_penalty=5e-4 / 2,
)


def build(
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    depth: int = 28,
    width: int = 2,
    l2_penalty: float = RECIPE.l2_penalty,
) -> keras.Model:
    """Builds a wide ResNet without dropout.

    Args:
        num_classes: The number of classes K.
        input_shape: (H, W, channels) of an image.
        depth: Number of 3x3 and 1x1 convolutions d, 6n+4.
        width: The widening factor k; the stages have 16k, 32k and 64k filters.
        l2_penalty: Coefficient of the sum of squares of all trainable variables.

    Returns:
        A functional model with logits of shape (batch, num_classes).

    Raises:
        ValueError: If depth or width cannot be built.
    """
    blocks = blocks_per_stage("wide_resnet", depth, remainder=4)
    width = whole_number("The width of wide_resnet (widening factor k)", width, least=1)
    inputs = keras.Input(input_shape)
    x = conv(inputs, 16, 3, l2_penalty)
    for filters, strides in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
        x = _block(x, filters, l2_penalty, strides)
        for _ in range(blocks - 1):
            x = _block(x, filters, l2_penalty)
    return keras.Model(inputs, classifier(x, num_classes, l2_penalty), name="wide_resnet")


def _block(
    x: keras.KerasTensor, filters: int, l2_penalty: float, strides: int = 1
) -> keras.KerasTensor:
    """Applies B(3,3); where the channels change, the 1x1 shortcut starts at the activation."""
    activated = batch_norm_relu(x, l2_penalty)
    if x.shape[-1] != filters:
        x = conv(activated, filters, 1, l2_penalty, strides)
    residual = conv(activated, filters, 3, l2_penalty, strides)
    return x + conv(batch_norm_relu(residual, l2_penalty), filters, 3, l2_penalty)
