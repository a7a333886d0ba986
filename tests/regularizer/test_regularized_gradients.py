"""Regularized gradients against closed forms, finite differences and a slow implementation."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from closed_forms import algorithm_1, examples, softmax_regression
from marks import each_value, nightly
from small_models import (
    L2,
    NUM_CLASSES,
    assert_close,
    compiled,
    conv_net,
    images,
    smoothed_loss,
    softmax_regression_model,
    sparse_loss,
    sub_batches_of,
    weights_of,
)

# ------------------------------------------------------------- closed form: softmax regression


# Examples, sub-batches, and whether examples have weights.
BATCHES = {
    **{"equal": (12, 4, True), "uneven": (11, 4, True), "whole": (12, 1, True)},
    **{"unweighted": (11, 4, False), "empty": (5, 8, True), "single": (7, 7, True)},
    "one example": (1, 4, True),
}


@pytest.mark.parametrize(("batch", "shared"), each_value(BATCHES, [False, True, "auto"]))
def test_equals_the_closed_form(float64, batch, shared):
    batch_size, num_sub_batches, weighted = batch
    x, y = examples(batch_size)
    sample_weight = np.random.RandomState(0).rand(batch_size) if weighted else None
    model = compiled(
        softmax_regression_model(),
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
    x, y = examples(12)
    model = compiled(
        softmax_regression_model(),
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
    x, y = examples(6)
    random = np.random.RandomState(0)
    weights, errors = [random.randn(5, 3), random.randn(3)], []
    norms = [
        sum(np.sum(g**2) for g in softmax_regression(x[j : j + 1], y[j : j + 1], weights)[1])
        for j in range(6)
    ]
    for alpha in (1e-2, 1e-3):
        model = compiled(
            softmax_regression_model(), alpha=alpha, num_sub_batches=6, gradient=gradient
        )
        model.set_weights(weights)
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


@pytest.mark.parametrize("shared", [nightly(False), True])
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
    for alpha in (1e-3, 1e-4):
        pairs = zip(gradients(alpha, "finite_difference"), product, strict=True)
        errors.append(np.sqrt(sum(np.sum((a.numpy() - b.numpy()) ** 2) for a, b in pairs)))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2)


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
