"""Equation 6 and Algorithm 1 against closed forms in NumPy, without Keras."""

import numpy as np
import pytest
import tensorflow as tf
from closed_forms import (
    NUM_CLASSES,
    NUM_FEATURES,
    algorithm_1,
    examples,
    softmax_regression,
    softmax_regression_hessian_product,
)
from marks import nightly
from small_models import assert_close, parts_of

from fisher_keras.regularizer.algorithm import (
    EQUATION_6,
    Settings,
    finite_difference,
    hessian_vector_product,
    regularized_step,
)
from fisher_keras.regularizer.step_types import (
    BatchLoss,
    LossAndGradient,
    RegularizedStep,
)


def graph(function):
    """The function as a piece of a graph, so that its loops and traces are those of a step."""
    return tf.function(function, autograph=False)


def eager(function):
    return function


def weights_at(seed):
    random = np.random.RandomState(seed)
    return [random.randn(NUM_FEATURES, NUM_CLASSES), random.randn(NUM_CLASSES)]


def with_gradient(loss):
    """A loss function as Algorithm 1 wants it."""

    def evaluate(weights):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            value = loss(weights)
        return LossAndGradient(value, tape.gradient(value, weights))

    return evaluate


def cross_entropy(x, labels, factor=1.0):
    """The mean loss of softmax regression, times a factor, as a function of the weights."""

    def loss(weights):
        logits = x @ weights[0] + weights[1]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return factor * tf.reduce_mean(losses)

    return with_gradient(loss)


# ------------------------------------------------------------------------------- Equation 6


def quadratic(seed=0):
    """A symmetric matrix A, a vector b, and 1/2 w'Aw - b'w as a function of two pieces of w."""
    random = np.random.RandomState(seed)
    matrix = random.randn(6, 6)
    matrix, vector = matrix + matrix.T, random.randn(6)

    def loss(weights):
        w = tf.concat([tf.reshape(piece, [-1]) for piece in weights], axis=0)
        return tf.reduce_sum(w * tf.linalg.matvec(matrix, w)) / 2 - tf.reduce_sum(vector * w)

    return matrix, vector, with_gradient(loss)


def pieces(vector):
    return [vector[:4].reshape(2, 2), vector[4:]]


@pytest.mark.exactness
@pytest.mark.parametrize("run", [eager, graph])
@pytest.mark.parametrize("known", [False, True])
def test_equation_6_of_a_quadratic_loss(run, known):
    """The gradient is alpha A g, exactly; only R tells the two from each other."""
    matrix, vector, loss = quadratic()
    w, alpha = np.random.RandomState(1).randn(6), 0.3
    weights = [tf.constant(piece) for piece in pieces(w)]
    g = matrix @ w - vector
    squared = alpha * g @ g
    for equation_6, regularizer in (
        (finite_difference, squared - alpha**2 / 2 * g @ matrix @ g),
        (hessian_vector_product, squared),
    ):

        def value(weights, equation_6=equation_6):
            here = loss(weights) if known else None
            return equation_6(loss, weights, alpha, here)

        result = run(value)(weights)
        assert isinstance(result, LossAndGradient)
        np.testing.assert_allclose(result.loss, regularizer)
        assert_close(result.gradient, pieces(alpha * matrix @ g))


@pytest.mark.exactness
@pytest.mark.parametrize("run", [eager, graph])
def test_equation_6_of_softmax_regression(run):
    x, labels = examples(4)
    weights, alpha = weights_at(1), 0.7
    here, g = softmax_regression(x, labels, weights)
    there, g_there = softmax_regression(
        x, labels, [w - alpha * d for w, d in zip(weights, g, strict=True)]
    )
    product = softmax_regression_hessian_product(x, weights, g)
    expected = {
        finite_difference: (here - there, [a - b for a, b in zip(g, g_there, strict=True)]),
        hessian_vector_product: (
            alpha * sum(np.sum(d**2) for d in g),
            [alpha * p for p in product],
        ),
    }
    for equation_6, (regularizer, gradient) in expected.items():

        def value(weights, equation_6=equation_6):
            return equation_6(cross_entropy(x, labels), weights, alpha, None)

        result = run(value)([tf.constant(w) for w in weights])
        np.testing.assert_allclose(result.loss, regularizer)
        assert_close(result.gradient, gradient)


def test_no_gradient_flows_through_the_copy():
    """Line 5: what is differentiated again takes g as a constant."""
    _, _, loss = quadratic()
    weights = [tf.constant(piece) for piece in pieces(np.random.RandomState(1).randn(6))]
    with tf.GradientTape() as tape:
        tape.watch(weights)
        regularizer = finite_difference(loss, weights, 0.3).loss
    held_constant = finite_difference(loss, weights, 0.3).gradient
    assert_close(tape.gradient(regularizer, weights), held_constant)


@pytest.mark.parametrize("equation_6", EQUATION_6.values(), ids=EQUATION_6)
def test_at_a_minimum_there_is_nothing_to_regularize(equation_6):
    weights = [tf.zeros([2, 2], tf.float64), tf.zeros([2], tf.float64)]
    loss = with_gradient(lambda weights: sum(tf.reduce_sum(piece**2) for piece in weights))
    result = equation_6(loss, weights, 0.1, None)
    assert float(result.loss) == 0
    assert_close(result.gradient, [np.zeros((2, 2)), np.zeros(2)])


# ------------------------------------------------------------------------------- Algorithm 1


class SoftmaxRegression:
    """L~ of softmax regression on examples; L is twice that."""

    def __init__(self, x, labels):
        self.x, self.labels = tf.constant(x), tf.constant(labels)
        self.batch_size = tf.shape(self.x)[0]

    def sub_batch(self, index, rows, state):
        return tf.gather(self.x, rows), tf.gather(self.labels, rows), index, rows, state

    def hard_label_loss(self, sub_batch, weights):
        x, labels, *_ = sub_batch
        return cross_entropy(x, labels)(weights)

    def both_losses(self, sub_batch, weights, again=False):
        _, _, index, rows, state = sub_batch
        hard = self.hard_label_loss(sub_batch, weights)
        outputs = tf.scatter_nd(rows[:, None], 10 * rows[:, None] + index, [self.batch_size, 1])
        changes = [state[0] + 1.0, tf.constant(4)]
        return hard, BatchLoss(2 * hard.loss, [2 * g for g in hard.gradient], outputs, changes)


# Examples and sub-batches: of one size, of two, and fewer examples than sub-batches.
SIZES = [(12, 4), (11, 4), (3, 8)]


def twice_the_hard_label_loss(x, labels):
    """L where it does not share gradients, as a function of weights."""

    def loss_at(weights):
        whole = cross_entropy(x, labels, factor=2)(weights)
        return BatchLoss(whole.loss, whole.gradient, tf.constant([[0]]))

    return loss_at


def assert_shared(step, parts):
    """The mean moves statistics; counters, which all move alike, stay whole."""
    assert [float(c) for c in step.changes] == [1.5, 4]
    assert step.changes[1].dtype == tf.int32
    index = np.concatenate([np.full(len(part), i) for i, part in enumerate(parts)])
    rows = np.concatenate(parts)
    np.testing.assert_array_equal(step.outputs[:, 0].numpy()[rows], 10 * rows + index)


@pytest.mark.parametrize("name", EQUATION_6)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("run", "batch_size", "num_sub_batches"),
    [
        *((eager, *sizes) for sizes in SIZES),
        (graph, *SIZES[1]),
        *(nightly(graph, *SIZES[i]) for i in (0, 2)),
    ],
)
def test_a_step_equals_the_closed_form(run, batch_size, num_sub_batches, shared, name):
    x, labels = examples(batch_size)
    weights, state = weights_at(1), [tf.constant(0.5), tf.constant(7)]
    alpha, beta, seed = 0.3, 2.0, tf.constant([5, 0], tf.int64)
    losses, whole_loss = SoftmaxRegression(x, labels), twice_the_hard_label_loss(x, labels)

    def step_at(weights, clip_norm, equal_sizes):
        settings = Settings(
            alpha=alpha,
            beta=tf.constant(beta, tf.float64) if equal_sizes else beta,
            num_sub_batches=num_sub_batches,
            clip_norm=clip_norm,
            equation_6=EQUATION_6[name],
            seed=seed,
            equal_sizes=equal_sizes,
        )
        loss = None if shared else whole_loss(weights)
        return regularized_step(losses, weights, state, loss, settings)

    parts = parts_of(batch_size, num_sub_batches, seed)
    # L is twice L~: the same as half the beta, and all of it twice.
    hessian = name == "hessian_vector_product"
    loss, regularizer, gradient = algorithm_1(
        x, labels, weights, parts, alpha, beta / 2, shared=shared, hessian=hessian
    )
    gradient = [2 * g for g in gradient]
    norm = np.sqrt(sum(np.sum(g**2) for g in gradient))
    for clip_norm, equal_sizes in ((None, False), (0.25 * norm, True), (4 * norm, False)):
        step = run(lambda w, *options: step_at(w, *options))(
            [tf.constant(w) for w in weights], clip_norm, equal_sizes
        )
        assert isinstance(step, RegularizedStep)
        np.testing.assert_allclose(step.loss, 2 * loss)
        np.testing.assert_allclose(step.regularizer, regularizer)
        np.testing.assert_allclose(step.gradient_norm, norm)
        factor = 0.25 if equal_sizes else 1.0
        assert_close(step.gradient, [factor * g for g in gradient])
        if shared:
            assert_shared(step, parts)
        else:
            assert step.changes is None


def test_weights_that_the_loss_does_not_depend_on_have_no_gradient():
    x, labels = examples(6)
    losses = SoftmaxRegression(x, labels)
    weights = [tf.constant(w) for w in weights_at(1)]
    whole = cross_entropy(x, labels)(weights)
    loss = BatchLoss(whole.loss, [whole.gradient[0], None], tf.constant([[0]]))
    settings = Settings(
        alpha=0.1,
        beta=1.0,
        num_sub_batches=2,
        clip_norm=1e-3,
        equation_6=finite_difference,
        seed=tf.constant([1, 2], tf.int64),
    )
    step = regularized_step(losses, weights, [], loss, settings)
    assert step.gradient[1] is None
    np.testing.assert_allclose(tf.norm(step.gradient[0]), 1e-3)
