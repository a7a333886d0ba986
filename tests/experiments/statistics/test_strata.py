"""Rank correlations within strata against their definition, pair by pair."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from fisher_keras.experiments.statistics.strata import stratified_kendall


def slow_tau(x, y, strata):
    """Tau-b over the pairs of one stratum, written out."""
    agreeing = untied_x = untied_y = 0
    for i, j in itertools.combinations(range(len(x)), 2):
        if strata[i] == strata[j]:
            a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
            agreeing, untied_x, untied_y = agreeing + a * b, untied_x + a * a, untied_y + b * b
    return agreeing / math.sqrt(untied_x * untied_y)


def runs(seed=0, count=30):
    """In each stratum x goes with y, and over the strata the other way round."""
    rng = np.random.default_rng(seed)
    strata = rng.integers(3, size=count)
    x = np.round(rng.normal(size=count), 1)
    return x + 5 * strata, np.round(x + rng.normal(size=count) - 5 * strata, 1), strata


def test_the_coefficient_is_that_of_pairs_of_one_stratum():
    x, y, strata = runs()
    found = stratified_kendall(x, y, [("a", int(stratum)) for stratum in strata])
    assert found.kendall.value == pytest.approx(slow_tau(x, y, strata))
    assert found.kendall.value > 0.2 > -0.3 > scipy.stats.kendalltau(x, y).statistic
    assert (found.num_runs, found.num_strata) == (30, 3)


def test_one_stratum_is_no_stratum():
    x, y, _ = runs()
    found = stratified_kendall(x, y, [0] * 30)
    assert found.kendall.value == pytest.approx(scipy.stats.kendalltau(x, y).statistic)


def test_the_interval_is_that_of_a_bootstrap_done_one_by_one():
    x, y, strata = runs()
    rng = np.random.default_rng(1)
    slow = []
    for _ in range(600):
        rows = rng.integers(30, size=30)
        slow.append(slow_tau(x[rows], y[rows], strata[rows]))
    found = stratified_kendall(x, y, strata.tolist()).kendall
    np.testing.assert_allclose(
        [found.low, found.high], np.percentile(slow, [2.5, 97.5]), atol=0.07
    )


def test_the_p_value_counts_the_permutations_within_strata():
    """4! 3! = 144 orders, of which scipy knows those of one stratum alone."""
    x, y = [1.0, 2.0, 3.0, 4.0, 9.0, 8.0, 7.0], [1.0, 3.0, 2.0, 4.0, 1.0, 2.0, 2.5]
    strata = [0] * 4 + [1] * 3
    exact = []
    for first in itertools.permutations(range(4)):
        for second in itertools.permutations((4, 5, 6)):
            exact.append(slow_tau(x, np.array(y)[[*first, *second]], strata))
    observed = slow_tau(x, y, strata)
    share = np.mean(np.abs(exact) >= abs(observed) - 1e-12)
    assert stratified_kendall(x, y, strata).p_value == pytest.approx(share, abs=0.02)
    first = stratified_kendall(x[:4], y[:4], strata[:4]).p_value
    assert first == pytest.approx(scipy.stats.kendalltau(x[:4], y[:4]).pvalue, abs=0.02)


def test_runs_without_a_pair():
    found = stratified_kendall([1.0, 2.0, np.nan], [1.0, 2.0, 3.0], ["a", "b", "a"])
    assert (found.num_runs, found.num_strata) == (2, 0)
    assert math.isnan(found.kendall.value)
    assert math.isnan(found.p_value)
    assert math.isnan(stratified_kendall([1.0, 1.0], [1.0, 2.0], ["a", "a"]).kendall.value)
    assert stratified_kendall([np.nan], [1.0], ["a"]).num_runs == 0


def repeated(count=6, seed=3):
    """Settings with three seeds each, in two strata: both quantities follow the settings alone."""
    rng = np.random.default_rng(seed)
    units = np.repeat(np.arange(count), 3)
    x, y = (rng.normal(size=count)[units] + 0.01 * rng.normal(size=3 * count) for _ in range(2))
    return x, y, (units // (count // 2)).tolist(), units.tolist()


def test_repeats_of_a_setting_are_exchanged_together():
    x, y, strata, units = repeated()
    blocks = y.reshape(6, 3)
    exact = [
        slow_tau(x, blocks[[*first, *second]].ravel(), strata)
        for first in itertools.permutations(range(3))
        for second in itertools.permutations(range(3, 6))
    ]
    share = np.mean(np.abs(exact) >= abs(slow_tau(x, y, strata)) - 1e-12)
    found = stratified_kendall(x, y, strata, units)
    assert found.p_value == pytest.approx(share, abs=0.02)
    # As if repeats were new settings, chance would look like more.
    assert stratified_kendall(x, y, strata).p_value < found.p_value / 2


def test_settings_of_other_numbers_of_repeats_are_not_exchanged():
    """One of two settings lacks a seed: each order but the given one would tear one apart."""
    x, y = np.arange(5.0), np.arange(5.0)
    assert stratified_kendall(x, y, [0] * 5, [0, 0, 0, 1, 1]).p_value == 1


def test_the_repeats_of_the_only_setting_of_a_stratum_are_exchanged():
    x, y, _, units = repeated()
    found = stratified_kendall(x, y, units, units)
    assert (found.num_strata, found.kendall.value) == (6, pytest.approx(slow_tau(x, y, units)))
    assert found.p_value == stratified_kendall(x, y, units).p_value
    # A resample has all three repeats of a setting or none.
    assert found.kendall != stratified_kendall(x, y, units).kendall


def test_settings_are_drawn_with_all_their_repeats():
    x, y, strata, units = map(np.array, repeated(10))
    rng = np.random.default_rng(1)
    slow = []
    for _ in range(600):
        rows = (3 * rng.integers(10, size=10)[:, None] + np.arange(3)).ravel()
        slow.append(slow_tau(x[rows], y[rows], strata[rows]))
    found = stratified_kendall(x, y, strata.tolist(), units.tolist()).kendall
    expected = np.nanpercentile(slow, [2.5, 97.5])
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.1)
    single = stratified_kendall(x, y, strata.tolist()).kendall
    assert single.high - single.low < 0.8 * (found.high - found.low)
