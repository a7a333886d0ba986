"""DenseNet-BC for CIFAR: bottleneck layers, and compression by 0.5 between the blocks.

Gao Huang, Zhuang Liu, Laurens van der Maaten, Kilian Q. Weinberger: Densely Connected
Convolutional Networks. CVPR 2017.
"""

import keras

from fisher_keras.arguments import whole_number
from fisher_keras.models.layers import batch_norm_relu, blocks_per_stage, classifier, conv
from fisher_keras.models.recipe import Recipe

# Section 4.2 of the paper: Nesterov momentum 0.9 without dampening, weight decay 1e-4, batches of
# 64, learning rate 0.1, divided by 10 at 50% and 75% of 300 epochs; no dropout with augmentation.
RECIPE = Recipe(
    momentum=0.9,
    nesterov=True,
    learning_rate=0.1,
    schedule=((150, 0.1), (225, 0.1)),
    epochs=300,
    batch_size=64,
    l2_penalty=1e-4 / 2,
)


def build(
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    depth: int = 100,
    width: int = 12,
    l2_penalty: float = RECIPE.l2_penalty,
) -> keras.Model:
    """Builds a DenseNet-BC without dropout, as the paper has it for augmented images.

    Args:
        num_classes: The number of classes K.
        input_shape: (H, W, channels) of an image.
        depth: Number of layers with weights L, 6n+4.
        width: The growth rate k, the channels that each layer adds.
        l2_penalty: Coefficient of the sum of squares of all trainable variables.

    Returns:
        A functional model with logits of shape (batch, num_classes).

    Raises:
        ValueError: If depth or width cannot be built.
    """
    layers = blocks_per_stage("densenet", depth, remainder=4)
    growth = whole_number("The width of densenet (growth rate k)", width, least=1)
    inputs = keras.Input(input_shape)
    x = conv(inputs, 2 * growth, 3, l2_penalty)
    x = _dense_block(x, layers, growth, l2_penalty)
    for _ in range(2):
        x = _transition(x, l2_penalty)
        x = _dense_block(x, layers, growth, l2_penalty)
    return keras.Model(inputs, classifier(x, num_classes, l2_penalty), name="densenet")


def _dense_block(
    x: keras.KerasTensor, layers: int, growth: int, l2_penalty: float
) -> keras.KerasTensor:
    """Appends `growth` channels to all channels so far, `layers` times."""
    for _ in range(layers):
        bottleneck = conv(batch_norm_relu(x, l2_penalty), 4 * growth, 1, l2_penalty)
        new = conv(batch_norm_relu(bottleneck, l2_penalty), growth, 3, l2_penalty)
        x = keras.layers.Concatenate()([x, new])
    return x


def _transition(x: keras.KerasTensor, l2_penalty: float) -> keras.KerasTensor:
    """Halves the channels, the height and the width (each rounded down)."""
    x = conv(batch_norm_relu(x, l2_penalty), x.shape[-1] // 2, 1, l2_penalty)
    return keras.layers.AveragePooling2D(2)(x)
