"""Tests of the architectures against published numbers and NumPy implementations."""

import functools

import keras
import numpy as np
import pytest
import scipy.stats
from marks import each_value, nightly

from fisher_keras.models import ARCHITECTURES, build_model
from fisher_keras.models.activation import ACTIVATIONS
from fisher_keras.models.resnet import halving_shortcut

# The smallest network of each architecture, for images of 8x8 and more.
SMALL = {
    "cnn": {"width": 1 / 16},
    "resnet": {"depth": 8, "width": 4},
    "wide_resnet": {"depth": 10, "width": 2},
    "densenet": {"depth": 10, "width": 4},
}


def build_small(arch, input_shape=(8, 8, 3), **kwargs):
    return build_model(arch, 10, input_shape, **SMALL[arch], **kwargs)


# --- Numbers of parameters -------------------------------------------------------------------


@functools.cache
def count(arch, **options):
    variables = build_model(arch, 10, **options).trainable_variables
    return sum(int(np.prod(variable.shape)) for variable in variables)


@pytest.mark.parametrize(
    ("arch", "options", "published", "digits"),
    [
        # He et al. (2016a), Table 6.
        ("resnet", {}, 0.27e6, 1e4),
        ("resnet", {"depth": 32}, 0.46e6, 1e4),
        # Zagoruyko and Komodakis, Tables 4 and 5.
        ("wide_resnet", {"depth": 40, "width": 1}, 0.6e6, 1e5),
        ("wide_resnet", {"depth": 16, "width": 8}, 11.0e6, 1e5),
        # Huang et al., Table 2.
        ("densenet", {}, 0.8e6, 1e5),
        # The same of networks that take long to build.
        *(
            nightly(*network)
            for network in (
                ("resnet", {"depth": 56}, 0.85e6, 1e4),
                ("resnet", {"depth": 110}, 1.7e6, 1e5),
                ("wide_resnet", {"depth": 40, "width": 2}, 2.2e6, 1e5),
                ("wide_resnet", {"depth": 40, "width": 4}, 8.9e6, 1e5),
                ("wide_resnet", {"depth": 28, "width": 10}, 36.5e6, 1e5),
                ("densenet", {"depth": 250, "width": 24}, 15.3e6, 1e5),
            )
        ),
    ],
)
def test_number_of_parameters_is_the_published_one(arch, options, published, digits):
    assert round(count(arch, **options) / digits) * digits == pytest.approx(published)


def convolution(size, channels, filters):
    return size * size * channels * filters


def hand_count_cnn():
    shapes = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 192), (192, 192)]
    return sum(9 * i * o + o for i, o in shapes) + 192 * 10 + 10


def hand_count_resnet20():
    # Convolutions: the first, then six a stage, the first of which changes the channels.
    kernels = 9 * (3 * 16 + 6 * 16 * 16)
    kernels += 9 * (16 * 32 + 5 * 32 * 32)
    kernels += 9 * (32 * 64 + 5 * 64 * 64)
    # One normalization before each of the 18 convolutions of the stages, and one at the end.
    scales = 2 * (6 * 16 + (16 + 5 * 32) + (32 + 5 * 64) + 64)
    return kernels + scales + 64 * 10 + 10


def hand_count_wide_resnet(n, k):
    total, channels = convolution(3, 3, 16), 16
    for filters in (16 * k, 32 * k, 64 * k):
        for _ in range(n):
            total += 2 * channels + convolution(3, channels, filters)
            total += 2 * filters + convolution(3, filters, filters)
            total += convolution(1, channels, filters) if channels != filters else 0
            channels = filters
    return total + 2 * channels + channels * 10 + 10


def hand_count_densenet(layers, k):
    total, channels = convolution(3, 3, 2 * k), 2 * k
    for block in range(3):
        for _ in range(layers):
            total += 2 * channels + convolution(1, channels, 4 * k)
            total += 2 * 4 * k + convolution(3, 4 * k, k)
            channels += k
        if block < 2:
            total += 2 * channels + convolution(1, channels, channels // 2)
            channels //= 2
    return total + 2 * channels + channels * 10 + 10


@pytest.mark.parametrize(
    ("arch", "options", "by_hand", "number"),
    [
        ("cnn", {}, hand_count_cnn(), 815_434),
        ("resnet", {}, hand_count_resnet20(), 269_722),
        ("wide_resnet", {}, hand_count_wide_resnet(4, 2), 1_467_610),
        ("wide_resnet", {"depth": 16, "width": 1}, hand_count_wide_resnet(2, 1), 175_066),
        ("densenet", {}, hand_count_densenet(16, 12), 769_162),
        ("densenet", {"depth": 40, "width": 5}, hand_count_densenet(6, 5), None),
    ],
)
def test_number_of_parameters_is_the_hand_count(arch, options, by_hand, number):
    assert count(arch, **options) == by_hand
    assert number in (None, by_hand)


# --- The function that a network computes, in NumPy ------------------------------------------


def numpy_conv(x, kernel, stride=1):
    """Cross-correlation with kernel_size // 2 zeros on every side."""
    size = kernel.shape[0]
    x = np.pad(x, [(0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    return np.einsum("bhwcij,ijco->bhwo", windows[:, ::stride, ::stride], kernel)


def numpy_pool(x, reduce):
    batch, height, width, channels = x.shape
    return reduce(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def relu(x):
    return np.maximum(x, 0)


SMOOTH = {
    "gelu": lambda x: x * scipy.stats.norm.cdf(x),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softplus": lambda x: np.log(1 + np.exp(x)),
}


class Weights:
    """Hands out a model's weights, drawn at random, in the order of the layers of one kind."""

    def __init__(self, model, seed, activation=relu):
        self.activation = activation
        rng = np.random.default_rng(seed)
        for variable in model.weights:
            scale = 1 / np.sqrt(np.prod(variable.shape[:-1])) if len(variable.shape) > 1 else 0.3
            value = scale * rng.standard_normal(variable.shape)
            is_variance = variable.path.endswith("moving_variance")
            variable.assign(np.abs(value) + 0.5 if is_variance else value)
        kinds = (keras.layers.Conv2D, keras.layers.BatchNormalization, keras.layers.Dense)
        self.layers = [layer for layer in model.layers if isinstance(layer, kinds)]

    def _next(self, matches):
        layer = next(layer for layer in self.layers if matches(layer))
        self.layers.remove(layer)
        return layer.get_weights()

    def conv(self, x, size, stride=1):
        kernel, *bias = self._next(lambda layer: getattr(layer, "kernel_size", 0) == (size, size))
        return numpy_conv(x, kernel, stride) + sum(bias)

    def normalized(self, x):
        gamma, beta, mean, variance = self._next(
            lambda layer: isinstance(layer, keras.layers.BatchNormalization)
        )
        return self.activation((x - mean) / np.sqrt(variance + 1e-5) * gamma + beta)

    def logits(self, x):
        kernel, bias = self._next(lambda layer: isinstance(layer, keras.layers.Dense))
        return x.mean((1, 2)) @ kernel + bias


def numpy_cnn(weights, x):
    for index in range(6):
        x = weights.activation(weights.conv(x, 3))
        if index in (1, 3):
            x = numpy_pool(x, np.max)
    return weights.logits(x)


def numpy_resnet(weights, x):
    x = weights.normalized(weights.conv(x, 3))
    x = x + weights.conv(weights.normalized(weights.conv(x, 3)), 3)
    for _ in range(2):
        residual = weights.conv(weights.normalized(x), 3, stride=2)
        residual = weights.conv(weights.normalized(residual), 3)
        x = x[:, ::2, ::2]
        x = np.concatenate([x, np.zeros_like(x)], axis=-1) + residual
    return weights.logits(weights.normalized(x))


def numpy_wide_resnet(weights, x):
    x = weights.conv(x, 3)
    for stride in (1, 2, 2):
        x = weights.normalized(x)
        residual = weights.normalized(weights.conv(x, 3, stride))
        x = weights.conv(x, 1, stride) + weights.conv(residual, 3)
    return weights.logits(weights.normalized(x))


def numpy_densenet(weights, x):
    x = weights.conv(x, 3)
    for block in range(3):
        bottleneck = weights.conv(weights.normalized(x), 1)
        new = weights.conv(weights.normalized(bottleneck), 3)
        x = np.concatenate([x, new], axis=-1)
        if block < 2:
            x = numpy_pool(weights.conv(weights.normalized(x), 1), np.mean)
    return weights.logits(weights.normalized(x))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("arch", "numpy_forward"),
    [
        ("cnn", numpy_cnn),
        ("resnet", numpy_resnet),
        ("wide_resnet", numpy_wide_resnet),
        ("densenet", numpy_densenet),
    ],
)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_logits_equal_a_numpy_implementation(arch, numpy_forward, activation):
    model = build_small(arch, (12, 8, 3), activation=activation)
    weights = Weights(model, 1, SMOOTH.get(activation, relu))
    images = np.random.default_rng(2).standard_normal((3, 12, 8, 3))
    logits = np.asarray(model(images, training=False))
    assert logits.dtype == np.float64
    # Keras' GELU has a constant of float32.
    rtol = 1e-5 if activation == "gelu" else 1e-9
    np.testing.assert_allclose(logits, numpy_forward(weights, images), rtol=rtol, atol=1e-12)
    assert not weights.layers, "the NumPy implementation left layers out"
    assert np.any(logits < 0), "probabilities instead of logits"


def test_halving_shortcut_keeps_every_second_pixel_and_appends_zero_channels():
    images = np.random.default_rng(0).standard_normal((2, 7, 6, 3)).astype("float32")
    inputs = keras.Input((7, 6, 3))
    model = keras.Model(inputs, halving_shortcut(inputs))
    expected = np.zeros((2, 4, 3, 6), "float32")
    for row in range(4):
        for column in range(3):
            expected[:, row, column, :3] = images[:, 2 * row, 2 * column]
    np.testing.assert_array_equal(model(images), expected)
    assert not model.weights


# --- Penalties and initialization ------------------------------------------------------------

# Coefficients of sum(w ** 2). A weight decay d adds d * w to the gradient: d / 2 * sum(w ** 2).
OWN_PENALTY = {"cnn": 1e-4, "resnet": 0.5e-4, "wide_resnet": 2.5e-4, "densenet": 0.5e-4}


def sum_of_squares(arch, model):
    if arch == "cnn":
        penalized = [layer.kernel for layer in model.layers if hasattr(layer, "kernel")]
    else:
        penalized = model.trainable_variables
    return sum(np.sum(np.square(variable.numpy().astype("float64"))) for variable in penalized)


@pytest.mark.parametrize(("arch", "l2_penalty"), each_value(list(ARCHITECTURES), [None, 0.3]))
def test_penalty_is_the_sum_of_squares(arch, l2_penalty):
    model = build_small(arch, l2_penalty=l2_penalty)
    Weights(model, seed=3)  # Biases and scales other than 0 and 1.
    coefficient = OWN_PENALTY[arch] if l2_penalty is None else l2_penalty
    penalty = float(np.sum([np.asarray(loss) for loss in model.losses]))
    assert penalty == pytest.approx(coefficient * sum_of_squares(arch, model), rel=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_penalty_of_zero_adds_no_losses(arch):
    assert build_small(arch, l2_penalty=0).losses == []


@pytest.mark.parametrize(
    ("arch", "fan_axis"), [("cnn", 2), ("resnet", 3), ("wide_resnet", 3), ("densenet", 3)]
)
def test_convolutions_start_with_the_standard_deviation_of_he(arch, fan_axis):
    keras.utils.set_random_seed(0)
    model = build_model(arch, 10)
    kernels = [v.numpy() for v in model.trainable_variables if len(v.shape) == 4]
    scaled = []
    for kernel in kernels:
        fan = kernel.shape[0] * kernel.shape[1] * kernel.shape[fan_axis]
        scaled.append(kernel.ravel() / np.sqrt(2 / fan))
        # Five standard errors of the standard deviation of n normal numbers, 1 / sqrt(2 n).
        assert np.std(scaled[-1]) == pytest.approx(1, abs=5 / np.sqrt(2 * kernel.size))
    scaled = np.concatenate(scaled)
    assert np.mean(scaled) == pytest.approx(0, abs=5 / np.sqrt(scaled.size))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_another_activation_changes_no_weight_and_no_penalty(arch):
    networks = []
    for activation in (None, "gelu"):
        keras.backend.clear_session()  # Names are counted.
        keras.utils.set_random_seed(0)
        networks.append(build_small(arch, activation=activation))
    usual, smooth = networks
    for first, second in zip(usual.weights, smooth.weights, strict=True):
        assert first.path == second.path
        np.testing.assert_array_equal(first, second)
    assert len(usual.losses) == len(smooth.losses)
    np.testing.assert_array_equal(sum(usual.losses), sum(smooth.losses))


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="activation must be one of"):
        build_model("cnn", 10, activation="glu")


@pytest.mark.parametrize("arch", ["resnet", "wide_resnet", "densenet"])
def test_linear_layer_starts_uniform_as_in_torch(arch):
    keras.utils.set_random_seed(0)
    kernel, bias = build_model(arch, 100, (8, 8, 1)).layers[-1].get_weights()
    bound = 1 / np.sqrt(kernel.shape[0])
    assert 0.98 * bound < np.max(np.abs(kernel)) <= bound
    assert np.std(kernel) == pytest.approx(bound / np.sqrt(3), rel=0.03)
    assert not bias.any()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_equal_layers_start_with_different_weights(arch):
    depth = {} if arch == "cnn" else {"depth": 16 if arch != "resnet" else 14}
    model = build_model(arch, 10, (8, 8, 1), **depth)
    kernels = [v.numpy() for v in model.trainable_variables if len(v.shape) == 4]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels)


# --- Keras ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "input_shape"),
    each_value(list(ARCHITECTURES), [(32, 32, 3), (8, 8, 1), (16, 16, 1), (4, 4, 1), (9, 7, 2)]),
)
def test_every_image_size_gives_logits(arch, input_shape):
    model = build_small(arch, input_shape)
    assert model.output_shape == (None, 10)
    assert model(np.zeros((2, *input_shape), "float32"), training=True).shape == (2, 10)


def test_arguments_may_be_numpy_numbers_and_lists():
    model = build_model("resnet", np.int64(5), [8, np.int32(8), 1], depth=np.int64(8), width=4)
    assert model.output_shape == (None, 5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_saved_model_loads_without_the_package(arch, tmp_path):
    model = build_small(arch)
    Weights(model, seed=4)
    images = np.random.default_rng(5).standard_normal((3, 8, 8, 3)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert "fisher_keras" not in loaded.to_json()
    np.testing.assert_array_equal(loaded(images), model(images))
    assert len(loaded.losses) == len(model.losses) > 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_mixed_precision_computes_in_half_and_returns_full_precision(arch, set_policy):
    set_policy("mixed_float16")
    model = build_small(arch)
    logits = model(np.ones((2, 8, 8, 3), "float32"), training=True)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert {layer.compute_dtype for layer in convolutions} == {"float16"}
    assert {variable.dtype for variable in model.variables} == {"float32"}
    assert logits.dtype == "float32"
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    "arch", [nightly(arch) if arch == "wide_resnet" else arch for arch in ARCHITECTURES]
)
def test_a_few_steps_lower_the_loss(arch):
    keras.utils.set_random_seed(0)
    model = build_small(arch)
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    rng = np.random.default_rng(6)
    images, labels = rng.standard_normal((20, 8, 8, 3)).astype("float32"), np.arange(20) % 10
    losses = [float(model.train_on_batch(images, labels)) for _ in range(30)]
    assert losses[-1] < losses[0]


# --- Bad arguments --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"arch": "vgg"},
            "arch must be one of 'cnn', 'resnet', 'wide_resnet', 'densenet'. Given: 'vgg'",
        ),
        ({"num_classes": 1}, "num_classes must be a whole number, 2 or greater. Given: 1"),
        ({"num_classes": 2.5}, "num_classes must be a whole number, 2 or greater. Given: 2.5"),
        ({"input_shape": (32, 32)}, r"input_shape must be \(height, width, channels\), got"),
        ({"input_shape": 32}, r"input_shape must be \(height, width, channels\), got 32"),
        ({"input_shape": (3, 32, 3)}, "height in input_shape must be .* 4 or greater. Given: 3"),
        ({"input_shape": (32, None, 3)}, "width in input_shape must be .* Given: None"),
        ({"input_shape": (32, 32, 0)}, "number of channels in input_shape must be .* Given: 0"),
        ({"l2_penalty": -1e-4}, "l2_penalty must be a number, 0 or greater. Given: -0.0001"),
        ({"l2_penalty": float("nan")}, "l2_penalty must be a number, 0 or greater. Given: nan"),
        ({"l2_penalty": "big"}, "l2_penalty must be a number, 0 or greater. Given: 'big'"),
        ({"depth": 6}, "cnn always has 6 convolutions: leave out depth, got 6"),
        ({"width": 0}, "width of cnn .* greater than 0. Given: 0"),
        ({"width": True}, "width of cnn .* greater than 0. Given: True"),
        ({"width": float("inf")}, "width of cnn .* greater than 0. Given: inf"),
        ({"arch": "resnet", "depth": 18}, r"resnet must be 6n\+2 .* got 18; use 14 or 20"),
        ({"arch": "resnet", "depth": 2}, r"resnet must be 6n\+2 .* got 2; use 8 or 14"),
        (
            {"arch": "resnet", "depth": 20.5},
            "depth of resnet must be a whole number.*: 20.5",
        ),
        (
            {"arch": "resnet", "width": 0},
            "width of resnet .* whole number, 1 or greater",
        ),
        ({"arch": "wide_resnet", "depth": 20}, r"wide_resnet must be 6n\+4 .* use 16 or 22"),
        ({"arch": "wide_resnet", "width": 1.5}, "width of wide_resnet .* Given: 1.5"),
        ({"arch": "densenet", "depth": 121}, r"densenet must be 6n\+4 .* use 118 or 124"),
        ({"arch": "densenet", "width": True}, "width of densenet .* Given: True"),
    ],
)
def test_bad_arguments_get_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_model(**{"arch": "cnn", "num_classes": 10, **arguments})
