"""Permutations of levels, and Holm's correction, against their definitions written out."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from fisher_keras.experiments.statistics.permutation import holm, level_permutation_p_value


def design(num_levels=4, num_seeds=5, seed=0):
    rng = np.random.default_rng(seed)
    levels = [level for level in range(num_levels) for _ in range(num_seeds)]
    metric = np.round(np.array(levels) + rng.normal(size=len(levels)), 1)
    return (
        metric,
        np.round(np.array(levels) * rng.normal() + rng.normal(size=len(levels)), 1),
        levels,
    )


@pytest.mark.parametrize("seed", range(3))
def test_all_orders_of_four_levels(seed):
    metric, error, levels = design(seed=seed)
    blocks = error.reshape(4, 5)
    sums = []
    for order in itertools.permutations(range(4)):
        permuted = blocks[list(order)].ravel()
        pairs = itertools.combinations(range(20), 2)
        sums.append(
            sum(
                np.sign(metric[i] - metric[j]) * np.sign(permuted[i] - permuted[j])
                for i, j in pairs
                if levels[i] != levels[j]
            )
        )
    expected = np.mean(np.abs(sums) >= abs(sums[0]))
    assert level_permutation_p_value(metric, error, levels) == pytest.approx(expected)


def test_with_one_run_a_level_it_is_the_exact_test_of_kendall():
    rng = np.random.default_rng(3)
    metric, error = rng.normal(size=(2, 7))
    exact = scipy.stats.kendalltau(metric, error, method="exact").pvalue
    assert level_permutation_p_value(metric, error, range(7)) == pytest.approx(exact)


def test_many_levels_are_permuted_at_random():
    metric, error = np.random.default_rng(4).normal(size=(2, 9))
    exact = scipy.stats.kendalltau(metric, error, method="exact").pvalue
    assert level_permutation_p_value(metric, error, range(9)) == pytest.approx(exact, abs=0.03)
    metric, error = np.arange(9.0), np.arange(9.0) ** 2
    assert level_permutation_p_value(metric, error, range(9)) == pytest.approx(0, abs=1e-3)


def test_a_perfect_order_of_three_levels_is_two_of_six():
    metric = error = np.arange(9.0)
    assert level_permutation_p_value(metric, error, list("aaabbbccc")) == 2 / 6


def test_designs_that_cannot_be_permuted():
    assert math.isnan(level_permutation_p_value([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], ["a", "a", "b"]))
    assert math.isnan(level_permutation_p_value([1.0, np.nan], [1.0, 2.0], ["a", "b"]))
    assert math.isnan(level_permutation_p_value([1.0, 1.0], [1.0, 2.0], ["a", "b"]))


def test_holm_is_the_closed_test_of_bonferroni():
    """A hypothesis' adjusted p-value is the largest Bonferroni p-value of the sets it is in."""
    p_values = [0.012, 0.4, 0.012, 0.04, 0.9, 0.003]
    expected = [
        max(
            min(1.0, len(tests) * min(p_values[test] for test in tests))
            for size in range(1, 7)
            for tests in itertools.combinations(range(6), size)
            if index in tests
        )
        for index in range(6)
    ]
    assert holm(p_values) == pytest.approx(expected)


def test_holm_leaves_out_what_is_not_tested():
    found = holm([0.01, math.nan, 0.02])
    assert found[0::2] == pytest.approx([0.02, 0.02])
    assert math.isnan(found[1])
    assert holm([]) == []
