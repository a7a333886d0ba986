"""Metrics of a Gram matrix against an explicit Jacobian in NumPy, and against mpmath."""

import gc
import math
import warnings
import weakref

import keras
import mpmath
import numpy as np
import pytest
import tensorflow as tf

from fisher_keras import metrics
from fisher_keras.fisher import FisherGram, loss_gradient_gram


def random_jacobian(examples=7, parameters=30, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(examples, parameters)) * np.exp(random.normal(size=(examples, 1)))


def gram_of(jacobian, log_scale=0.0):
    """The FisherGram of diag(e^log_scale) J."""
    norms = np.linalg.norm(jacobian, axis=1)
    unit = jacobian / np.where(norms > 0, norms, 1)[:, None]
    matrix = unit @ unit.T
    np.fill_diagonal(matrix, 1.0)
    with np.errstate(divide="ignore"):
        return FisherGram(tf.constant(matrix), tf.constant(np.log(norms) + log_scale))


def exact_log_spectrum(gram):
    """Eigenvalues of xi at 700 digits."""
    matrix, log_scale = gram.matrix.numpy(), gram.log_scale.numpy()
    with mpmath.workdps(700):
        scale = [mpmath.exp(mpmath.mpf(s)) for s in log_scale]
        xi = mpmath.matrix(len(scale))
        for i, j in np.ndindex(matrix.shape):
            xi[i, j] = scale[i] * mpmath.mpf(matrix[i, j]) * scale[j]
        return sorted(float(mpmath.log(v)) for v in mpmath.eigsy(xi, eigvals_only=True))[::-1]


def test_metrics_are_those_of_the_jacobian():
    jacobian = random_jacobian()
    gram = gram_of(jacobian)
    xi = jacobian @ jacobian.T
    information = jacobian.T @ jacobian / len(jacobian)
    squares = np.sum(jacobian**2, axis=1)
    eigenvalues = np.linalg.svd(jacobian, compute_uv=False) ** 2
    shares = eigenvalues / eigenvalues.sum()
    cosines = xi / np.sqrt(np.outer(squares, squares))
    expected = {
        "log_determinant": np.log(np.linalg.det(xi)),
        "log_squared_norms": np.log(np.prod(squares)),
        "log_determinant_cosines": np.log(np.linalg.det(cosines)),
        "spectral_radius": np.linalg.norm(jacobian, 2) ** 2,
        "frobenius_norm": np.mean([np.linalg.norm(np.outer(g, g)) ** 2 for g in jacobian]),
        "sample_frobenius_norm": np.linalg.norm(information) ** 2,
        "trace": np.trace(information),
        "effective_rank": np.prod(shares**-shares),
        "log_determinant_shifted": np.linalg.slogdet(xi / 7 + 1e-3 * np.eye(7))[1],
        "soft_rank": np.trace(xi / 7 @ np.linalg.inv(xi / 7 + 1e-3 * np.eye(7))),
        "renyi_entropy": -np.log(np.sum(shares**2)),
    }
    for name, value in expected.items():
        result = getattr(metrics, name)(gram)
        assert isinstance(result, float)
        np.testing.assert_allclose(result, value, rtol=1e-11, err_msg=name)
    np.testing.assert_allclose(expected["trace"], squares.mean(), rtol=1e-12)
    np.testing.assert_allclose(metrics.spectrum(gram), eigenvalues, rtol=1e-11)
    np.testing.assert_allclose(metrics.log_spectrum(gram), np.log(eigenvalues), atol=1e-11)


def test_orthogonal_gradients_in_closed_form():
    norms = np.array([3.0, 1.0, 2.0])
    gram = gram_of(np.diag(norms))
    np.testing.assert_allclose(metrics.log_determinant(gram), 2 * np.log(6.0))
    np.testing.assert_allclose(metrics.log_squared_norms(gram), 2 * np.log(6.0))
    assert metrics.log_determinant_cosines(gram) == 0.0
    np.testing.assert_allclose(metrics.spectrum(gram), [9.0, 4.0, 1.0])
    np.testing.assert_allclose(metrics.frobenius_norm(gram), (81 + 1 + 16) / 3)
    np.testing.assert_allclose(metrics.sample_frobenius_norm(gram), (81 + 1 + 16) / 9)
    np.testing.assert_allclose(metrics.effective_rank(gram_of(np.eye(5))), 5.0)


@pytest.mark.parametrize("count", [2, 5])
def test_equal_angles_in_closed_form(count):
    """Ones with c off the diagonal have the determinant (1 - c)^(n-1) (1 + (n-1) c)."""
    cosine, norms = 0.3, np.arange(1.0, count + 1)
    matrix = np.full((count, count), cosine) + (1 - cosine) * np.eye(count)
    gram = FisherGram(tf.constant(matrix), tf.constant(np.log(norms)))
    directions = (count - 1) * np.log(1 - cosine) + np.log(1 + (count - 1) * cosine)
    lengths = 2 * math.log(math.factorial(count))
    np.testing.assert_allclose(metrics.log_determinant_cosines(gram), directions, rtol=1e-12)
    np.testing.assert_allclose(metrics.log_squared_norms(gram), lengths, rtol=1e-12)
    np.testing.assert_allclose(metrics.log_determinant(gram), lengths + directions, rtol=1e-12)


@pytest.mark.parametrize("log_scale", [-700.0, 300.0])
def test_scales_beyond_float64(log_scale):
    jacobian = random_jacobian()
    plain, scaled = gram_of(jacobian), gram_of(jacobian, log_scale)
    np.testing.assert_allclose(
        metrics.log_determinant(scaled),
        metrics.log_determinant(plain) + 2 * len(jacobian) * log_scale,
        rtol=1e-13,
    )
    np.testing.assert_allclose(
        metrics.log_squared_norms(scaled),
        metrics.log_squared_norms(plain) + 2 * len(jacobian) * log_scale,
        rtol=1e-13,
    )
    np.testing.assert_allclose(
        metrics.log_determinant_cosines(scaled), metrics.log_determinant_cosines(plain)
    )
    np.testing.assert_allclose(
        metrics.log_spectrum(scaled), metrics.log_spectrum(plain) + 2 * log_scale, rtol=1e-13
    )
    np.testing.assert_allclose(
        metrics.effective_rank(scaled), metrics.effective_rank(plain), rtol=1e-13
    )
    limit = 0.0 if log_scale < 0 else np.inf
    assert metrics.sample_frobenius_norm(scaled) == limit
    assert metrics.frobenius_norm(scaled) == limit
    if log_scale < 0:
        assert metrics.spectral_radius(scaled) == metrics.trace(scaled) == 0.0
        assert (metrics.spectrum(scaled) == 0.0).all()


@pytest.mark.parametrize("span", [40.0, 690.0])
def test_spectrum_is_precise_however_far_scales_are_apart(span):
    log_scale = np.random.default_rng(1).uniform(-span, 0, size=8)
    gram = gram_of(random_jacobian(8), log_scale)
    np.testing.assert_allclose(metrics.log_spectrum(gram), exact_log_spectrum(gram), rtol=1e-13)
    np.testing.assert_allclose(
        metrics.log_spectrum(gram).sum(), metrics.log_determinant(gram), rtol=1e-13
    )


def test_a_spectrum_is_the_callers_own_and_its_matrix_can_go():
    gram = gram_of(random_jacobian(8))
    expected = exact_log_spectrum(gram)
    metrics.log_spectrum(gram)[:] = 0.0
    np.testing.assert_allclose(metrics.log_spectrum(gram), expected, rtol=1e-12)
    left = weakref.ref(gram)
    del gram
    gc.collect()
    assert left() is None


def test_an_ill_conditioned_but_regular_matrix_is_not_called_singular():
    jacobian = random_jacobian()
    jacobian[1] = jacobian[0] + 1e-5 * jacobian[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = metrics.log_determinant(gram_of(jacobian))
    np.testing.assert_allclose(
        result, 2 * np.sum(np.log(np.linalg.svd(jacobian, compute_uv=False))), rtol=1e-6
    )


def test_a_repeated_image_is_named_though_gradients_differ_by_rounding():
    jacobian = random_jacobian()
    random = np.random.default_rng(5)
    jacobian[4] = 0.01 * jacobian[2] * (1 + 1e-7 * random.normal(size=jacobian.shape[1]))
    gram = gram_of(jacobian)
    with pytest.warns(metrics.SingularGramWarning, match=r"parallel .* examples 2, 4 \(rows"):
        assert metrics.log_determinant(gram) == -np.inf
    with pytest.warns(metrics.SingularGramWarning, match="parallel"):
        assert metrics.log_determinant_cosines(gram) == -np.inf
    np.testing.assert_allclose(  # The lengths know nothing of it.
        metrics.log_squared_norms(gram), np.log(np.sum(jacobian**2, axis=1)).sum()
    )
    assert metrics.find_dependence(gram).parallel == ((2, 4),)
    # What is left is the spectrum of the others, the two as one.
    others = np.delete(jacobian, 4, axis=0)
    others[2] *= np.sqrt(1 + 0.01**2)
    np.testing.assert_allclose(
        metrics.spectrum(gram),
        [*np.linalg.svd(others, compute_uv=False) ** 2, 0.0],
        rtol=1e-6,
    )


def test_opposite_gradients_are_parallel():
    jacobian = random_jacobian()
    jacobian[0] = -3 * jacobian[6]
    assert metrics.find_dependence(gram_of(jacobian)).parallel == ((0, 6),)


def test_a_zero_gradient_is_named():
    jacobian = random_jacobian()
    jacobian[3] = 0.0
    gram = gram_of(jacobian)
    for metric in (metrics.log_determinant, metrics.log_determinant_cosines):
        with pytest.warns(metrics.SingularGramWarning, match="gradient is zero for examples 3 "):
            assert metric(gram) == -np.inf
    assert metrics.log_squared_norms(gram) == -np.inf
    np.testing.assert_allclose(
        metrics.spectrum(gram), np.linalg.svd(jacobian, compute_uv=False) ** 2, 1e-10, 1e-30
    )


def test_a_direction_without_information_adds_nothing():
    """The eigenvalues of I are 1/3, 1/3 and exactly 0."""
    gram, delta = gram_of(np.diag([1.0, 1.0, 0.0])), 0.01
    assert metrics.effective_rank(gram) == pytest.approx(2.0)
    assert metrics.renyi_entropy(gram) == pytest.approx(np.log(2))
    assert metrics.soft_rank(gram, delta) == pytest.approx(2 / (1 + 3 * delta))
    expected = 2 * np.log(1 / 3 + delta) + np.log(delta)
    assert metrics.log_determinant_shifted(gram, delta) == pytest.approx(expected)


def test_a_dead_network():
    gram = gram_of(np.zeros((4, 10)))
    with pytest.warns(metrics.SingularGramWarning, match="zero for examples 0, 1, 2, 3"):
        assert metrics.log_determinant(gram) == -np.inf
    names = ("spectral_radius", "frobenius_norm", "sample_frobenius_norm", "trace")
    for name in (*names, "effective_rank"):
        assert getattr(metrics, name)(gram) == 0.0
    assert (metrics.log_spectrum(gram) == -np.inf).all()


def test_linearly_dependent_gradients_are_named_and_the_others_not():
    jacobian = random_jacobian()
    jacobian[5] = jacobian[1] - 2 * jacobian[3]
    dependence = metrics.find_dependence(gram_of(jacobian), examples=np.arange(100, 107))
    assert dependence.dependent == (101, 103, 105)
    assert not dependence.zero
    assert not dependence.parallel


def test_more_examples_than_parameters():
    gram = gram_of(random_jacobian(examples=20, parameters=5))
    with pytest.warns(metrics.SingularGramWarning, match="dependent for examples .* 10 more"):
        assert metrics.log_determinant(gram) == -np.inf
    assert np.isfinite(metrics.log_spectrum(gram)).sum() == 5


@pytest.mark.parametrize(
    "policy", ["float32", "mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"]
)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_rank_tolerance_follows_the_precision(policy, num_layers):
    """W = 28 gradients of a linear softmax classifier are of rank 21; a wide network's of full."""
    keras.config.set_dtype_policy(policy)
    try:
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(40, "tanh"), keras.layers.Dense(4)][-num_layers:]
        model = keras.Sequential([keras.Input((6,)), *layers])
    finally:
        keras.config.set_dtype_policy("float32")
    x = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
    gram = loss_gradient_gram(model, x, np.arange(24) % 4)
    if num_layers == 2:
        assert np.isfinite(metrics.log_determinant(gram))
        return
    reason = "a rounding of" if "16" in policy else "dependent for"
    with pytest.warns(metrics.SingularGramWarning, match=reason):
        assert metrics.log_determinant(gram) == -np.inf
    assert np.isinf(metrics.log_spectrum(gram)).sum() == 3


def test_one_layer_in_half_precision_is_enough():
    half = keras.layers.Dense(40, "tanh", dtype="mixed_bfloat16")
    model = keras.Sequential([keras.Input((6,)), half, keras.layers.Dense(4)])
    x = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    assert loss_gradient_gram(model, x, np.arange(5) % 4).epsilon == 2.0**-7


def test_nan_is_an_error():
    gram = FisherGram(tf.constant([[1.0, np.nan], [np.nan, 1.0]], tf.float64), tf.zeros(2))
    with pytest.raises(ValueError, match="NaN"):
        metrics.log_determinant(gram)
