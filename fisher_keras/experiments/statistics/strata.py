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
    codes_of,
    estimate_of,
    kendall_of_resamples,
    known_values,
    runs_and_resamples,
    same,
)

NUM_PERMUTATIONS = 10_000


@dataclasses.dataclass(frozen=True)
class StratifiedCorrelation:
    """A rank correlation within strata.

    Attributes:
        num_runs: Runs whose metric is a number, or infinite.
        num_strata: Strata of two such runs or more.
        kendall: The coefficient, with an interval of the resamples of `rank_correlation`.
        p_value: Share of permutations within the strata whose coefficient is as far from 0: of the
            units of a stratum that have the same number of runs, or of the runs of its only unit.
    """

    num_runs: int
    num_strata: int
    kendall: Estimate
    p_value: float


def stratified_kendall(
    metric: Sequence[float],
    error: Sequence[float],
    strata: Sequence[Hashable],
    units: Sequence[Hashable] | None = None,
) -> StratifiedCorrelation:
    r"""Correlates a metric's order of runs with their test errors', within strata.

    $$\tau = \frac{\sum \mathrm{sgn}(\mu - \mu')\,\mathrm{sgn}(g - g')}
        {\sqrt{\sum \mathrm{sgn}^2(\mu - \mu') \sum \mathrm{sgn}^2(g - g')}}$$

    over the pairs of runs of the same stratum.

    Args:
        metric: $\mu$ of each run, shape (n,); runs with NaN are left out.
        error: The test error g of each run, shape (n,).
        strata: The stratum of each run, such as a tuple of settings, shape (n,).
        units: The unit of each run, shape (n,): runs that are repeated with other seeds are drawn
            and permuted together. By default, each run is one.

    Returns:
        The correlation; NaN if no two runs of one stratum differ in both.
    """
    (metric, error), known = known_values(metric, error)
    codes = codes_of([strata[run] for run in known])
    num_strata = int(np.sum(np.bincount(codes) > 1)) if len(codes) else 0
    estimate, p_value = UNKNOWN, np.nan
    if num_strata:
        units = known if units is None else [units[run] for run in known]
        counts = runs_and_resamples(range(len(known)), units)
        estimate = estimate_of(kendall_of_resamples(metric, error, counts, same(codes)))
    if not np.isnan(estimate.value):
        p_value = _p_value(metric, error, codes, codes_of(units))
    return StratifiedCorrelation(len(known), num_strata, estimate, p_value)


def _p_value(metric: np.ndarray, error: np.ndarray, codes: np.ndarray, units: np.ndarray) -> float:
    """Returns the two-sided p-value of permutations within strata, the given order among them."""
    rng = np.random.default_rng(0)
    sums = np.zeros(NUM_PERMUTATIONS + 1)
    for code in np.unique(codes):
        # Ranks, not values: the difference of two infinite ones would be undefined.
        orders, errors = (
            np.unique(values[codes == code], return_inverse=True)[1] for values in (metric, error)
        )
        permuted = errors[_permutations(units[codes == code], rng)]
        for first, second in itertools.combinations(range(len(errors)), 2):
            agreement = np.sign(permuted[:, first] - permuted[:, second])
            sums += np.sign(orders[first] - orders[second]) * agreement
    # Ties stay as they are: the denominator of tau is the same for all permutations.
    return float(np.mean(np.abs(sums) >= abs(sums[0])))


def _permutations(units: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns orders of the runs of a stratum, the given one first, shape (1 + P, n)."""
    names = np.unique(units)
    blocks = [np.flatnonzero(units == name) for name in names]
    if len(blocks) == 1:
        blocks = list(blocks[0][:, None])
    orders = np.tile(np.arange(len(units)), (NUM_PERMUTATIONS + 1, 1))
    for size in {len(block) for block in blocks}:
        places = np.array([block for block in blocks if len(block) == size])
        shuffled = np.tile(np.arange(len(places)), (NUM_PERMUTATIONS, 1))
        rng.permuted(shuffled, axis=1, out=shuffled)
        orders[1:, places.ravel()] = places[shuffled].reshape(NUM_PERMUTATIONS, -1)
    return orders
