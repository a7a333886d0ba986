"""step_length and direction against closed forms, float64 and half precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from closed_forms import examples, softmax_regression
from marks import each_value, nightly
from small_models import (
    assert_close,
    assert_equal,
    compiled,
    conv_net,
    images,
    softmax_regression_model,
    sub_batches_of,
    weights_of,
)
from test_algorithm import cross_entropy, pieces, quadratic, weights_at

from fisher_keras.classifier import precision
from fisher_keras.regularizer.algorithm import DIRECTIONS, finite_difference
from fisher_keras.regularizer.step_types import LossAndGradient

SIDES = {"descent": (0, -1), "ascent": (1, 0), "central": (1, -1)}
OPTIONS = [(direction, length) for direction in DIRECTIONS for length in (None, 0.4)]


def part_of_sub_batch(loss_at, weights, alpha, step_length, direction):
    """Equation 6 in NumPy, given `loss_at(weights)` -> loss, gradient."""
    _, g = loss_at(weights)
    norm = np.sqrt(sum(np.sum(d**2) for d in g))
    length = alpha * norm if step_length is None else step_length
    upper, lower = (
        loss_at([w + side * length * d / norm for w, d in zip(weights, g, strict=True)])
        for side in SIDES[direction]
    )
    factor = alpha * norm / length / (2 if direction == "central" else 1)
    gradient = [factor * (a - b) for a, b in zip(upper[1], lower[1], strict=True)]
    return factor * (upper[0] - lower[0]), gradient


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("direction", "step_length"), OPTIONS)
def test_a_quadratic_loss_has_one_gradient_for_all(direction, step_length, known):
    """alpha A g, exactly; R has the curvature that its side of w sees."""
    matrix, vector, loss = quadratic()
    w, alpha = np.random.RandomState(1).randn(6), 0.3
    weights = [tf.constant(piece) for piece in pieces(w)]
    g = matrix @ w - vector
    length = alpha * np.linalg.norm(g) if step_length is None else step_length
    curvature = alpha * length / np.linalg.norm(g) * g @ matrix @ g / 2
    sign = {"descent": -1, "ascent": 1, "central": 0}[direction]
    here = loss(weights) if known else None
    result = finite_difference(loss, weights, alpha, here, step_length, direction)
    np.testing.assert_allclose(result.loss, alpha * g @ g + sign * curvature)
    assert_close(result.gradient, pieces(alpha * matrix @ g))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("known", [False, True])
def test_a_gradient_of_zero_gives_zero(direction, known):
    weights = [tf.zeros([2, 2], tf.float64), tf.zeros([2], tf.float64)]

    def loss(weights):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            value = sum(tf.reduce_sum(piece**2) for piece in weights)
        return type("Loss", (), {"loss": value, "gradient": tape.gradient(value, weights)})

    here = loss(weights) if known else None
    result = finite_difference(loss, weights, 0.1, here, 0.05, direction)
    assert float(result.loss) == 0
    assert_close(result.gradient, [np.zeros((2, 2)), np.zeros(2)])


@pytest.mark.parametrize(("direction", "step_length"), OPTIONS)
def test_softmax_regression(direction, step_length):
    x, labels = examples(4)
    weights = weights_at(1)
    expected = part_of_sub_batch(
        lambda w: softmax_regression(x, labels, w), weights, 0.7, step_length, direction
    )
    result = finite_difference(
        cross_entropy(x, labels),
        list(map(tf.constant, weights)),
        0.7,
        None,
        step_length,
        direction,
    )
    np.testing.assert_allclose(result.loss, expected[0])
    assert_close(result.gradient, expected[1])


@pytest.mark.parametrize(
    ("difference", "way"), each_value(OPTIONS[1:], ["graph", "xla", "shared"])
)
def test_a_step_of_the_model(float64, difference, way):
    """One step of M = 3 uneven sub-batches, in every way to run it."""
    direction, step_length = difference
    x, y = examples(11)
    model = compiled(
        softmax_regression_model(),
        optimizer=keras.optimizers.SGD(1.0),
        alpha=0.3,
        beta=2.0,
        num_sub_batches=3,
        clip_norm=None,
        share_gradients=way == "shared",
        step_length=step_length,
        direction=direction,
        compile_kwargs={"jit_compile": way == "xla"},
    )
    weights = weights_of(model)
    parts = sub_batches_of(model, 11)
    terms = [
        part_of_sub_batch(
            lambda w, p=part: softmax_regression(x[p], y[p], w),
            weights,
            0.3,
            step_length,
            direction,
        )
        for part in parts
    ]
    plain = [softmax_regression(x, y, weights)[1]]
    if way == "shared":
        plain = [softmax_regression(x[p], y[p], weights)[1] for p in parts]
    logs = model.train_on_batch(x, y, return_dict=True)
    expected = [
        w
        - np.mean([g[i] for g in plain], axis=0)
        - 2.0 * np.mean([gradient[i] for _, gradient in terms], axis=0)
        for i, w in enumerate(weights)
    ]
    assert_close(weights_of(model), expected)
    assert logs["fisher_regularizer"] == pytest.approx(np.mean([r for r, _ in terms]))


@pytest.mark.parametrize(("direction", "exponent"), [("ascent", 1), nightly("central", 2)])
def test_batch_normalization_and_dropout_are_those_of_w(float64, direction, exponent):
    """As the step falls to 0, all sides give the Hessian-vector product: same masks, moments."""
    x, y = images()
    product = tf.function(
        compiled(
            conv_net(dropout=0.4), alpha=0.1, gradient="hessian_vector_product"
        ).regularized_gradients
    )(x, y)
    errors = []
    for length in (1e-2, 1e-3):
        model = compiled(conv_net(dropout=0.4), alpha=0.1, step_length=length, direction=direction)
        found = tf.function(model.regularized_gradients)(x, y)
        errors.append(float(abs(found[2] - product[2])))
    assert errors[0] / errors[1] == pytest.approx(10**exponent, rel=0.3)


# -------------------------------------------------------------------------------- half precision


POLICIES = ["mixed_float16", "mixed_bfloat16"]


@pytest.fixture(params=POLICIES)
def policy(request):
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


def optimizer_for(policy):
    sgd = keras.optimizers.SGD(0.1, momentum=0.9)
    if policy == "mixed_bfloat16":
        return sgd
    return keras.optimizers.LossScaleOptimizer(sgd, initial_scale=64.0)


def regularizer_gradient(network, weights, policy, step_length, direction):
    """The gradient of R / alpha, and R / alpha, at weights of another network."""
    x, y = images(32)
    model = compiled(
        network,
        optimizer=optimizer_for(policy),
        alpha=1e-4,
        beta=1e4,
        num_sub_batches=2,
        step_length=step_length,
        direction=direction,
    )
    model.set_weights(weights)
    with_r, _, r = model.regularized_gradients(x, y)
    model.beta = 0.0
    without, _, _ = model.regularized_gradients(x, y)
    flat = [
        (a - b).numpy().ravel().astype("float64") for a, b in zip(with_r, without, strict=True)
    ]
    return np.concatenate(flat), float(r) / 1e-4


@pytest.mark.parametrize(
    ("policy", "direction"), each_value(POLICIES, list(DIRECTIONS)), indirect=["policy"]
)
def test_half_precision_takes_a_step_length(float64, policy, direction):
    """Against the same difference in float64; and it trains."""
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy(policy)
    least = {"mixed_float16": 0.003, "mixed_bfloat16": 0.025}[policy]
    weights = conv_net().get_weights()
    half = {
        length: regularizer_gradient(conv_net(), weights, policy, length, direction)
        for length in (least, 0.1)
    }
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    for length, (gradient, trace) in half.items():
        exact, exact_trace = regularizer_gradient(
            conv_net(), weights, "mixed_bfloat16", length, direction
        )
        error = np.linalg.norm(gradient - exact) / np.linalg.norm(exact)
        assert error < (0.5 if length == least else 0.2)
        assert trace == pytest.approx(exact_trace, rel=0.3 if length == least else 0.1)


@pytest.mark.parametrize(
    ("policy", "layer"),
    each_value(POLICIES, [keras.layers.LSTM, keras.layers.GRU]),
    indirect=["policy"],
)
def test_half_precision_trains_a_recurrent_network(policy, layer):
    random = np.random.RandomState(0)
    x, y = random.randn(64, 4, 3), random.randint(0, 3, 64)
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((4, 3)), layer(8), keras.layers.Dense(3)])
    model = compiled(network, optimizer=optimizer_for(policy), step_length=0.1, beta=50.0, seed=1)
    history = model.fit(x, y, batch_size=16, epochs=10, verbose=0).history
    assert np.isfinite(history["fisher_trace"]).all()
    assert history["loss"][-1] < history["loss"][0]


def test_the_refusals_of_half_precision_name_a_step_length(policy):
    name = policy.removeprefix("mixed_")
    least = {"float16": 0.003, "bfloat16": 0.025}[name]
    with pytest.raises(ValueError, match=rf"{name}: .*Use step_length=0.1 .*product'") as error:
        compiled(conv_net())
    assert str(error.value).index("step_length") < str(error.value).index("hessian_vector")
    message = rf"step_length must be {least:g} or greater .* in {name}.*Given: step_length=0.002\."
    with pytest.raises(ValueError, match=message):
        compiled(conv_net(), step_length=0.002)
    compiled(conv_net(), step_length=least)
    compiled(conv_net(), beta=0)  # No difference is taken.


def test_tensor_float_32_is_half_precision_here(monkeypatch):
    monkeypatch.setattr(precision, "rounding_of_products", lambda: 2.0**-10)
    with pytest.raises(ValueError, match=r"TensorFloat-32.*step_length=0\.1.*enable_"):
        compiled(conv_net())
    with pytest.raises(ValueError, match=r"step_length must be 0.003 or greater"):
        compiled(conv_net(), step_length=1e-3)
    compiled(conv_net(), step_length=0.1)


@pytest.mark.parametrize("quantized", ["int8", "int4"])
def test_inputs_in_int8_are_half_precision(quantized):
    """The difference is about as far from that in float32 as in bfloat16, the product farther."""
    layer = keras.layers.Dense(8)
    network = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(3)])
    layer.quantize(quantized)
    layer.enable_lora(2)
    if getattr(layer, "inputs_quantizer", None) is None:  # Only weights are rounded, once.
        compiled(network)
        return
    with pytest.raises(ValueError, match=r"int8: .*Use step_length=0.1 .*, or quantize no inputs"):
        compiled(network)
    with pytest.raises(ValueError, match=r"second derivatives .* step_length=0.1, or quantize no"):
        compiled(network, gradient="hessian_vector_product")
    compiled(network, step_length=0.1)


# ------------------------------------------------------------------------------------- the options


def test_without_options_the_step_is_the_papers(float64):
    x, y = images()
    default = compiled(conv_net(), alpha=0.1).regularized_gradients(x, y)
    named = compiled(conv_net(), alpha=0.1, step_length=None, direction="descent")
    assert_equal(default[0], named.regularized_gradients(x, y)[0])


@pytest.mark.parametrize("options", [{"step_length": 0.1}, {"direction": "ascent"}])
def test_a_product_has_no_difference(options):
    with pytest.raises(ValueError, match=r"finite_difference.*Given: step_length="):
        compiled(conv_net(), gradient="hessian_vector_product", **options)


@pytest.mark.parametrize("policy", ["float32", "float64"])
@pytest.mark.parametrize(
    ("options", "least"), [({"alpha": 0.9e-6}, "alpha=1e-06"), ({"step_length": 0.9e-5}, "1e-05")]
)
def test_a_step_that_is_lost_in_rounding_is_refused(set_policy, policy, options, least):
    set_policy(policy)
    if policy == "float64":
        compiled(conv_net(), **options)
        return
    with pytest.raises(ValueError, match=rf"{least} or greater.*rounding|rounding.*{least} or gr"):
        compiled(conv_net(), **options)
    compiled(conv_net(), **{name: 1.2 * value for name, value in options.items()})


@pytest.mark.parametrize("functional", [False, True])
def test_layers_in_float64_may_be_in_a_model_of_another_policy(functional):
    """A model that only holds layers computes nothing."""
    network = keras.Sequential(
        [keras.Input((4,), dtype="float64"), keras.layers.Dense(3, dtype="float64")]
    )
    if functional:
        network = keras.Model(network.inputs, network.outputs[0])
    compiled(network, alpha=1e-7)
    dense = keras.layers.Dense(3, dtype="float32")
    with pytest.raises(ValueError, match="computes in float32"):
        compiled(keras.Sequential([network, dense]), alpha=1e-7)


@pytest.mark.parametrize(
    "options", [{"alpha": np.float32(1e-6)}, {"step_length": np.float32(1e-5)}]
)
def test_a_least_step_may_be_rounded_to_float32(options):
    compiled(conv_net(), **options)


@pytest.mark.parametrize(("scale", "options"), [(10, {"alpha": 1e-6}), (1, {"step_length": 1e-5})])
def test_the_least_step_has_the_difference_of_float64(scale, options):
    """To within about a tenth, if the gradient is as long as the default of the clipping."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(16, 20)), tf.constant(random.integers(0, 5, 16))
    kernel = random.normal(size=(20, 5))

    def difference(dtype):
        def loss(weights):
            with tf.GradientTape() as tape:
                tape.watch(weights)
                outputs = tf.cast(x, dtype) @ weights[0]
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, outputs)
                value = tf.cast(scale, dtype) * tf.reduce_mean(losses)
            return LossAndGradient(value, tape.gradient(value, weights))

        arguments = {"alpha": 1e-4} | options
        return (
            finite_difference(loss, [tf.constant(kernel, dtype)], **arguments).gradient[0].numpy()
        )

    exact = difference("float64")
    assert np.linalg.norm(difference("float32") - exact) < 0.2 * np.linalg.norm(exact)
