"""Steps of random classifiers against plain Keras gradients at w and nearby, in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import SIZES, Case, cases
from small_models import sub_batches_of

from fisher_keras import FisherRegularizedModel

pytestmark = pytest.mark.usefixtures("float64")

ALPHA, BETA = 0.05, 2.0
SIDES = {"descent": (0, -1), "ascent": (1, 0), "central": (1, -1)}
VARIANTS = [
    {"gradient": "hessian_vector_product"},
    *({"step_length": length, "direction": side} for length in (None, 0.2) for side in SIDES),
]


class Squared(keras.losses.SparseCategoricalCrossentropy):
    """A loss of a user's, of the class of one of Keras'."""

    def call(self, y_true, y_pred):
        return super().call(y_true, y_pred) ** 2


class OwnLoss(keras.Model):
    """A classifier that overrides its loss."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return 1.5 * loss + tf.reduce_mean(y_pred**2)


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


def losses(case, smoothing, own):
    if case.labels in ("classes", "column"):
        kind = Squared if own == "loss" else keras.losses.SparseCategoricalCrossentropy
        return kind(from_logits=not case.probabilities)
    return keras.losses.CategoricalCrossentropy(
        from_logits=not case.probabilities, label_smoothing=smoothing
    )


def mean_over(parts, loss_and_gradient_of):
    """The mean of some losses and gradients, one of each sub-batch."""
    found = [loss_and_gradient_of(part) for part in parts]
    sums = [np.sum(arrays, axis=0) for arrays in zip(*(g for _, g in found), strict=True)]
    return np.mean([value for value, _ in found]), [s / len(parts) for s in sums]


def plain_part(classifier, case, weight, loss, parts):
    """L and its gradient, as means over sub-batches, or of the whole batch as the only one."""
    x, y, _ = case.examples()

    def whole_loss(rows, outputs):
        value = loss(y[rows], outputs, sample_weight=None if weight is None else weight[rows])
        own = isinstance(classifier, OwnLoss)
        return 1.5 * value + tf.reduce_mean(outputs**2) if own else value

    return mean_over(
        parts,
        lambda rows: loss_and_gradient(classifier, x[rows], lambda o: whole_loss(rows, o)),
    )


def regularizer_part(classifier, case, weight, variant, parts):
    """The regularizer and its gradient, from Equation 6 at weights nearby."""
    x, _, classes = case.examples()
    weight = np.ones(case.count) if weight is None else weight

    def hard_loss(rows, outputs):
        # Not clipped: Keras' losses, too, are of the logits that a softmax layer is called with.
        p = outputs if case.probabilities else tf.nn.softmax(outputs)
        chosen = tf.gather(p, classes[rows], batch_dims=1)
        return -tf.reduce_mean(weight[rows] * tf.math.log(chosen))

    return mean_over(
        parts,
        lambda rows: equation_6(classifier, x[rows], lambda o: hard_loss(rows, o), **variant),
    )


@given(
    st.one_of(cases(st.integers(1, 7)), cases(st.integers(1, 7), also="interaction")),
    st.integers(1, 8),
    st.sampled_from([False, True, "auto"]),
    st.sampled_from([None, 1e-30, 1.0, 1e30]),
    st.sampled_from(VARIANTS),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from([None, "loss", "classifier"]),
    st.booleans(),
)
def test_step(
    case: Case, num_sub_batches, share_gradients, heaviest, variant, smoothing, own, changed
):
    """Sample weights are from 0, of whole sub-batches at times, to the heaviest."""
    if variant.get("step_length", 0) is None and heaviest is not None:
        heaviest = 1.0  # Else the paper's step would leave the range of float64, or be too short.
    classifier = case.model()
    if own == "classifier":
        classifier = OwnLoss(classifier.inputs, classifier.outputs)
    x, y, _ = case.examples()
    scale = heaviest or 1.0
    random = np.random.default_rng(case.seed).random([2, case.count])
    weight = None if heaviest is None else scale * random[0] * (random[1] < 0.7)
    options = {"alpha": ALPHA, "beta": BETA, "num_sub_batches": num_sub_batches, "seed": 3}
    options |= {"share_gradients": share_gradients, **variant}
    before = {"alpha": 1.0, "beta": 0.5, "num_sub_batches": 1, "share_gradients": "auto"}
    model = FisherRegularizedModel(classifier, **(options | before if changed else options))
    loss = losses(case, smoothing, own)
    model.compile("sgd", loss)
    if changed:
        model.regularized_gradients(x, y, weight)
        for name, value in options.items():
            setattr(model, name, value)
    gradient, found_loss, found_regularizer = model.regularized_gradients(x, y, weight)

    parts = sub_batches_of(model, case.count)
    of_loss = parts if share_gradients is True else [np.arange(case.count)]
    expected_loss, plain = plain_part(classifier, case, weight, loss, of_loss)
    regularizer, rest = regularizer_part(classifier, case, weight, variant, parts)
    exact = "gradient" not in variant
    np.testing.assert_allclose(found_loss, expected_loss, rtol=1e-9)
    np.testing.assert_allclose(found_regularizer, regularizer, rtol=1e-7, atol=1e-12 * scale**2)
    expected = moved(plain, rest, BETA)
    scale = max(np.max(np.abs(g)) for g in expected)
    for mine, right in zip(gradient, expected, strict=True):
        mine = np.zeros_like(right) if mine is None else mine
        np.testing.assert_allclose(
            mine, right, rtol=1e-8 if exact else 1e-4, atol=scale * (1e-10 if exact else 1e-5)
        )


@given(cases(SIZES, also="dropout"), st.integers(1, 4), st.sampled_from([False, "auto"]))
def test_random_layers_draw_what_they_draw_without_the_regularizer(case, sub_batches, shared):
    """With next to no regularizer, the step is Keras' own, and the same when asked again."""
    classifier = case.model()
    x, y, _ = case.examples()
    options = {"num_sub_batches": sub_batches, "share_gradients": shared, "seed": 3}
    model = FisherRegularizedModel(classifier, beta=1e-200, **options)
    loss = losses(case, 0.0, None)
    model.compile("sgd", loss)
    expected_loss, expected = loss_and_gradient(classifier, x, lambda outputs: loss(y, outputs))
    for _ in range(2):
        gradient, found, regularizer = model.regularized_gradients(x, y)
        np.testing.assert_allclose(found, expected_loss, rtol=1e-9)
        assert np.isfinite(regularizer)
        for mine, right in zip(gradient, expected, strict=True):
            mine = np.zeros_like(right) if mine is None else mine
            np.testing.assert_allclose(mine, right, rtol=1e-8, atol=1e-12)


@settings(max_examples=settings().max_examples // 2)
@given(cases(SIZES, also="dropout"), st.integers(1, 4))
def test_one_mask_in_both_gradients_of_the_difference(case: Case, sub_batches: int):
    """Over a short step it is the derivative, which it is not between two masks."""
    classifier = case.model()
    x, y, _ = case.examples()
    options = {"num_sub_batches": sub_batches, "share_gradients": False, "seed": 3}
    model = FisherRegularizedModel(
        classifier, alpha=ALPHA, beta=BETA, step_length=1e-5, direction="central", **options
    )
    model.compile("sgd", losses(case, 0.0, None))
    difference, *_ = model.regularized_gradients(x, y)
    model.step_length, model.direction, model.gradient = None, "descent", "hessian_vector_product"
    derivative, *_ = model.regularized_gradients(x, y)
    scale = max(np.max(np.abs(g)) for g in derivative if g is not None)
    for mine, right in zip(difference, derivative, strict=True):
        if right is not None:
            np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-5 * scale)
