"""FisherRegularizedModel against closed forms, finite differences and a slow implementation."""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from closed_forms import algorithm_1, softmax_regression
from marks import each_value, nightly

from fisher_keras import FisherRegularizedModel
from fisher_keras.regularizer.sub_batches import split_batch

NUM_CLASSES = 3
# Keras holds it in float32: a power of two is exact there, too.
L2 = 2.0**-7


def sparse_loss(**kwargs):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **kwargs)


def smoothed_loss():
    return keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)


def images(count=12, seed=0):
    random = np.random.RandomState(seed)
    return random.randn(count, 6, 6, 2), random.randint(0, NUM_CLASSES, count)


def conv_net(dropout=0.0, batch_norm=True, l2=0.0, activation=None):
    """A small network with all that moves besides weights: moving statistics and a seed."""
    keras.utils.set_random_seed(7)
    penalty = keras.regularizers.L2(l2) if l2 else None
    layers = [
        keras.Input((6, 6, 2)),
        keras.layers.Conv2D(4, 3, kernel_regularizer=penalty),
        keras.layers.BatchNormalization() if batch_norm else keras.layers.Identity(),
        keras.layers.Activation("tanh"),
        keras.layers.Dropout(dropout, seed=5),
        keras.layers.Flatten(),
        keras.layers.Dense(NUM_CLASSES, activation, kernel_regularizer=penalty),
    ]
    return keras.Sequential(layers)


def compiled(model, loss=None, optimizer=None, compile_kwargs=None, **kwargs):
    kwargs.setdefault("seed", 11)
    wrapped = FisherRegularizedModel(model, **kwargs)
    optimizer = optimizer or keras.optimizers.SGD(0.1, momentum=0.9)
    wrapped.compile(optimizer, loss or sparse_loss(), **(compile_kwargs or {}))
    return wrapped


def weights_of(model):
    return [v.numpy() for v in model.trainable_variables]


def state_of(model):
    return [v.numpy() for v in model.non_trainable_variables]


def assert_equal(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(first, second, rtol=1e-9, atol=1e-12):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def sub_batches_of(model, batch_size):
    """The sets of examples that a model's next step splits a batch into."""
    seed = tf.constant([model.seed, int(model.optimizer.iterations)], tf.int64)
    split = split_batch(tf.constant(batch_size), model.num_sub_batches, seed)
    sizes = [int(split.size) + (i < int(split.remainder)) for i in range(int(split.count))]
    return np.split(split.permutation.numpy(), np.cumsum(sizes)[:-1])


# ------------------------------------------------------------- closed form: softmax regression


@pytest.mark.parametrize("shared", [False, True, "auto"])
@pytest.mark.parametrize(
    ("batch_size", "num_sub_batches", "weighted"),
    [
        *((size, count, True) for size, count in ((12, 4), (12, 1), (7, 7), (5, 8), (1, 4))),
        *((11, 4, weighted) for weighted in (False, True)),
    ],
)
def test_equals_the_closed_form(float64, batch_size, num_sub_batches, shared, weighted):
    random = np.random.RandomState(3)
    x, y = random.randn(batch_size, 5), random.randint(0, NUM_CLASSES, batch_size)
    sample_weight = random.rand(batch_size) if weighted else None
    model = compiled(
        keras.Sequential([keras.Input((5,)), keras.layers.Dense(NUM_CLASSES)]),
        alpha=0.3,
        beta=2.0,
        num_sub_batches=num_sub_batches,
        share_gradients=shared,
    )
    gradients, loss, regularizer = model.regularized_gradients(x, y, sample_weight)
    parts = sub_batches_of(model, batch_size)
    by_parts = shared is True
    expected = algorithm_1(x, y, weights_of(model), parts, 0.3, 2.0, sample_weight, by_parts)
    assert_close([loss, regularizer], expected[:2])
    assert_close(gradients, expected[2])


def test_a_step_clips_by_the_global_norm(float64):
    random = np.random.RandomState(3)
    x, y = random.randn(12, 5), random.randint(0, NUM_CLASSES, 12)
    model = compiled(
        keras.Sequential([keras.Input((5,)), keras.layers.Dense(NUM_CLASSES)]),
        optimizer=keras.optimizers.SGD(0.5),
        alpha=0.3,
        beta=2.0,
        num_sub_batches=4,
        clip_norm=0.05,
    )
    before = weights_of(model)
    parts = sub_batches_of(model, 12)
    _, _, gradients = algorithm_1(x, y, before, parts, 0.3, 2.0)
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
    assert norm > 0.05
    logs = model.train_on_batch(x, y, return_dict=True)
    expected = [w - 0.5 * g * 0.05 / norm for w, g in zip(before, gradients, strict=True)]
    assert_close(weights_of(model), expected)
    np.testing.assert_allclose(logs["gradient_norm"], norm)
    np.testing.assert_allclose(logs["fisher_trace"] * 0.3, logs["fisher_regularizer"])


@pytest.mark.parametrize("gradient", ["finite_difference", "hessian_vector_product"])
def test_one_example_a_sub_batch_measures_the_fisher_trace(float64, gradient):
    """R = alpha mean ||g_j||^2 to first order, its error falling with alpha squared."""
    random = np.random.RandomState(3)
    x, y = random.randn(6, 5), random.randint(0, NUM_CLASSES, 6)
    weights, errors = [random.randn(5, 3), random.randn(3)], []
    for alpha in (1e-2, 1e-3):
        model = compiled(
            keras.Sequential([keras.Input((5,)), keras.layers.Dense(NUM_CLASSES)]),
            alpha=alpha,
            num_sub_batches=6,
            gradient=gradient,
        )
        model.set_weights(weights)
        norms = [
            sum(np.sum(g**2) for g in softmax_regression(x[j : j + 1], y[j : j + 1], weights)[1])
            for j in range(6)
        ]
        _, _, regularizer = model.regularized_gradients(x, y)
        errors.append(abs(float(regularizer) - alpha * np.mean(norms)))
    if gradient == "hessian_vector_product":
        assert max(errors) < 1e-12
    else:
        assert 50 < errors[0] / errors[1] < 200


# -------------------------------------------------- small conv nets: slow and obvious in float64


def loss_at(forward, weights, x, y):
    """The mean hard-label loss with weights assigned, batch norm over the batch given."""
    for variable, value in zip(forward.model.trainable_variables, weights, strict=True):
        variable.assign(value)
    logits = forward(tf.constant(x)).numpy()
    logits = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -np.mean(log_probabilities[np.arange(len(y)), y])


def numeric_gradient(function, weights, step=1e-6):
    """Central differences, weight by weight."""
    gradients = []
    for index, weight in enumerate(weights):
        gradient = np.zeros_like(weight)
        for position in np.ndindex(weight.shape):
            moved = [w.copy() for w in weights]
            moved[index][position] += step
            above = function(moved)
            moved[index][position] -= 2 * step
            gradient[position] = (above - function(moved)) / (2 * step)
        gradients.append(gradient)
    return gradients


def tiny_conv_net():
    keras.utils.set_random_seed(7)
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(2, 3),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("tanh"),
            keras.layers.Flatten(),
            keras.layers.Dense(NUM_CLASSES),
        ]
    )


def slow_forward():
    """The network in training mode as a function; a graph, since it is called very often."""
    model = tiny_conv_net()
    forward = tf.function(lambda x: model(x, training=True), reduce_retracing=True)
    forward.model = model
    return forward


@pytest.mark.parametrize("shared", [False, True])
def test_conv_net_equals_finite_differences(float64, shared):
    random = np.random.RandomState(0)
    x, y = random.randn(8, 4, 4, 1), random.randint(0, NUM_CLASSES, 8)
    alpha, beta = 0.5, 3.0
    model = compiled(
        tiny_conv_net(), alpha=alpha, beta=beta, num_sub_batches=2, share_gradients=shared
    )
    gradients, loss, regularizer = model.regularized_gradients(x, y)
    parts = sub_batches_of(model, 8)

    slow, weights = slow_forward(), weights_of(model)
    steps = [
        numeric_gradient(lambda w, p=part: loss_at(slow, w, x[p], y[p]), weights) for part in parts
    ]

    def regularizer_at(w):
        total = 0.0
        for part, step in zip(parts, steps, strict=True):
            moved = [v - alpha * g for v, g in zip(w, step, strict=True)]
            total += loss_at(slow, w, x[part], y[part]) - loss_at(slow, moved, x[part], y[part])
        return total / len(parts)

    def plain_at(w):
        if shared:
            return np.mean([loss_at(slow, w, x[part], y[part]) for part in parts])
        return loss_at(slow, w, x, y)

    np.testing.assert_allclose(loss, plain_at(weights), rtol=1e-9)
    np.testing.assert_allclose(regularizer, regularizer_at(weights), rtol=1e-6)
    expected = numeric_gradient(lambda w: plain_at(w) + beta * regularizer_at(w), weights)
    assert_close(gradients, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shared", [False, True])
def test_hessian_product_is_the_limit_of_the_difference(float64, shared):
    """The difference of the two, relative to alpha, falls in proportion to alpha."""
    x, y = images()

    def gradients(alpha, gradient):
        model = compiled(
            conv_net(dropout=0.3),
            alpha=alpha,
            beta=1 / alpha,
            num_sub_batches=3,
            gradient=gradient,
            share_gradients=shared,
        )
        return tf.function(model.regularized_gradients)(x, y)[0]

    product = gradients(1.0, "hessian_vector_product")  # Of the same size for all alpha.
    errors = []
    for alpha in (1e-3, 1e-4, 1e-5):
        pairs = zip(gradients(alpha, "finite_difference"), product, strict=True)
        errors.append(np.sqrt(sum(np.sum((a.numpy() - b.numpy()) ** 2) for a, b in pairs)))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.2)


def test_hessian_product_equals_a_numeric_hessian(float64):
    random = np.random.RandomState(0)
    x, y = random.randn(6, 4, 4, 1), random.randint(0, NUM_CLASSES, 6)
    model = compiled(
        tiny_conv_net(),
        alpha=0.5,
        beta=1.0,
        num_sub_batches=1,
        gradient="hessian_vector_product",
    )
    gradients, _, _ = model.regularized_gradients(x, y)
    slow, weights = slow_forward(), weights_of(model)
    g = numeric_gradient(lambda w: loss_at(slow, w, x, y), weights)

    def along(step):
        moved = [w + step * d for w, d in zip(weights, g, strict=True)]
        return numeric_gradient(lambda w: loss_at(slow, w, x, y), moved, 1e-5)

    product = [(a - b) / 2e-4 for a, b in zip(along(1e-4), along(-1e-4), strict=True)]
    expected = [a + 0.5 * b for a, b in zip(g, product, strict=True)]
    assert_close(gradients, expected, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------- what belongs to L, what to L~


def test_hard_labels_in_the_regularizer_whatever_the_loss(float64):
    x, y = images()
    one_hot = np.eye(NUM_CLASSES)[y]
    soft = 0.7 * one_hot + 0.3 / NUM_CLASSES
    plain = keras.losses.CategoricalCrossentropy(from_logits=True)
    results = [
        compiled(conv_net(), loss, alpha=0.1).regularized_gradients(x, labels)
        for loss, labels in (
            (sparse_loss(), y),
            (sparse_loss(), y[:, None]),
            (plain, one_hot),
            (smoothed_loss(), one_hot),
            (plain, soft),
        )
    ]
    regularizers = [float(r) for _, _, r in results]
    np.testing.assert_allclose(regularizers, regularizers[0], rtol=1e-12)
    losses = [float(loss) for _, loss, _ in results]
    np.testing.assert_allclose(losses[:3], losses[0], rtol=1e-12)
    assert abs(losses[3] - losses[0]) > 1e-3
    assert_close(results[0][0], results[2][0])


@pytest.mark.parametrize(
    ("loss", "shared"), each_value([sparse_loss, smoothed_loss], [False, True])
)
def test_weight_penalties_are_in_the_loss_alone(float64, shared, loss):
    x, y = images()
    labels = y if loss is sparse_loss else np.eye(NUM_CLASSES)[y]
    bare = compiled(conv_net(), loss(), alpha=0.1, share_gradients=shared)
    penalized = compiled(conv_net(l2=L2), loss(), alpha=0.1, share_gradients=shared)
    without, bare_loss, bare_regularizer = bare.regularized_gradients(x, labels)
    gradients, loss_value, regularizer = penalized.regularized_gradients(x, labels)
    kernels = [v.path.endswith("kernel") for v in bare.model.trainable_variables]
    weights = weights_of(bare)
    penalty = sum(L2 * np.sum(w**2) for w, k in zip(weights, kernels, strict=True) if k)
    np.testing.assert_allclose(regularizer, bare_regularizer, rtol=1e-12)
    np.testing.assert_allclose(loss_value, bare_loss + penalty, rtol=1e-12)
    expected = [g + 2 * L2 * w * k for g, w, k in zip(without, weights, kernels, strict=True)]
    assert_close(gradients, expected)


def test_label_smoothing_is_in_the_shared_gradient(float64):
    """Without batch norm, equal sub-batches: L is the whole batch's, shared or not."""
    x, y = images()
    one_hot = np.eye(NUM_CLASSES)[y]
    results = [
        compiled(
            conv_net(batch_norm=False), smoothed_loss(), num_sub_batches=4, share_gradients=shared
        ).regularized_gradients(x, one_hot)
        for shared in (False, True)
    ]
    assert_close(results[0][0], results[1][0])
    assert_close(results[0][1:], results[1][1:])


def test_class_weight_weighs_the_loss_and_the_regularizer(float64):
    x, y = images()
    class_weight = {0: 0.5, 1: 2.0, 2: 0.0}
    sample_weight = np.array([class_weight[label] for label in y])
    stepped = []
    for kwargs in ({"class_weight": class_weight}, {"sample_weight": sample_weight}):
        model = compiled(conv_net(), alpha=0.1)
        model.train_on_batch(x, y, **kwargs)
        stepped.append(weights_of(model))
    assert_close(*stepped)


# ------------------------------------------------------------- beside the weights, nothing moves


def frozen_net():
    model = conv_net(dropout=0.4, l2=L2)
    model.layers[1].trainable = False
    return model


def shared_layer_net():
    keras.utils.set_random_seed(7)
    inputs = keras.Input((6, 6, 2))
    conv, norm = keras.layers.Conv2D(2, 3, padding="same"), keras.layers.BatchNormalization()
    x = norm(conv(inputs))
    x = keras.layers.Dropout(0.2, seed=1)(norm(conv(keras.layers.ReLU()(x))))
    return keras.Model(inputs, keras.layers.Dense(NUM_CLASSES)(keras.layers.Flatten()(x)))


def nested_net():
    inner = conv_net(dropout=0.4)
    inputs = keras.Input((6, 6, 2))
    return keras.Model(inputs, keras.layers.Dense(NUM_CLASSES)(inner(inputs)))


NETWORKS = {
    "dropout and batch norm": lambda: conv_net(dropout=0.4),
    "penalties": lambda: conv_net(dropout=0.4, l2=L2),
    "frozen": frozen_net,
    "shared layers": shared_layer_net,
    "nested": nested_net,
}


@pytest.mark.parametrize(("network", "eager"), each_value(NETWORKS, [False, True]))
def test_statistics_and_seeds_end_as_in_a_plain_step(network, eager):
    x, y = images()
    plain, wrapped = network(), compiled(network(), compile_kwargs={"run_eagerly": eager})
    before = state_of(plain)
    # Keras counts the metrics of a compiled model among its state, so the plain one is wrapped.
    bare = keras.Sequential([plain])
    bare.compile("sgd", sparse_loss(), run_eagerly=eager)
    bare.train_on_batch(x, y)
    wrapped.train_on_batch(x, y)
    assert any(np.any(a != b) for a, b in zip(state_of(plain), before, strict=True))
    assert_equal(state_of(wrapped.model), state_of(plain))


def test_shared_gradients_move_the_statistics_by_the_mean(float64):
    x, y = images()
    model = compiled(frozen_net(), share_gradients=True, num_sub_batches=3)
    layer, norm = model.model.layers[0], model.model.layers[1]
    norm.trainable = True
    model.model.layers[0].trainable = True
    model.compile(keras.optimizers.SGD(0.1), sparse_loss())
    parts = sub_batches_of(model, 12)
    features = [np.array(layer(x[part])) for part in parts]
    mean = np.mean([f.mean(axis=(0, 1, 2)) for f in features], axis=0)
    variance = np.mean([f.var(axis=(0, 1, 2)) for f in features], axis=0)
    model.train_on_batch(x, y)
    np.testing.assert_allclose(norm.moving_mean, 0.01 * mean)
    np.testing.assert_allclose(norm.moving_variance, 0.99 + 0.01 * variance)


@pytest.mark.parametrize("sizes", [(12, 5), (11, 3)])
def test_shared_gradients_leave_frozen_statistics_and_advance_seeds(sizes):
    count, num_sub_batches = sizes
    x, y = images(count)
    plain, shared = frozen_net(), frozen_net()
    for model in (plain, shared):
        model.layers[1].trainable = False
        model.layers[1].moving_mean.assign([0.1, 0.2, 0.3, 0.7])
    plain.compile("sgd", sparse_loss())
    plain.train_on_batch(x, y)
    wrapped = compiled(shared, share_gradients=True, num_sub_batches=num_sub_batches)
    wrapped.train_on_batch(x, y)
    assert_equal(state_of(shared), state_of(plain)[: len(state_of(shared))])


@pytest.mark.parametrize("xla", [False, True])
def test_the_public_gradients_change_nothing_and_are_those_of_the_next_step(float64, xla):
    """With XLA too, which draws other masks from the same seeds."""
    x, y = images()
    for shared in (False, True):
        model = compiled(
            conv_net(dropout=0.4, l2=L2),
            optimizer=keras.optimizers.SGD(1.0),
            clip_norm=None,
            share_gradients=shared,
            compile_kwargs={"jit_compile": xla},
        )
        model.train_on_batch(x, y)
        before, state = weights_of(model), state_of(model)
        gradients, _, _ = model.regularized_gradients(x, y)
        assert_equal(before, weights_of(model))
        assert_equal(state, state_of(model))
        model.train_on_batch(x, y)
        expected = [w - g.numpy() for w, g in zip(before, gradients, strict=True)]
        assert_close(weights_of(model), expected)


def test_dropout_masks_are_the_same_at_both_weights(float64):
    """Were they not, R would not fall with alpha."""
    x, y = images()
    for alpha in (1e-3, 1e-6):
        model = compiled(conv_net(dropout=0.5), alpha=alpha)
        _, _, regularizer = model.regularized_gradients(x, y)
        assert 0 < float(regularizer) / alpha < 1e3


def test_sub_batches_have_masks_of_their_own(float64):
    """With the same example everywhere, only the masks tell the sub-batches apart."""
    x, y = np.ones((4, 6, 6, 2)), np.zeros(4, int)
    net = conv_net(dropout=0.5, batch_norm=False)
    whole = [
        float(compiled(net, num_sub_batches=4, seed=s).regularized_gradients(x, y)[2])
        for s in (1, 2)
    ]
    one = compiled(net, num_sub_batches=1).regularized_gradients(x[:1], y[:1])[2]
    assert whole[0] == pytest.approx(whole[1])
    assert abs(whole[0] - float(one)) > 1e-9


# ------------------------------------------------------------------------------ beta's schedule


@pytest.fixture
def sums_as_written():
    """TensorFlow adds in the order of the program, not in one that goes by operations' names."""
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    yield
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": True})


@pytest.mark.parametrize(("shared", "scheduled"), each_value([False, "auto"], [False, True]))
def test_beta_zero_is_a_plain_step_to_the_last_bit(sums_as_written, scheduled, shared):
    x, y = images(40)
    beta = keras.optimizers.schedules.PiecewiseConstantDecay([100], [0.0, 5.0])
    plain = conv_net(dropout=0.4, l2=L2)
    plain.compile(keras.optimizers.SGD(0.1, momentum=0.9), sparse_loss())
    # A clipping threshold that every gradient is above: where all steps are plain, none clips.
    model = compiled(
        conv_net(dropout=0.4, l2=L2),
        beta=beta if scheduled else 0,
        clip_norm=None if scheduled else 1e-3,
        share_gradients=shared,
    )
    for m in (plain, model):
        history = m.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
    assert_equal(weights_of(plain), weights_of(model))
    assert_equal(state_of(plain)[:3], state_of(model.model)[:3])
    assert np.isnan(history["fisher_regularizer"]).all()
    assert np.isfinite(history["gradient_norm"]).all()


@pytest.mark.parametrize("shared", [False, True])
def test_a_schedule_switches_the_regularizer_on(shared):
    x, y = images(32)
    beta = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.0, 50.0])
    runs = []
    for b in (0.0, 50.0, beta):
        model = compiled(conv_net(), beta=b, share_gradients=shared, alpha=0.01)
        history = model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
        runs.append((weights_of(model), history))
    assert all(np.any(a != b) for a, b in zip(runs[0][0], runs[2][0], strict=True))
    assert all(np.any(a != b) for a, b in zip(runs[1][0], runs[2][0], strict=True))
    # The step counter is 0 and 1 in the first epoch; the boundary, 2, still has the first value.
    trace = runs[2][1]["fisher_trace"]
    assert np.isnan(trace[0])
    assert trace[1] > 0


# -------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(policy, set_policy):
    x, y = images(32)
    full = compiled(conv_net(), alpha=1e-4, beta=1e4, gradient="hessian_vector_product")
    expected, _, trace = full.regularized_gradients(x, y)
    set_policy(policy)
    network = conv_net()
    with pytest.raises(ValueError, match="hessian_vector_product"):
        compiled(network)
    for shared in (False, True):
        # Keras' initial loss scale is meant to overflow in the first steps.
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        if policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
        model = compiled(
            conv_net(),
            optimizer=optimizer,
            alpha=1e-4,
            beta=1e4,
            gradient="hessian_vector_product",
            share_gradients=shared,
        )
        model.set_weights(full.get_weights())
        gradients, _, half_trace = model.regularized_gradients(x, y)
        if not shared:
            error = tf.linalg.global_norm(
                [a - b for a, b in zip(gradients, expected, strict=True)]
            )
            assert error < 0.05 * tf.linalg.global_norm(expected)
            assert float(half_trace) == pytest.approx(float(trace), rel=0.05)
        history = model.fit(x, y, epochs=4, verbose=0).history
        assert np.isfinite(history["fisher_trace"]).all()
        assert history["loss"][-1] < history["loss"][0]


def test_half_precision_clips_true_gradients(set_policy):
    """The loss scale of float16 is no part of the norm that is clipped."""
    x, y = images(32)
    set_policy("mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=64.0)
    model = compiled(
        conv_net(),
        optimizer=optimizer,
        clip_norm=0.01,
        gradient="hessian_vector_product",
    )
    before = weights_of(model)
    logs = model.train_on_batch(x, y, return_dict=True)
    moved = [a - b for a, b in zip(weights_of(model), before, strict=True)]
    assert np.sqrt(sum(np.sum(m**2) for m in moved)) == pytest.approx(0.01, rel=1e-3)
    assert 0.01 < logs["gradient_norm"] < 100


# --------------------------------------------------------------------------- losses and outputs


@pytest.mark.parametrize(
    ("loss", "activation", "one_hot"),
    [
        ("sparse_categorical_crossentropy", "softmax", False),
        nightly("SparseCategoricalCrossentropy", "softmax", False),
        nightly("categorical_crossentropy", "softmax", True),
        (keras.losses.sparse_categorical_crossentropy, "softmax", False),
        nightly(keras.losses.SparseCategoricalCrossentropy(), "softmax", False),
        (keras.losses.CategoricalCrossentropy(label_smoothing=0.1), "softmax", True),
        (keras.losses.CategoricalFocalCrossentropy(from_logits=True), None, True),
        (smoothed_loss(), None, True),
    ],
)
def test_losses_by_name_and_object(loss, activation, one_hot):
    x, y = images()
    labels = np.eye(NUM_CLASSES)[y] if one_hot else y
    for shared in (False, True):
        model = compiled(conv_net(activation=activation), loss, alpha=0.1, share_gradients=shared)
        _, _, regularizer = model.regularized_gradients(x, labels)
        assert float(regularizer) == pytest.approx(hard_label_regularizer(), rel=1e-3)
    model.fit(x, labels, verbose=0)


@functools.cache
def hard_label_regularizer():
    """R_alpha of the sparse cross-entropy from logits, which all classifiers here have."""
    return float(compiled(conv_net(), alpha=0.1).regularized_gradients(*images())[2])


def test_softmax_and_logits_give_the_same_gradients(float64):
    x, y = images()
    logits = compiled(conv_net(), alpha=0.1).regularized_gradients(x, y)
    softmax = compiled(
        conv_net(activation="softmax"), "sparse_categorical_crossentropy", alpha=0.1
    ).regularized_gradients(x, y)
    assert_close(logits[0], softmax[0], rtol=1e-7, atol=1e-9)


def test_a_single_sigmoid_unit_equals_two_logits(float64):
    random = np.random.RandomState(1)
    x, y = random.randn(8, 5), random.randint(0, 2, 8)
    kernel = random.randn(5, 1)
    results = []
    for from_logits, activation in ((True, None), (False, "sigmoid")):
        single = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, activation)])
        model = compiled(
            single, keras.losses.BinaryCrossentropy(from_logits=from_logits), alpha=0.1
        )
        model.set_weights([kernel, np.zeros(1)])
        results.append(model.regularized_gradients(x, y))
    double = compiled(
        keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, use_bias=False)]), alpha=1e-9
    )
    double.set_weights([np.hstack([np.zeros((5, 1)), kernel])])
    np.testing.assert_allclose(results[0][1], double.regularized_gradients(x, y)[1])
    assert_close(results[0][0], results[1][0], rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "activation", "message"),
    [
        ("sparse_categorical_crossentropy", None, "from_logits=True"),
        (sparse_loss(), "softmax", "from_logits=False"),
        ("mse", None, "cross-entropy"),
        (lambda y, p: 0.0, None, "cross-entropy"),
        (sparse_loss(ignore_class=0), None, "ignore_class"),
    ],
)
def test_losses_that_do_not_fit_raise_at_compile(loss, activation, message):
    with pytest.raises(ValueError, match=message):
        compiled(conv_net(activation=activation), loss)


class Subclassed(keras.Model):
    """Tells nothing about its last activation, and builds its layers when it is first called."""

    def __init__(self, softmax=False, **kwargs):
        super().__init__(**kwargs)
        self.softmax = softmax
        self.hidden = keras.layers.Dense(8, "tanh")
        self.dropout = keras.layers.Dropout(0.3, seed=2)
        self.head = keras.layers.Dense(NUM_CLASSES)

    def call(self, inputs, training=None):
        x = self.head(self.dropout(self.hidden(inputs), training=training))
        return keras.ops.softmax(x) if self.softmax else x

    def get_config(self):
        return {"softmax": self.softmax, "name": self.name}


class WithoutTraining(Subclassed):
    def call(self, inputs):
        return self.head(self.hidden(inputs))


@pytest.mark.parametrize(
    ("network", "shared", "eager"),
    each_value([Subclassed, WithoutTraining], [False, True], [False, True]),
)
def test_subclassed_models_train_unbuilt(network, shared, eager):
    random = np.random.RandomState(1)
    x, y = random.randn(30, 5), random.randint(0, NUM_CLASSES, 30)
    model = compiled(network(), share_gradients=shared, compile_kwargs={"run_eagerly": eager})
    history = model.fit(x, y, batch_size=8, epochs=5, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.parametrize("softmax", [False, True])
def test_outputs_that_do_not_fit_the_loss_raise_at_the_first_step(softmax):
    random = np.random.RandomState(1)
    x, y = random.randn(8, 5), random.randint(0, NUM_CLASSES, 8)
    right = "sparse_categorical_crossentropy" if softmax else sparse_loss()
    wrong = sparse_loss() if softmax else "sparse_categorical_crossentropy"
    compiled(Subclassed(softmax), right).fit(x, y, verbose=0)
    # Keras' "auto" is XLA on a GPU, and XLA leaves assertions out.
    model = compiled(Subclassed(softmax), wrong, compile_kwargs={"jit_compile": False})
    with pytest.raises(tf.errors.InvalidArgumentError, match="from_logits"):
        model.fit(x, y, verbose=0)


def test_two_inputs():
    first, second = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    joined = keras.layers.Concatenate()([first, second])
    model = compiled(keras.Model([first, second], keras.layers.Dense(NUM_CLASSES)(joined)))
    random = np.random.RandomState(1)
    x = [random.randn(20, 4), random.randn(20, 3)]
    history = model.fit(x, random.randint(0, 3, 20), batch_size=8, epochs=2, verbose=0).history
    assert np.isfinite(history["fisher_trace"]).all()


def test_embeddings_and_variables_that_the_loss_does_not_reach():
    class Text(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = keras.layers.Embedding(20, 4)
            self.head = keras.layers.Dense(NUM_CLASSES)
            self.unused = keras.layers.Dense(2)

        def build(self, shape):
            self.embedding.build(shape)
            self.head.build((None, 4))
            self.unused.build((None, 4))

        def call(self, inputs):
            return self.head(keras.ops.mean(self.embedding(inputs), axis=1))

    random = np.random.RandomState(1)
    x, y = random.randint(0, 20, (16, 6)), random.randint(0, NUM_CLASSES, 16)
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.0, 1.0])
    for beta in (1.0, schedule):
        model = compiled(Text(), beta=beta)
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            model.fit(x, y, batch_size=8, epochs=2, verbose=0)
        model = compiled(Text(), beta=beta, share_gradients=True)
        model(x)
        unused = [v.numpy() for v in model.model.unused.variables]
        model.fit(x, y, batch_size=8, epochs=2, verbose=0)
        assert_equal(unused, [v.numpy() for v in model.model.unused.variables])


# --------------------------------------------------------------- Keras' ways to train and save


@pytest.mark.parametrize(
    ("gradient", "shared"), [("finite_difference", True), ("hessian_vector_product", False)]
)
def test_every_way_to_run_a_step_gives_the_same_weights(gradient, shared):
    x, y = images(22)
    ways = {
        "graph": {},
        "eager": {"run_eagerly": True},
        "several steps": {"steps_per_execution": 3},
        "xla": {"jit_compile": True},
    }
    results = {}
    for name, kwargs in ways.items():
        model = compiled(
            conv_net(),
            beta=100.0,
            alpha=0.01,
            num_sub_batches=4,
            gradient=gradient,
            share_gradients=shared,
            compile_kwargs=kwargs,
        )
        model.fit(x, y, batch_size=10, epochs=2, shuffle=False, verbose=0)
        results[name] = weights_of(model)
    for name in ways:
        assert_close(results[name], results["graph"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("batch_size", "num_sub_batches", "gradient", "shared"),
    [
        (1, 2, "finite_difference", False),
        (1, 2, "hessian_vector_product", True),
        (3, 1, "finite_difference", True),
        (3, 1, "hessian_vector_product", False),
    ],
)
def test_xla_takes_one_example_and_one_sub_batch(batch_size, num_sub_batches, gradient, shared):
    random = np.random.RandomState(1)
    x, y = random.randn(batch_size, 4), random.randint(0, NUM_CLASSES, batch_size)
    results = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(7)
        model = compiled(
            keras.Sequential([keras.Input((4,)), keras.layers.Dense(NUM_CLASSES)]),
            alpha=0.1,
            beta=20.0,
            num_sub_batches=num_sub_batches,
            gradient=gradient,
            share_gradients=shared,
            compile_kwargs={"jit_compile": jit_compile},
        )
        model.train_on_batch(x, y)
        results.append(weights_of(model))
    assert_close(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "optimizer", ["sgd", "adamw", nightly("adam"), nightly("rmsprop"), nightly("lion")]
)
def test_any_optimizer(optimizer):
    x, y = images(40)
    model = compiled(conv_net(), optimizer=optimizer)
    model.optimizer.learning_rate = 0.01
    history = model.fit(x, y, batch_size=16, epochs=8, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


def test_logs_evaluation_and_prediction():
    x, y = images(20)
    model = compiled(conv_net(), compile_kwargs={"metrics": ["accuracy"]})
    history = model.fit(x, y, batch_size=8, validation_data=(x, y), verbose=0).history
    fisher = {"fisher_regularizer", "fisher_trace", "gradient_norm", "explicit_to_implicit"}
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"} | fisher
    assert set(model.evaluate(x, y, return_dict=True, verbose=0)) == {"loss", "accuracy"}
    plain = model.model.predict(x, verbose=0)
    assert_equal([model.predict(x, verbose=0)], [plain])


@pytest.mark.parametrize("loss_scaling", [False, True])
def test_the_strength_beside_sgds_own_is_of_each_step(loss_scaling):
    """Four steps: beta 8, 8, 0, 0 at the learning rates 0.1, 0.05, 0.05, 0.05."""
    schedules = keras.optimizers.schedules
    model = FisherRegularizedModel(
        conv_net(),
        alpha=0.01,
        beta=schedules.PiecewiseConstantDecay([1], [8.0, 0.0]),
        num_sub_batches=3,
    )
    optimizer = keras.optimizers.SGD(schedules.PiecewiseConstantDecay([0], [0.1, 0.05]))
    if loss_scaling:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, dynamic_growth_steps=100)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = images(16)
    history = model.fit(x, y, batch_size=4, verbose=0).history
    expected = 2 * 0.01 * 3 * np.mean([8 / 0.1, 8 / 0.05, 0, 0])
    assert history["explicit_to_implicit"] == pytest.approx([expected], rel=1e-5)


def test_the_strength_is_the_ratio_of_the_two_penalties():
    """One-dimensional gradients that are noise alone: of w x, x of mean 0."""
    rng = np.random.default_rng(0)
    examples, sub_batches, alpha, beta, rate = 64, 8, 0.01, 5.0, 0.1
    gradients = rng.normal(size=(20_000, examples))
    of_sub_batches = gradients.reshape(-1, sub_batches, examples // sub_batches).mean(axis=2)
    explicit = alpha * beta / 2 * np.mean(of_sub_batches**2)
    implicit = rate / 4 * np.mean(gradients.mean(axis=1) ** 2)
    assert explicit / implicit == pytest.approx(2 * alpha * beta * sub_batches / rate, rel=0.03)


def test_a_run_repeats_and_the_seed_matters():
    x, y = images(30)
    results = []
    for seed in (3, 3, 4):
        model = compiled(conv_net(dropout=0.2), seed=seed, beta=100.0, alpha=0.01)
        model.fit(x, y, batch_size=10, epochs=2, shuffle=False, verbose=0)
        results.append(weights_of(model))
    assert_equal(results[0], results[1])
    assert any(np.any(a != b) for a, b in zip(results[0], results[2], strict=True))


@pytest.mark.parametrize("scheduled", [False, True])
def test_saved_in_the_middle_goes_on_to_the_same_weights(tmp_path, scheduled):
    x, y = images(40)
    schedule = keras.optimizers.schedules.PolynomialDecay(5.0, 20, 50.0)
    model = compiled(conv_net(dropout=0.4, l2=L2), beta=schedule if scheduled else 20.0, seed=None)
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    model.save(tmp_path / "middle.keras")
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    loaded = keras.saving.load_model(tmp_path / "middle.keras")
    assert isinstance(loaded, FisherRegularizedModel)
    loaded.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    assert_equal(weights_of(loaded), weights_of(model))
    assert_equal(state_of(loaded.model), state_of(model.model))


def test_a_subclassed_model_is_saved_and_loaded(tmp_path):
    random = np.random.RandomState(1)
    x, y = random.randn(30, 5).astype("float32"), random.randint(0, NUM_CLASSES, 30)
    model = compiled(Subclassed())
    model.fit(x, y, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    custom = {"Subclassed": Subclassed}
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects=custom)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    for m in (model, loaded):
        m.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert_equal(weights_of(loaded), weights_of(model))


def test_the_plain_model_is_saved_alone(tmp_path):
    x, y = images()
    model = compiled(conv_net())
    model.fit(x, y, verbose=0)
    model.model.save(tmp_path / "plain.keras")
    loaded = keras.saving.load_model(tmp_path / "plain.keras")
    assert type(loaded) is keras.Sequential
    assert_equal([loaded.predict(x, verbose=0)], [model.predict(x, verbose=0)])


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "arguments",
    [
        {"alpha": 0.0},
        {"alpha": "small"},
        {"alpha": float("nan")},
        {"beta": -1.0},
        {"num_sub_batches": 0},
        {"num_sub_batches": 2.5},
        {"clip_norm": 0.0},
        {"gradient": "exact"},
        {"seed": "one"},
        {"seed": -1},
    ],
)
def test_arguments_out_of_range(arguments):
    (name, value), *_ = arguments.items()
    with pytest.raises(ValueError, match=rf"{name}.* must be .*Given: .*{value!r}\."):
        FisherRegularizedModel(conv_net(), **arguments)


def test_numbers_of_numpy_are_numbers():
    arguments = {
        "alpha": np.float32(0.5),
        "beta": np.int64(3),
        "num_sub_batches": np.int32(4),
        "clip_norm": np.float64(2.0),
        "seed": np.uint8(7),
    }
    model = FisherRegularizedModel(conv_net(), **arguments)
    config = json.loads(json.dumps(model.get_config()))
    assert {name: config[name] for name in arguments} == {
        "alpha": 0.5,
        "beta": 3.0,
        "num_sub_batches": 4,
        "clip_norm": 2.0,
        "seed": 7,
    }


def test_not_a_classifier():
    with pytest.raises(ValueError, match="functional"):
        FisherRegularizedModel("resnet")
    inputs = keras.Input((3,))
    two = keras.Model(inputs, [keras.layers.Dense(2)(inputs), keras.layers.Dense(2)(inputs)])
    with pytest.raises(ValueError, match="one output"):
        FisherRegularizedModel(two)


def test_without_a_loss():
    model = FisherRegularizedModel(conv_net())
    with pytest.raises(ValueError, match="compile"):
        model.regularized_gradients(*images())


def test_nothing_to_train():
    network = conv_net()
    network.trainable = False
    with pytest.raises(ValueError, match="no trainable variables"):
        compiled(network).train_on_batch(*images())


@pytest.mark.parametrize("share_gradients", [False, True])
def test_loss_weights_weigh_the_loss(share_gradients):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(12, 4)).astype(np.float32), np.arange(12) % 3
    classifier = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = FisherRegularizedModel(classifier, beta=0.0, share_gradients=share_gradients, seed=0)
    gradients = []
    for loss_weights in (None, [2.0]):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, loss_weights=loss_weights)
        gradients.append(model.regularized_gradients(x, y)[0])
    for once, twice in zip(*gradients, strict=True):
        np.testing.assert_allclose(2 * once.numpy(), twice.numpy(), rtol=1e-5)
