"""Tests by permutation of the levels of a scenario's variable, and Holm's correction."""

import itertools
import math
from collections.abc import Hashable, Sequence

import numpy as np

from fisher_keras.experiments.statistics.rank_correlation import signs

_MAX_EXACT = 5040  # Permutations, of 7 levels.


def level_permutation_p_value(
    metric: Sequence[float], error: Sequence[float], levels: Sequence[Hashable]
) -> float:
    r"""Returns the p-value of a rank correlation over the levels of one variable.

    The runs of a level are not independent: what the level does to metric and error, all of them
    share. So the levels are permuted and not the runs: each level's test errors, seed by seed, go
    to another level. With k levels there are k! orders, and no p-value is below 1/k!.

    Args:
        metric: The metric of each run, shape (n,); in a level, in the order of the seeds.
        error: The test error of each run, shape (n,).
        levels: The level of each run, shape (n,); all levels have the same seeds.

    Returns:
        The share of all orders (of 5,040 random ones beyond 7 levels) in which Kendall's sum over
        pairs of different levels is at least as far from 0, the given order among them. NaN where
        levels have different numbers of runs or a metric is NaN, or all metrics or errors are the
        same.
    """
    metric, error = np.asarray(metric, float), np.asarray(error, float)
    # Whole blocks are moved, which is possible only where all are of one size.
    names = list(dict.fromkeys(levels))
    rows = [[run for run, level in enumerate(levels) if level == name] for name in names]
    if np.isnan(metric).any() or len({len(row) for row in rows}) != 1:
        return math.nan
    runs = np.array(rows)
    # From here on the runs lie in blocks, level after level: a place tells its level.
    level = np.arange(runs.size) // runs.shape[1]
    # What the runs of one level have in common with each other is the same in all orders.
    of_metric = signs(metric[runs.ravel()]) * (level[:, None] != level[None, :])
    of_error = signs(error[runs.ravel()])
    if not (of_metric.any() and of_error.any()):
        return math.nan
    places = np.arange(runs.size).reshape(runs.shape)

    def statistic(order: Sequence[int]) -> float:
        permuted = places[list(order)].ravel()
        return abs(np.sum(of_metric * of_error[np.ix_(permuted, permuted)]))

    observed = statistic(range(len(names)))
    found = np.array([statistic(order) for order in _orders(len(names))])
    # All are sums of whole numbers: equal ones are equal to the last bit, without a tolerance.
    return float(np.mean(found >= observed))


def _orders(count: int) -> list[Sequence[int]]:
    """Returns the orders of so many levels, or the given one and random ones."""
    if math.factorial(count) <= _MAX_EXACT:
        return list(itertools.permutations(range(count)))
    rng = np.random.default_rng(0)
    return [range(count), *(rng.permutation(count) for _ in range(_MAX_EXACT - 1))]


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values adjusted for their number by Holm's step-down method (1979).

    Args:
        p_values: Of all tests of a table; a test with NaN does not count.

    Returns:
        The adjusted p-values, in the same order; NaN stays.
    """
    p_values = np.asarray(p_values, float)
    adjusted = np.full(len(p_values), np.nan)
    order = [test for test in np.argsort(p_values, kind="stable") if not np.isnan(p_values[test])]
    largest = 0.0
    for place, test in enumerate(order):
        # Not below the value before: a test can be significant only if all smaller p-values are.
        largest = max(largest, min(1.0, (len(order) - place) * p_values[test]))
        adjusted[test] = largest
    return adjusted.tolist()
