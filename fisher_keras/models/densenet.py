"""DenseNet-BC for CIFAR: bottleneck layers, and compression by 0.5 between the blocks.

Gao Huang, Zhuang Liu, Laurens van der Maaten, Kilian Q. Weinberger: Densely Connected
Convolutional Networks. CVPR 2017.
"""

import keras

from fisher_keras.arguments import whole_number
from fisher_keras.models.layers import batch_norm_relu, blocks_per_stage, classifier, conv

# Half the weight decay of the paper, 1e-4, whose gradient is decay * w.
L2_PENALTY = 1e-4 / 2


def build(
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    depth: int = 100,
    width: int = 12,
    l2_penalty: float = L2_PENALTY,
) -> keras.Model:
    """Builds a DenseNet-BC without dropout, as the paper has it for augmented images.

    Args:
        num_classes: the number of classes K.
        input_shape: (H, W, channels) of an image.
        depth: number of layers with weights L, 6n+4.
        width: the growth rate k, the channels that each layer adds.
        l2_penalty: coefficient of the sum of squares of all trainable variables.

    Returns:
        A functional model with logits of shape (batch, num_classes).

    Raises:
        ValueError: if depth or width cannot be built.
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
