"""The networks of Section 7.2 (Appendix E) and their recipes, by name."""

from collections.abc import Sequence

import keras

from fisher_keras.arguments import one_of, real_number, whole_number
from fisher_keras.models import cnn, densenet, resnet, wide_resnet
from fisher_keras.models.activation import ACTIVATIONS, with_activation

_NETWORKS = {"cnn": cnn, "resnet": resnet, "wide_resnet": wide_resnet, "densenet": densenet}
ARCHITECTURES = tuple(_NETWORKS)
RECIPES = {arch: network.RECIPE for arch, network in _NETWORKS.items()}

# Every architecture halves height and width twice.
_MIN_SIZE = 4


def build_model(
    arch: str,
    num_classes: int,
    input_shape: Sequence[int] = (32, 32, 3),
    *,
    depth: int | None = None,
    width: float | None = None,
    l2_penalty: float | None = None,
    activation: str | None = None,
) -> keras.Model:
    """Builds one of the paper's networks; without further arguments exactly the paper's.

    Args:
        arch: "cnn", "resnet" (ResNet-20), "wide_resnet" (WRN-28-2) or "densenet" (DenseNet-BC,
            L=100, k=12).
        num_classes: The number of classes K, at least 2.
        input_shape: (H, W, channels) of an image, H and W at least 4.
        depth: Number of layers: resnet 6n+2 (20), wide_resnet 6n+4 (28), densenet 6n+4 (100). The
            cnn has none.
        width: For the cnn a factor on the numbers of filters (1.0); resnet: filters of the first
            stage (16); wide_resnet: widening factor k (2); densenet: growth rate k (12).
        l2_penalty: Coefficient of the sum of squares, in `model.losses`, of all kernels of the
            cnn (1e-4) and of all trainable variables of the others (half their papers' weight
            decay: 5e-5, wide_resnet 2.5e-4). 0 for none.
        activation: "gelu", "silu" or "softplus" in the place of ReLU, for gradients without
            ReLU's jumps. The first weights are those that the network with ReLU has.

    Returns:
        A functional model from images of shape (batch, H, W, channels) to logits of shape
        (batch, num_classes), made of Keras' own layers: a saved one loads without this package.

    Raises:
        ValueError: If an argument cannot be built; the message says what can.
    """
    check_architecture(arch)
    num_classes = whole_number("num_classes", num_classes, least=2)
    input_shape = _image_shape(input_shape)
    if arch == "cnn" and depth is not None:
        raise ValueError(f"cnn always has 6 convolutions: leave out depth, got {depth!r}.")
    if l2_penalty is not None:
        l2_penalty = real_number("l2_penalty", l2_penalty, least=0)
    if activation is not None:
        one_of("activation", activation, ACTIVATIONS)
    options = {"depth": depth, "width": width, "l2_penalty": l2_penalty}
    given = {name: value for name, value in options.items() if value is not None}
    model = _NETWORKS[arch].build(num_classes, input_shape, **given)
    return model if activation is None else with_activation(model, activation)


def check_architecture(arch: str) -> None:
    """Raises a `ValueError` unless there is such an architecture."""
    one_of("arch", arch, ARCHITECTURES)


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns the shape as a tuple, if images of it can be halved twice."""
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(f"input_shape must be (height, width, channels), got {shape!r}.")
    names = {"height": _MIN_SIZE, "width": _MIN_SIZE, "number of channels": 1}
    return tuple(
        whole_number(f"The {name} in input_shape", size, least)
        for size, (name, least) in zip(shape, names.items(), strict=True)
    )
