r"""Kendall's $\tau_b$ within strata: only pairs of one stratum are compared.

In a pool in which several settings vary, a setting that moves the metric one way and the test
error the other hides what the metric tells of networks that share it (Simpson's paradox).
"""

import dataclasses
import itertools
from collections.abc import Hashable, Sequence

import numpy as np

from fisher_keras.experiments.statistics.rank_correlation import (
    UNKNOWN,
    Estimate,
    estimate_of,
    kendall_of_resamples,
    runs_and_resamples,
)

NUM_PERMUTATIONS = 10_000


@dataclasses.dataclass(frozen=True)
class StratifiedCorrelation:
    """A rank correlation within strata.

    Attributes:
        num_runs: Runs whose metric is a number, or infinite.
        num_strata: Strata of two such runs or more.
        kendall: The coefficient, with an interval of the resamples of `rank_correlation`.
        p_value: Share of permutations within the strata whose coefficient is as far from 0.
    """

    num_runs: int
    num_strata: int
    kendall: Estimate
    p_value: float


def stratified_kendall(
    metric: Sequence[float], error: Sequence[float], strata: Sequence[Hashable]
) -> StratifiedCorrelation:
    r"""Correlates a metric's order of runs with their test errors', within strata.

    $$\tau = \frac{\sum \mathrm{sgn}(\mu - \mu')\,\mathrm{sgn}(g - g')}
        {\sqrt{\sum \mathrm{sgn}^2(\mu - \mu') \sum \mathrm{sgn}^2(g - g')}}$$

    over the pairs of runs of the same stratum.

    Args:
        metric: $\mu$ of each run, shape (n,); runs with NaN are left out.
        error: The test error g of each run, shape (n,).
        strata: The stratum of each run, such as a tuple of settings, shape (n,).

    Returns:
        The correlation; NaN if no two runs of one stratum differ in both.
    """
    known = np.flatnonzero(~np.isnan(np.asarray(metric, float)))
    names = {stratum: code for code, stratum in enumerate(dict.fromkeys(strata))}
    codes = np.array([names[strata[run]] for run in known], int)
    metric, error = (np.asarray(values, float)[known] for values in (metric, error))
    pairs = (codes[:, None] == codes[None, :]).astype(float)
    num_strata = int(np.sum(np.bincount(codes) > 1)) if len(codes) else 0
    estimate, p_value = UNKNOWN, np.nan
    if num_strata:
        counts = runs_and_resamples(len(known))
        estimate = estimate_of(kendall_of_resamples(metric, error, counts, pairs))
    if not np.isnan(estimate.value):
        p_value = _p_value(metric, error, codes)
    return StratifiedCorrelation(len(known), num_strata, estimate, p_value)


def _p_value(metric: np.ndarray, error: np.ndarray, codes: np.ndarray) -> float:
    """Returns the two-sided p-value of permutations within strata, the given order among them."""
    rng = np.random.default_rng(0)
    sums = np.zeros(NUM_PERMUTATIONS + 1)
    for code in np.unique(codes):
        # Ranks, not values: the difference of two infinite ones would be undefined.
        orders, errors = (
            np.unique(values[codes == code], return_inverse=True)[1] for values in (metric, error)
        )
        permuted = np.tile(errors, (NUM_PERMUTATIONS + 1, 1))
        permuted[1:] = rng.permuted(permuted[1:], axis=1)
        for first, second in itertools.combinations(range(len(errors)), 2):
            agreement = np.sign(permuted[:, first] - permuted[:, second])
            sums += np.sign(orders[first] - orders[second]) * agreement
    # Ties stay as they are: the denominator of tau is the same for all permutations.
    return float(np.mean(np.abs(sums) >= abs(sums[0])))
