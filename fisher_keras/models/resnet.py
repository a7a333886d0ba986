"""ResNet for CIFAR (He et al., 2016a, Section 4.2) with pre-activation (He et al., 2016b).

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun: Deep Residual Learning for Image Recognition.
CVPR 2016 (a). Identity Mappings in Deep Residual Networks. ECCV 2016 (b).
"""

import keras

from fisher_keras.arguments import whole_number
from fisher_keras.models.layers import batch_norm_relu, blocks_per_stage, classifier, conv
from fisher_keras.models.recipe import Recipe

# He et al. (2016a), Section 4.2: weight decay 1e-4 and momentum 0.9 (not Nesterov's) as in their
# Section 3.4, batches of 128, learning rate 0.1, divided by 10 at 32k and 48k of 64k iterations:
# at 391 iterations an epoch epochs 82 and 123 of 164. Their warm-up is for depth 110 alone.
RECIPE = Recipe(
    momentum=0.9,
    nesterov=False,
    learning_rate=0.1,
    schedule=((82, 0.1), (123, 0.1)),
    epochs=164,
    batch_size=128,
    l2_penalty=1e-4 / 2,
)


def build(
    num_classes: int,
    input_shape: tuple[int, int, int],
    *,
    depth: int = 20,
    width: int = 16,
    l2_penalty: float = RECIPE.l2_penalty,
) -> keras.Model:
    """Builds a pre-activation ResNet with shortcuts without parameters.

    Args:
        num_classes: The number of classes K.
        input_shape: (H, W, channels) of an image.
        depth: Number of layers with weights, 6n+2.
        width: Filters of the first stage; the second and third have twice and four times as many.
        l2_penalty: Coefficient of the sum of squares of all trainable variables.

    Returns:
        A functional model with logits of shape (batch, num_classes).

    Raises:
        ValueError: If depth or width cannot be built.
    """
    blocks = blocks_per_stage("resnet", depth, remainder=2)
    width = whole_number("The width of resnet (filters of its first stage)", width, least=1)
    inputs = keras.Input(input_shape)
    x = conv(inputs, width, 3, l2_penalty)
    # He et al. (2016b), Appendix: the first unit's activation comes before the two paths split.
    x = batch_norm_relu(x, l2_penalty)
    x = x + _residual(x, width, l2_penalty)
    for _ in range(blocks - 1):
        x = x + _residual(batch_norm_relu(x, l2_penalty), width, l2_penalty)
    for filters in (2 * width, 4 * width):
        residual = _residual(batch_norm_relu(x, l2_penalty), filters, l2_penalty, strides=2)
        x = halving_shortcut(x) + residual
        for _ in range(blocks - 1):
            x = x + _residual(batch_norm_relu(x, l2_penalty), filters, l2_penalty)
    return keras.Model(inputs, classifier(x, num_classes, l2_penalty), name="resnet")


def halving_shortcut(x: keras.KerasTensor) -> keras.KerasTensor:
    """Applies the shortcut "A" of He et al. (2016a), which has no parameters.

    Args:
        x: Images of shape (batch, H, W, channels).

    Returns:
        Every second pixel, followed by as many channels of zeros: a tensor of shape
        (batch, ceil(H / 2), ceil(W / 2), 2 * channels).
    """
    pixels = keras.layers.AveragePooling2D(pool_size=1, strides=2)(x)
    return keras.ops.pad(pixels, ((0, 0), (0, 0), (0, 0), (0, x.shape[-1])))


def _residual(
    x: keras.KerasTensor, filters: int, l2_penalty: float, strides: int = 1
) -> keras.KerasTensor:
    """Applies the two convolutions of a unit to its activated input."""
    x = conv(x, filters, 3, l2_penalty, strides)
    return conv(batch_norm_relu(x, l2_penalty), filters, 3, l2_penalty)
