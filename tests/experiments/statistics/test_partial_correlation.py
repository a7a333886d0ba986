"""Partial rank correlations against their definitions: residuals of ranks, tables of pairs."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from fisher_keras.experiments.statistics.partial_correlation import partial_rank_correlation


def kendalls_table(x, y, z):
    """Kendall (1942): the association, over pairs, of agreeing with z in x and in y."""
    table = np.zeros((2, 2))
    for i, j in itertools.combinations(range(len(x)), 2):
        order = np.sign(z[i] - z[j])
        table[int(np.sign(x[i] - x[j]) == order), int(np.sign(y[i] - y[j]) == order)] += 1
    (a, b), (c, d) = table
    return (a * d - b * c) / math.sqrt((a + b) * (c + d) * (a + c) * (b + d))


def residuals_of_ranks(x, y, z):
    """Pearson's correlation of what a line through the ranks of z leaves of those of x and y."""
    x, y, z = map(scipy.stats.rankdata, (x, y, z))
    design = np.stack([np.ones(len(z)), z], axis=1)
    left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x, y)]
    return np.corrcoef(*left)[0, 1]


def runs(seed=0, count=12, ties=False):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=count)
    x, y = z + rng.normal(size=(2, count))
    return tuple(np.round(v) if ties else v for v in (x, y, np.exp(z)))


@pytest.mark.parametrize("seed", range(3))
def test_without_ties(seed):
    values = runs(seed)
    found = partial_rank_correlation(*values)
    assert found.num_runs == 12
    assert found.kendall.value == pytest.approx(kendalls_table(*values))
    assert found.spearman.value == pytest.approx(residuals_of_ranks(*values))


def test_with_ties():
    x, y, z = values = runs(ties=True)
    found = partial_rank_correlation(*values)
    tau = scipy.stats.kendalltau
    xy, xz, yz = (tau(*pair).statistic for pair in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert found.kendall.value == pytest.approx(expected)
    assert found.spearman.value == pytest.approx(residuals_of_ranks(*values))


def test_intervals_are_those_of_a_bootstrap_done_one_by_one():
    values = np.array(runs(count=30))
    rng = np.random.default_rng(1)
    slow = [residuals_of_ranks(*values[:, rng.integers(30, size=30)]) for _ in range(1500)]
    found = partial_rank_correlation(*values).spearman
    np.testing.assert_allclose(
        [found.low, found.high], np.percentile(slow, [2.5, 97.5]), atol=0.07
    )


def test_only_the_order_of_the_loss_counts():
    x, y, z = runs()
    assert partial_rank_correlation(x, y, z) == partial_rank_correlation(x, y, np.log(z))


def test_what_the_loss_explains_is_gone():
    """A metric that goes with the error in no other way than by the loss."""
    rng = np.random.default_rng(2)
    z = rng.normal(size=400)
    x, y = z + 0.3 * rng.normal(size=(2, 400))
    found = partial_rank_correlation(x, y, z)
    assert scipy.stats.kendalltau(x, y).statistic > 0.6
    assert found.spearman.low < 0 < found.spearman.high


@pytest.mark.parametrize("which", [0, 1])
def test_given_the_metric_or_the_error_itself_nothing_is_left(which):
    values = runs()
    found = partial_rank_correlation(*values[:2], values[which])
    assert np.isnan([found.kendall.value, found.kendall.low, found.spearman.value]).all()


def test_unknown_losses_and_infinite_metrics():
    x, y, z = runs()
    x[0], z[3] = -np.inf, np.nan
    kept = np.arange(12) != 3
    lowest = x[kept].copy()
    lowest[0] = -99.0
    found = partial_rank_correlation(x, y, z)
    assert found == partial_rank_correlation(lowest, y[kept], z[kept])
    assert math.isnan(partial_rank_correlation(x, y, np.full(12, np.nan)).kendall.value)


@pytest.mark.parametrize("ties", [False, True])
def test_given_several_quantities(ties):
    """Against residuals of ranks, and the inverse of the matrix of all tau-b."""
    rng = np.random.default_rng(7)
    given = {name: rng.normal(size=40) for name in "abc"}
    x, y = sum(given.values()) + rng.normal(size=(2, 40))
    if ties:
        given, x, y = {name: np.round(v) for name, v in given.items()}, np.round(x), np.round(y)
    found = partial_rank_correlation(x, y, given)
    ranks = [scipy.stats.rankdata(values) for values in (x, y, *given.values())]
    design = np.stack([np.ones(40), *ranks[2:]], axis=1)
    left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in ranks[:2]]
    assert found.spearman.value == pytest.approx(np.corrcoef(*left)[0, 1])
    taus = np.array([[scipy.stats.kendalltau(a, b).statistic for a in ranks] for b in ranks])
    inverse = np.linalg.inv(taus)
    expected = -inverse[0, 1] / math.sqrt(inverse[0, 0] * inverse[1, 1])
    assert found.kendall.value == pytest.approx(expected)
    assert partial_rank_correlation(x, y, {"a": given["a"]}) == partial_rank_correlation(
        x, y, given["a"]
    )
