"""Results in any numeric environment: those of float64 to within its rounding, or refused.

Layers have the environment's dtype policy here: bin/run_environments sets others.
"""

import keras
import numpy as np
import pytest
from closed_forms import algorithm_1, softmax_regression
from keras import layers
from marks import nightly
from slow_jacobian import jacobian, xi

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel, evaluate_local_minimum
from fisher_keras.classifier.precision import coarse_formats, rounding_of
from fisher_keras.fisher import loss_gradient_gram
from fisher_keras.metrics import hessian, robustness
from fisher_keras.regularizer.preconditions import LEAST_STEP_LENGTHS
from fisher_keras.regularizer.sub_batches import split_batch

pytestmark = pytest.mark.exactness

COUNT, FEATURES, CLASSES = 12, 6, 3
ALPHA, BETA, RATE = 0.05, 20.0, 0.5


def few_digits(shape, seed):
    """Numbers that every format holds, so that only what is computed of them is rounded."""
    return np.round(4 * np.random.default_rng(seed).normal(size=shape)) / 8


Y = np.arange(COUNT) % CLASSES


def dense(dtype):
    hidden, head = layers.Dense(5, "tanh", dtype=dtype), layers.Dense(CLASSES, dtype=dtype)
    return keras.Sequential([keras.Input((FEATURES,), dtype=dtype), hidden, head])


def linear(dtype):
    head = layers.Dense(CLASSES, dtype=dtype)
    return keras.Sequential([keras.Input((FEATURES,), dtype=dtype), head])


def image_network(dtype):
    return keras.Sequential(
        [
            keras.Input((6, 6, 2), dtype=dtype),
            layers.Conv2D(3, 3, padding="same", dtype=dtype),
            layers.BatchNormalization(dtype=dtype),
            layers.ReLU(dtype=dtype),
            layers.Flatten(dtype=dtype),
            layers.Dense(CLASSES, "softmax", dtype=dtype),
        ]
    )


def sequence_network(dtype):
    inputs = keras.Input((4, 3), dtype=dtype)
    attended = layers.MultiHeadAttention(2, 3, dtype=dtype)(inputs, inputs)
    features = layers.LayerNormalization(dtype=dtype)(layers.Add(dtype=dtype)([inputs, attended]))
    pooled = layers.GlobalAveragePooling1D(dtype=dtype)(features)
    return keras.Model(inputs, layers.Dense(CLASSES, dtype=dtype)(pooled))


def pair(make):
    """Returns a classifier of the environment, the same in float64, and inputs."""
    found = [make(None), make("float64")]
    for model in found:
        for seed, v in enumerate(model.variables):
            if not v.dtype.startswith("uint"):
                values = few_digits(v.shape, seed)
                v.assign(0.5 + np.abs(values) if "variance" in v.path else values)
    return *found, few_digits((COUNT, *found[0].input_shape[1:]), seed=99)


def assert_close(found, right, rounding, roundings=256):
    right = np.asarray(right)
    off = np.abs(np.asarray(found, "float64") - right).max() / np.abs(right).max()
    # However coarse the format: what is wrong is off by about 1.
    assert off < min(roundings * rounding, 0.1)


NETWORKS = [dense, image_network, nightly(sequence_network)]


@pytest.mark.parametrize("make", NETWORKS)
def test_gram_matrix_and_robustness(make):
    model, exact, x = pair(make)
    rounding, few = rounding_of(model), slice(4)
    loss = (lambda p, c: -keras.ops.log(p[c])) if make is image_network else None
    j = jacobian(exact, x[few], Y[few], loss=loss)
    assert_close(xi(loss_gradient_gram(model, x[few], Y[few])), j @ j.T, rounding)
    assert_close(robustness(model, x[few]), robustness(exact, x[few]), rounding)
    options = {"num_samples": 4, "num_trials": 1, "metrics": ["trace"], "progress": False}
    found, right = (evaluate_local_minimum(m, (x, Y), **options) for m in (model, exact))
    assert_close(found.train.loss, right.train.loss, rounding)
    assert_close(found.metrics["trace"].mean, right.metrics["trace"].mean, rounding)


def test_hessian():
    model, exact, x = pair(dense)
    assert_close(hessian(model, x, Y), hessian(exact, x, Y), rounding_of(model))


METHODS = {
    "finite difference": {},
    "shared": {"share_gradients": True},
    "longer step": {"step_length": 0.1},
    "product": {"gradient": "hessian_vector_product", "share_gradients": False},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_step_equals_the_closed_form(method):
    classifier, exact, x = pair(linear)
    options = {"alpha": ALPHA, "beta": BETA, "num_sub_batches": 4, "clip_norm": None, "seed": 3}
    model = FisherRegularizedModel(classifier, **options, **METHODS[method])
    if coarse_formats(classifier) and method in ("finite difference", "shared"):
        with pytest.raises(ValueError, match="finite_difference' cannot be used"):
            compile_and_step(model, x)
        return
    compile_and_step(model, x)
    split = split_batch(COUNT, 4, [3, 0])
    parts = np.split(split.permutation.numpy(), 4)
    weights = [v.numpy() for v in exact.weights]
    *_, gradient = algorithm_1(
        x, Y, weights, parts, ALPHA, BETA, hessian=method == "product", shared=method == "shared"
    )
    if method == "longer step":
        gradient = by_longer_steps(x, weights, parts)
    for mine, w, g in zip(classifier.weights, weights, gradient, strict=True):
        # A difference has lost the digits that its two gradients have in common.
        assert_close((w - mine.numpy()) / RATE, g, rounding_of(classifier), 2048)


def by_longer_steps(x, weights, parts, length=0.1):
    _, total = softmax_regression(x, Y, weights)
    for part in parts:
        _, g = softmax_regression(x[part], Y[part], weights)
        norm = np.sqrt(sum(np.sum(d**2) for d in g))
        there = [w - length * d / norm for w, d in zip(weights, g, strict=True)]
        _, other = softmax_regression(x[part], Y[part], there)
        factor = BETA * ALPHA * norm / length / len(parts)
        total = [t + factor * (a - b) for t, a, b in zip(total, g, other, strict=True)]
    return total


def test_sharpness_aware_minimization():
    classifier, exact, x = pair(linear)
    compile_and_step(SharpnessAwareModel(classifier, rho=0.25), x)
    weights = [v.numpy() for v in exact.weights]
    _, g = softmax_regression(x, Y, weights)
    norm = np.sqrt(sum(np.sum(d**2) for d in g))
    _, there = softmax_regression(
        x, Y, [w + 0.25 * d / norm for w, d in zip(weights, g, strict=True)]
    )
    for mine, w, d in zip(classifier.weights, weights, there, strict=True):
        assert_close((w - mine.numpy()) / RATE, d, rounding_of(classifier))


def test_the_same_seed_trains_to_the_same_bits():
    found = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        classifier = keras.Sequential([layers.Dropout(0.5), *dense(None).layers])
        model = FisherRegularizedModel(classifier, seed=1, gradient="hessian_vector_product")
        compile_and_step(model, few_digits((COUNT, FEATURES), seed=5), epochs=2)
        found.append(classifier.get_weights())
    for first, second in zip(*found, strict=True):
        np.testing.assert_array_equal(first, second)


def compile_and_step(model, x, epochs=1):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(RATE), loss)
    model.fit(x, Y, batch_size=COUNT, shuffle=False, verbose=0, epochs=epochs)


def test_least_step_lengths_name_all_coarse_formats():
    assert coarse_formats(dense(None)).keys() <= LEAST_STEP_LENGTHS.keys()
