"""Sign-errors against pairs counted one by one, and by hand."""

import itertools
import math

import numpy as np
import pytest

from fisher_keras.experiments.statistics.sign_error import robust_sign_error


def slow(metric, error, hyperparameters, n):
    names = list(hyperparameters)
    settings = [tuple(hyperparameters[name][i] for name in names) for i in range(len(metric))]
    environments = []
    for one, other in itertools.combinations(sorted(set(settings)), 2):
        if sum(a != b for a, b in zip(one, other, strict=True)) != 1:
            continue
        total = wrong = 0.0
        for i, j in itertools.product(range(len(metric)), repeat=2):
            if settings[i] == one and settings[j] == other:
                delta = abs(error[i] - error[j]) / 100
                weight = max(0.0, 1 - 2 * math.exp(-n * delta**2 / 2)) ** 2
                total += weight
                agreement = np.sign(metric[i] - metric[j]) * np.sign(error[i] - error[j])
                wrong += weight * (1 - agreement) / 2
        if total:
            environments.append(wrong / total)
    return environments


def pool(seed, count=40):
    rng = np.random.default_rng(seed)
    settings = {"a": rng.choice([1, 2, 3], count), "b": rng.choice(["x", "y"], count)}
    error = 50 + 3 * settings["a"] + 2 * rng.normal(size=count)
    return np.round(error + 6 * rng.normal(size=count)), error, settings


@pytest.mark.parametrize("seed", range(3))
def test_against_pairs_counted_one_by_one(seed):
    values = pool(seed)
    expected = slow(*values, 10_000)
    found = robust_sign_error(*values, 10_000)
    assert found.num_environments == len(expected) == 9
    assert found.mean.value == pytest.approx(np.mean(expected))
    assert found.worst.value == pytest.approx(max(expected))
    for estimate in (found.mean, found.worst):
        assert 0 <= estimate.low <= estimate.high <= 1


def test_by_hand():
    """With so many images every difference counts, as much as every other."""
    # Batch sizes 1 and 2: of the four pairs one is wrong and one is tied. 1 and 3, 2 and 3: none.
    metric, error = [1, 4, 3, 4, 9, 9], [10, 20, 30, 40, 50, 60]
    found = robust_sign_error(metric, error, {"batch_size": [1, 1, 2, 2, 3, 3]}, 10**9)
    assert found.num_environments == 3
    assert found.mean.value == pytest.approx((1 + 0.5) / 4 / 3)
    assert found.worst.value == pytest.approx(1.5 / 4)


def test_differences_that_the_images_cannot_tell_apart_do_not_count():
    settings = {"batch_size": [1, 1, 2]}
    # 1 - 2 exp(-n Δ² / 2) is 0 at Δ = sqrt(2 ln 2 / n), 1.18 % for 10,000 images.
    error = [50.0, 48.0, 49.0]
    assert robust_sign_error([1, 2, 3], error, settings, 10_000).num_environments == 0
    error = [50.0, 47.5, 49.0]  # The second is wrong by 1.5 %, the first by 1 %.
    found = robust_sign_error([1, 4, 3], error, settings, 10_000)
    assert (found.num_environments, found.worst.value) == (1, 1.0)


def test_settings_that_differ_in_two_are_not_compared():
    found = robust_sign_error([1, 2], [10, 50], {"a": [1, 2], "b": [1, 2]}, 1000)
    assert found.num_environments == 0
    assert math.isnan(found.worst.value)


def test_unknown_and_infinite_metrics():
    settings = {"a": [1, 2, 2]}
    found = robust_sign_error([-math.inf, math.nan, 3], [10, 5, 50], settings, 1000)
    assert (found.num_environments, found.worst.value) == (1, 0.0)
    assert robust_sign_error([math.nan], [1], {"a": [1]}, 10).num_environments == 0


def test_an_interval_has_the_errors_of_the_environment_resampled():
    rng = np.random.default_rng(3)
    metric, error = rng.normal(size=(2, 20))
    setting = np.repeat([0, 1], 10)
    error = 50 + 10 * error
    slow_values = []
    for _ in range(400):
        drawn = rng.integers(20, size=20)
        slow_values += slow(metric[drawn], error[drawn], {"a": setting[drawn]}, 10**6)
    found = robust_sign_error(metric, error, {"a": setting}, 10**6)
    expected = np.percentile(slow_values, [2.5, 97.5])
    np.testing.assert_allclose([found.worst.low, found.worst.high], expected, atol=0.05)
