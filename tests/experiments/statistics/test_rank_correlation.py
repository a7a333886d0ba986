"""Rank correlations against their definitions, pair by pair, and values found by hand."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.stats

from fisher_keras.experiments.statistics.rank_correlation import (
    granulated_kendall,
    kendall_correlation,
    kendall_difference,
    kendall_of_resamples,
    rank_correlation,
    resample_counts,
    spearman_of_resamples,
)
from fisher_keras.experiments.statistics.strata import stratified_kendall


def slow_kendall(x, y):
    """Tau-b by its definition: concordant less discordant pairs, over the pairs without ties."""
    concordant = discordant = untied_x = untied_y = 0
    for (a, b), (c, d) in itertools.combinations(zip(x, y, strict=True), 2):
        untied_x += a != c
        untied_y += b != d
        concordant += (a < c and b < d) or (a > c and b > d)
        discordant += (a < c and b > d) or (a > c and b < d)
    untied = math.sqrt(untied_x * untied_y)
    return (concordant - discordant) / untied if untied else math.nan


def slow_spearman(x, y):
    """Pearson's correlation of the ranks, ties having the mean of theirs."""
    ranks = [
        [
            sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2
            for value in values
        ]
        for values in (x, y)
    ]
    if min(len(set(r)) for r in ranks) < 2:
        return math.nan
    return np.corrcoef(*ranks)[0, 1]


@pytest.fixture
def runs():
    rng = np.random.default_rng(5)
    metric = np.round(rng.normal(size=14), 1)
    error = np.round(metric + rng.normal(size=14), 1)
    metric[[2, 7]] = -np.inf  # Singular: tied with each other, below all others.
    error[3] = error[4]
    return metric, error


@pytest.mark.parametrize(
    ("fast", "slow"),
    [(kendall_of_resamples, slow_kendall), (spearman_of_resamples, slow_spearman)],
)
def test_coefficients_of_resamples_are_those_of_the_runs_written_out(runs, fast, slow):
    metric, error = runs
    counts = np.random.default_rng(0).multinomial(14, [1 / 14] * 14, 20)
    counts[0] = 0
    counts[0, 5] = 14  # One run alone: undefined.
    expected = [slow(np.repeat(metric, c), np.repeat(error, c)) for c in counts]
    np.testing.assert_allclose(fast(metric, error, counts.astype(float)), expected, atol=1e-12)
    assert math.isnan(expected[0])


def test_coefficients_of_the_runs(runs):
    result = rank_correlation(*runs)
    assert result.num_runs == 14
    assert result.kendall.value == pytest.approx(slow_kendall(*runs))
    assert result.spearman.value == pytest.approx(slow_spearman(*runs))


def test_one_exchanged_pair():
    result = rank_correlation([1, 2, 3, 4], [10, 20, 40, 30])
    assert result.kendall.value == pytest.approx((5 - 1) / 6)
    assert result.spearman.value == pytest.approx(1 - 6 * 2 / (4 * 15))


@pytest.mark.parametrize("sign", [1, -1])
def test_an_order_without_exception(sign):
    result = rank_correlation([1, 2, 3, 4, 5], [sign * value for value in (1, 4, 9, 16, 25)])
    for estimate in (result.kendall, result.spearman):
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((sign,) * 3)


def test_unknown_metrics_are_left_out():
    result = rank_correlation([1, math.nan, 2, 3], [1, 99, 2, 3])
    assert result.num_runs == 3
    assert result.kendall.value == pytest.approx(1)
    # Also where the other quantity, such as the training loss, is what is not known.
    assert kendall_correlation([1, 99, 2, 3], [1, math.nan, 2, 3]) == result.kendall


@pytest.mark.parametrize("metric", [[2, 2, 2], [math.nan] * 3, [1, math.nan, math.nan]])
def test_without_an_order_it_is_undefined(metric):
    result = rank_correlation(metric, [1, 2, 3])
    for estimate in (result.kendall, result.spearman):
        assert np.isnan([estimate.value, estimate.low, estimate.high]).all()


def test_intervals_are_those_of_a_bootstrap_done_one_by_one(runs):
    metric, error = runs
    rng = np.random.default_rng(1)
    slow = {"kendall": [], "spearman": []}
    for _ in range(1500):
        drawn = rng.integers(len(metric), size=len(metric))
        slow["kendall"].append(scipy.stats.kendalltau(metric[drawn], error[drawn]).statistic)
        slow["spearman"].append(scipy.stats.spearmanr(metric[drawn], error[drawn]).statistic)
    result = rank_correlation(metric, error)
    for name, values in slow.items():
        estimate = getattr(result, name)
        expected = np.percentile(values, [2.5, 97.5])
        np.testing.assert_allclose([estimate.low, estimate.high], expected, atol=0.05)
    assert rank_correlation(metric, error) == result


def test_resamples_draw_as_many_runs_as_there_are():
    counts = resample_counts(7)
    assert set(counts.sum(axis=1)) == {7}
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.1)


def test_granulated_by_hand():
    seeds = [0, 0, 0, 1, 1, 2, 2, 2, 3]
    metric = [1, 2, 3, 8, 9, 5, 5, 6, 0]
    error = [1, 3, 2, 4, 5, 1, 2, 3, 7]
    # Seed 0: two pairs agree and one does not. Seed 1: its one pair agrees. Seed 2: two agree and
    # one is tied. Seed 3 has no pair.
    assert granulated_kendall(metric, error, seeds) == pytest.approx((1 / 3 + 1 + 2 / 3) / 3)


def test_granulated_does_not_count_what_comes_from_the_seed():
    value, seed = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
    metric, error = value + 100 * seed, value - 100 * seed
    assert granulated_kendall(metric, error, seed) == 1
    assert rank_correlation(metric, error).kendall.value < 0


def test_granulated_knows_infinite_and_unknown_metrics():
    metric = [-math.inf, -math.inf, 1, math.nan]
    assert granulated_kendall(metric, [1, 2, 3, 4], [0, 0, 0, 0]) == pytest.approx(2 / 3)
    assert math.isnan(granulated_kendall([1, 2], [1, 2], [0, 1]))


def test_the_difference_of_two_metrics_is_of_the_same_resamples():
    rng = np.random.default_rng(6)
    error = rng.normal(size=25)
    metric, other = error + 0.5 * rng.normal(size=25), error + rng.normal(size=25)
    found = kendall_difference(metric, other, error)
    tau = [scipy.stats.kendalltau(values, error).statistic for values in (metric, other)]
    assert found.value == pytest.approx(tau[0] - tau[1])
    slow = []
    for _ in range(600):
        rows = rng.integers(25, size=25)
        slow.append(
            slow_kendall(metric[rows], error[rows]) - slow_kendall(other[rows], error[rows])
        )
    np.testing.assert_allclose(
        [found.low, found.high], np.percentile(slow, [2.5, 97.5]), atol=0.07
    )


def test_a_metric_is_no_better_than_itself():
    values = np.arange(9.0)
    same = kendall_difference(values**2, values, values[::-1])
    assert (same.value, same.low, same.high) == (0, 0, 0)
    values[3] = np.nan
    lacking = kendall_difference(np.arange(9.0), values, np.arange(9.0))
    assert lacking.value == 0
    assert math.isnan(kendall_difference(values, np.ones(9), np.arange(9.0)).value)


def test_repeats_of_a_setting_are_drawn_together():
    """Three copies of each run say no more than one: the estimates are those of the runs alone."""
    rng = np.random.default_rng(8)
    error = rng.normal(size=12)
    metric, other = (error + rng.normal(size=12) for _ in range(2))
    units = [f"setting {unit}" for unit in range(12) for _ in range(3)]
    copies = [np.repeat(values, 3) for values in (metric, other, error)]
    assert rank_correlation(copies[0], copies[2], units) == dataclasses.replace(
        rank_correlation(metric, error), num_runs=36
    )
    assert kendall_difference(*copies, units) == kendall_difference(metric, other, error)
    alone = rank_correlation(copies[0], copies[2]).kendall
    together = rank_correlation(copies[0], copies[2], units).kendall
    assert alone.high - alone.low < 0.8 * (together.high - together.low)


def test_the_difference_within_strata_is_of_pairs_of_one_stratum():
    rng = np.random.default_rng(9)
    metric, other, error = rng.normal(size=(3, 20))
    other[4] = np.nan
    strata = rng.integers(3, size=20).tolist()
    found = kendall_difference(metric, other, error, strata=strata)
    known = ~np.isnan(other)
    kept = [stratum for stratum, is_known in zip(strata, known, strict=True) if is_known]
    taus = [
        stratified_kendall(values[known], error[known], kept).kendall for values in (metric, other)
    ]
    assert found.value == pytest.approx(taus[0].value - taus[1].value)
    assert found.low < taus[0].value - taus[1].value < found.high
