"""Steps of random classifiers against plain Keras gradients at w and nearby, in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from random_models import Case, cases

from fisher_keras import FisherRegularizedModel
from fisher_keras.regularizer.sub_batches import split_batch

ALPHA, BETA = 0.05, 2.0
SIDES = {"descent": (0, -1), "ascent": (1, 0), "central": (1, -1)}
VARIANTS = [
    {"gradient": "hessian_vector_product"},
    *({"step_length": length, "direction": side} for length in (None, 0.2) for side in SIDES),
]


def loss_and_gradient(model, x, loss, weights=None):
    """Returns a loss of the outputs in training mode and its gradient; the model stays."""
    variables = model.trainable_variables
    before = [v.numpy() for v in model.variables]
    for v, value in zip(variables, weights or [], strict=bool(weights)):
        v.assign(value)
    with tf.GradientTape() as tape:
        value = loss(model(x, training=True))
    gradient = tape.gradient(value, variables, unconnected_gradients="zero")
    for v, old in zip(model.variables, before, strict=True):
        v.assign(old)
    return value.numpy(), [tf.convert_to_tensor(g).numpy() for g in gradient]


def moved(weights, direction, length):
    return [w + length * d for w, d in zip(weights, direction, strict=True)]


def equation_6(model, x, loss, gradient=None, step_length=None, direction=None):
    weights = [v.numpy() for v in model.trainable_variables]
    _, g = loss_and_gradient(model, x, loss)
    norm = np.sqrt(sum(np.sum(d**2) for d in g))
    if gradient is None:
        length = ALPHA if step_length is None else step_length / max(norm, 1e-300)
        factor = ALPHA / length / (2 if direction == "central" else 1)
        (above, g_above), (below, g_below) = (
            loss_and_gradient(model, x, loss, moved(weights, g, side * length))
            for side in SIDES[direction]
        )
        return factor * (above - below), [factor * d for d in moved(g_above, g_below, -1)]
    unit = [d / max(norm, 1e-300) for d in g]
    ahead, behind = (
        loss_and_gradient(model, x, loss, moved(weights, unit, e))[1] for e in (1e-5, -1e-5)
    )
    difference = moved(ahead, behind, -1)
    return ALPHA * norm**2, [ALPHA * norm * d / 2e-5 for d in difference]


def parts_of(model, batch_size):
    seed = tf.constant([model.seed, 0], tf.int64)
    split = split_batch(tf.constant(batch_size), model.num_sub_batches, seed)
    sizes = [int(split.size) + (i < int(split.remainder)) for i in range(int(split.count))]
    return np.split(split.permutation.numpy(), np.cumsum(sizes)[:-1])


def losses(case, smoothing):
    if case.labels in ("classes", "column"):
        return keras.losses.SparseCategoricalCrossentropy(from_logits=not case.probabilities)
    return keras.losses.CategoricalCrossentropy(
        from_logits=not case.probabilities, label_smoothing=smoothing
    )


@pytest.mark.usefixtures("float64")
@given(
    cases(st.integers(1, 7)),
    st.integers(1, 8),
    st.sampled_from([False, True, "auto"]),
    st.booleans(),
    st.sampled_from(VARIANTS),
    st.sampled_from([0.0, 0.2]),
)
def test_step(case: Case, num_sub_batches, share_gradients, weighted, variant, smoothing):
    classifier = case.model()
    x, y, classes = case.examples()
    weight = np.random.default_rng(case.seed).random(case.count) if weighted else None
    ones = np.ones(case.count) if weight is None else weight
    model = FisherRegularizedModel(
        classifier,
        alpha=ALPHA,
        beta=BETA,
        num_sub_batches=num_sub_batches,
        share_gradients=share_gradients,
        seed=3,
        **variant,
    )
    compiled_loss = losses(case, smoothing)
    model.compile("sgd", compiled_loss)
    gradient, loss, regularizer = model.regularized_gradients(x, y, weight)

    def hard_loss(rows, outputs):
        # Not clipped: Keras' losses, too, are of the logits that a softmax layer is called with.
        p = outputs if case.probabilities else tf.nn.softmax(outputs)
        chosen = tf.gather(p, classes[rows], batch_dims=1)
        return -tf.reduce_mean(ones[rows] * tf.math.log(chosen))

    def whole_loss(rows, outputs):
        return compiled_loss(
            y[rows], outputs, sample_weight=None if weight is None else ones[rows]
        )

    def means(function, parts):
        found = [function(part) for part in parts]
        sums = [np.sum(arrays, axis=0) for arrays in zip(*(g for _, g in found), strict=True)]
        return np.mean([v for v, _ in found]), [s / len(parts) for s in sums]

    parts = parts_of(model, case.count)
    expected_loss, plain = means(
        lambda part: loss_and_gradient(classifier, x[part], lambda o: whole_loss(part, o)),
        parts if share_gradients is True else [np.arange(case.count)],
    )
    expected_regularizer, rest = means(
        lambda part: equation_6(classifier, x[part], lambda o: hard_loss(part, o), **variant),
        parts,
    )
    exact = "gradient" not in variant
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-9)
    np.testing.assert_allclose(regularizer, expected_regularizer, rtol=1e-7, atol=1e-12)
    expected = moved(plain, rest, BETA)
    scale = max(np.max(np.abs(g)) for g in expected)
    for mine, right in zip(gradient, expected, strict=True):
        mine = np.zeros_like(right) if mine is None else mine
        np.testing.assert_allclose(
            mine, right, rtol=1e-8 if exact else 1e-4, atol=scale * (1e-10 if exact else 1e-5)
        )
