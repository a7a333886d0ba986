import doctest
import itertools
import math

import mpmath
import numpy as np
import pytest

import fisher_keras.bound
from fisher_keras.bound import (
    extrapolate_log_determinant,
    fisher_information_approximation,
    generalization_bound,
    neighborhood_height,
    trace_upper_bound,
)

# L0, gamma, W, N, delta, ln V
SETTINGS = [
    (0.01, -3.2e6, 270_000, 50_000, 0.05, 0.0),
    (0.0, -1e9, 10**8, 50_000, 1e-3, -1e9),
    (0.3, 1e9, 10**8, 1_200_000, 1.0, 1e8),
    (0.3, -1e9, 10**8, 2, 1e-300, 12.5),
    (0.02, -3.5, 1, 100, 0.1, 1.5),
    (1.5, 2.0, 2, 2, 0.5, -2.0),
    (1e-12, -40.0, 7, 45_000, 0.01, -20.0),
]
SCHEMES = ["stirling", "exact"]


@pytest.fixture(autouse=True)
def precise_mpmath():
    with mpmath.workdps(60):
        yield


def theorem_1(L0, gamma, W, N, delta, log_V, scheme):
    """Theorem 1 as it is written, and its height with the Gamma function, to 60 digits."""
    L0, gamma, delta, log_V = map(mpmath.mpf, (L0, gamma, delta, log_V))
    V, det, pi, e = mpmath.exp(log_V), mpmath.exp(gamma), mpmath.pi, mpmath.e
    power = mpmath.mpf(1) / W
    if scheme == "stirling":
        A = W * V ** (2 * power) * pi**power * det**power / (4 * pi * e)
    else:
        A = (V * mpmath.gamma(mpmath.mpf(W) / 2 + 1)) ** (2 * power) * det**power / (2 * pi)
    return A, L0 + A + 2 * mpmath.sqrt((2 * L0 + 2 * A + mpmath.log(2 * N / delta)) / (N - 1))


def random_spd(rng, size):
    factor = rng.normal(size=(size, size)) * rng.uniform(0.1, 3.0, size=size)
    return factor @ factor.T


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_theorem_1_agrees_with_mpmath(setting, scheme):
    L0, gamma, W, N, delta, log_V = setting
    height, bound = theorem_1(*setting, scheme)
    options = {"log_volume": log_V, "gamma_function": scheme}
    assert neighborhood_height(gamma, W, **options) == pytest.approx(
        float(height), rel=1e-13, abs=0
    )
    assert generalization_bound(L0, gamma, W, N, delta, **options) == pytest.approx(
        float(bound), rel=1e-13, abs=0
    )


def test_theorem_1_as_printed_is_the_default():
    setting = (0.1, -2.0, 3, 100, 0.05, 0.0)
    _, bound = theorem_1(*setting, "stirling")
    assert generalization_bound(*setting[:-1], volume=1.0) == pytest.approx(
        float(bound), rel=1e-14
    )


@pytest.mark.parametrize(
    ("W", "volume_of_unit_ball"), [(1, 2), (2, math.pi), (3, 4 / 3 * math.pi), (4, math.pi**2 / 2)]
)
def test_exact_height_is_that_of_an_ellipsoid(W, volume_of_unit_ball):
    # The loss 1/2 sum lambda_k w_k^2 is at most A in an ellipsoid of half-axes sqrt(2 A/lambda_k).
    curvatures = np.array([0.3, 2.0, 5.0, 0.01])[:W]
    height = 0.7
    volume = volume_of_unit_ball * np.prod(np.sqrt(2 * height / curvatures))
    gamma = np.log(curvatures).sum()
    found = neighborhood_height(gamma, W, volume=volume, gamma_function="exact")
    assert found == pytest.approx(height, rel=1e-14, abs=0)


@pytest.mark.parametrize("W", [1, 2, 3, 10, 100, 10**6])
def test_printed_height_is_below_the_exact_one_as_documented(W):
    exact, printed = (
        neighborhood_height(-W, W, volume=1.0, gamma_function=scheme)
        for scheme in ("exact", "stirling")
    )
    ratio = exact / printed
    assert 1 < ratio <= math.e / math.sqrt(math.pi) * (1 + 1e-14)  # its value at W = 2, 1.53
    assert ratio == pytest.approx(W ** (1 / W) * math.exp(1 / (3 * W**2)), rel=0.06 / W**4 + 1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_volume_is_the_same_as_its_logarithm(scheme):
    by_volume = generalization_bound(0.1, -4.0, 5, 100, 0.1, volume=1e-200, gamma_function=scheme)
    by_log_volume = generalization_bound(
        0.1, -4.0, 5, 100, 0.1, log_volume=math.log(1e-200), gamma_function=scheme
    )
    assert by_volume == pytest.approx(by_log_volume, rel=1e-13, abs=0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_singular_fisher_information_leaves_the_bound_without_height(scheme):
    options = {"volume": 2.0, "gamma_function": scheme}
    assert neighborhood_height(-np.inf, 10, **options) == 0.0
    without_height = 0.2 + 2 * math.sqrt((0.4 + math.log(200 / 0.05)) / 99)
    found = generalization_bound(0.2, -np.inf, 10, 100, 0.05, **options)
    assert found == pytest.approx(without_height, rel=1e-14, abs=0)


@pytest.mark.filterwarnings("error")
def test_a_bound_beyond_float64_is_inf_and_one_below_it_is_zero():
    assert generalization_bound(0.0, 1e9, 1, 100, 0.1, volume=1.0) == np.inf
    assert neighborhood_height(-1e9, 1, volume=1.0) == 0.0


def test_arrays_broadcast():
    losses, gammas, delta = np.array([[0.0], [0.1]]), np.array([-3.0, -np.inf, 4.0]), 0.1
    found = generalization_bound(losses, gammas, 6, 50, delta, volume=0.5)
    one_by_one = [
        [generalization_bound(loss, gamma, 6, 50, delta, volume=0.5) for gamma in gammas]
        for loss in losses[:, 0]
    ]
    np.testing.assert_array_equal(found, one_by_one)


def test_float32_input_is_computed_in_float64():
    found = generalization_bound(np.float32(0.5), np.float32(-2), 6.0, np.int64(50), 0.1, volume=1)
    assert isinstance(found, np.float64)
    assert found == generalization_bound(0.5, -2.0, 6, 50, 0.1, volume=1.0)


@pytest.mark.parametrize(
    ("gamma", "W", "N"), [(-350.0, 270_000, 100), (-1e9, 10**8, 10**6), (1.5, 1, 1)]
)
def test_extrapolation_agrees_with_mpmath(gamma, W, N):
    truth = mpmath.mpf(W) / N * mpmath.mpf(gamma) + W * mpmath.log(mpmath.mpf(1) / W)
    assert extrapolate_log_determinant(gamma, W, N) == pytest.approx(
        float(truth), rel=1e-14, abs=0
    )


def test_extrapolation_from_all_examples_is_exact_and_from_fewer_is_from_above():
    # Equation 4: with W examples, I' = xi / W has the log-determinant gamma. Sampling without
    # replacement for T -> infinity takes the mean over every subset.
    W = 6
    xi = random_spd(np.random.default_rng(0), W)
    gamma = np.linalg.slogdet(xi / W).logabsdet
    estimates = []
    for size in range(1, W + 1):
        subsets = map(list, itertools.combinations(range(W), size))
        mean = np.mean([np.linalg.slogdet(xi[np.ix_(s, s)]).logabsdet for s in subsets])
        estimates.append(extrapolate_log_determinant(mean, W, size))
    assert estimates[-1] == pytest.approx(gamma, rel=1e-12)
    assert np.all(np.diff(estimates) < 0)


def test_fisher_information_approximation_agrees_with_mpmath():
    for L0, gamma, W, N, _, log_V in SETTINGS:
        L0, gamma, log_V = map(mpmath.mpf, (L0, gamma, log_V))
        truth = N * L0 - N * mpmath.log(mpmath.mpf(1) / N)
        truth += mpmath.mpf(W) / 2 * mpmath.log(N / (2 * mpmath.pi)) + log_V
        truth += mpmath.log(mpmath.sqrt(mpmath.exp(gamma)))
        found = fisher_information_approximation(
            float(L0), float(gamma), W, N, log_volume=float(log_V)
        )
        # The terms may cancel: compared to the largest of them.
        largest = max(abs(gamma) / 2, abs(log_V), W / 2 * math.log(N), N)
        assert abs(found - truth) < 1e-14 * largest


def test_fisher_information_approximation_counts_the_joint_likelihood():
    # Three examples, the probabilities f_w0(x) of two classes, and the smoothed labels.
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    labels = np.array([[0.95, 0.05], [0.05, 0.95], [0.95, 0.05]])
    joint = -np.sum(labels * np.log(probabilities / 3))
    training_loss = -np.mean(np.sum(labels * np.log(probabilities), axis=1))
    found = fisher_information_approximation(training_loss, math.log(4.0), 2, 3, volume=0.5)
    # ln V + ln sqrt(4) is nothing for V = 0.5.
    assert found == pytest.approx(joint + math.log(3 / (2 * math.pi)), rel=1e-14, abs=0)


@pytest.mark.parametrize(
    ("trace", "W"), [(3.7, 1), (12.0, 270_000), (1e-300, 10**8), (1e300, 10**8), (5e-324, 3)]
)
def test_trace_upper_bound_agrees_with_mpmath(trace, W):
    truth = W * (mpmath.log(mpmath.mpf(trace)) - mpmath.log(W))
    assert trace_upper_bound(trace, W) == pytest.approx(float(truth), rel=1e-14, abs=0)


def test_trace_upper_bound_is_above_the_log_determinant():
    rng = np.random.default_rng(1)
    for size in (1, 2, 5, 20, 50):
        for _ in range(20):
            fisher = random_spd(rng, size)
            gamma = np.linalg.slogdet(fisher).logabsdet
            assert gamma <= trace_upper_bound(np.trace(fisher), size) + 1e-12


def test_trace_upper_bound_is_reached_where_the_eigenvalues_are_equal():
    assert trace_upper_bound(0.3 * 40, 40) == pytest.approx(40 * math.log(0.3), rel=1e-13, abs=0)


@pytest.mark.filterwarnings("error")
def test_singular_fisher_information_stays_minus_infinity():
    assert extrapolate_log_determinant(-np.inf, 10, 5) == -np.inf
    assert fisher_information_approximation(0.1, -np.inf, 10, 5, volume=1.0) == -np.inf
    assert trace_upper_bound(0.0, 10) == -np.inf


BOUND = {
    "training_loss": 0.1,
    "log_determinant": -2.0,
    "num_parameters": 3,
    "num_samples": 100,
    "delta": 0.1,
    "volume": 1.0,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("training_loss", value) for value in (-1e-3, np.nan, np.inf, None, "low", [0.1, -1.0])),
        *(("log_determinant", value) for value in (np.nan, np.inf, [-2.0, np.nan])),
        *(("num_parameters", value) for value in (0, -1, 2.5, np.nan, np.inf, "3", None)),
        *(("num_samples", value) for value in (1, 0, 99.5, [100])),
        *(("delta", value) for value in (0.0, -0.1, 1.1, np.nan)),
        *(("volume", value) for value in (0.0, -1.0, np.nan, np.inf, 10**400)),
        ("gamma_function", "lanczos"),
    ],
)
def test_bad_input_to_the_bound_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .*Given: "):
        generalization_bound(**BOUND | {name: value})


@pytest.mark.parametrize("log_volume", [np.nan, np.inf, -np.inf])
def test_a_log_volume_that_is_not_finite_is_refused(log_volume):
    with pytest.raises(ValueError, match="log_volume must be a finite number"):
        neighborhood_height(-2.0, 3, log_volume=log_volume)


@pytest.mark.parametrize("volumes", [{}, {"volume": 1.0, "log_volume": 0.0}])
def test_both_volumes_or_none_are_refused(volumes):
    for function, arguments in [
        (generalization_bound, (0.1, -2.0, 3, 100, 0.1)),
        (neighborhood_height, (-2.0, 3)),
        (fisher_information_approximation, (0.1, -2.0, 3, 100)),
    ]:
        with pytest.raises(ValueError, match="exactly one of volume and log_volume"):
            function(*arguments, **volumes)


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (extrapolate_log_determinant, (np.nan, 10, 5), "log_determinant"),
        (extrapolate_log_determinant, (-1.0, 0, 5), "num_parameters"),
        (extrapolate_log_determinant, (-1.0, 10, 0), "num_samples"),
        (extrapolate_log_determinant, (-1.0, 10, 11), "num_samples"),
        (trace_upper_bound, (-1.0, 3), "trace"),
        (trace_upper_bound, (np.nan, 3), "trace"),
        (trace_upper_bound, (np.inf, 3), "trace"),
        (trace_upper_bound, (1.0, 0), "num_parameters"),
    ],
)
def test_bad_input_to_the_other_functions_is_refused_by_name(function, arguments, name):
    with pytest.raises(ValueError, match=rf"^{name} must be .*Given: "):
        function(*arguments)


def test_examples_in_the_docstrings_run():
    results = doctest.testmod(fisher_keras.bound)
    assert results.attempted >= 5
    assert results.failed == 0
