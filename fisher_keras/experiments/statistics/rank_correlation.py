r"""Rank correlations of a metric and the test error, with bootstrap intervals.

Kendall's $\tau_b$ and Spearman's $\rho$ are 1 for a metric that orders the networks exactly as
their test errors do, and -1 for the opposite order. Only the order counts: a log-determinant of
-inf is just the smallest value.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence

import numpy as np

OfResamples = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
NUM_RESAMPLES = 2000
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A coefficient with its bootstrap interval.

    Attributes:
        value: The coefficient of the runs, in [-1, 1]; NaN if all are tied.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


UNKNOWN = Estimate(np.nan, np.nan, np.nan)


@dataclasses.dataclass(frozen=True)
class RankCorrelation:
    """Rank correlations of a metric and the test error.

    Attributes:
        num_runs: The number of runs compared: those with numbers, which may be infinite.
        kendall: Kendall's tau-b.
        spearman: Spearman's rho.
    """

    num_runs: int
    kendall: Estimate
    spearman: Estimate


def estimate_cell(estimate: Estimate) -> str:
    """Formats a coefficient with its interval, if it has one, for a table."""
    text = coefficient_cell(estimate.value)
    if not np.isnan(estimate.low):
        text += f" [{coefficient_cell(estimate.low)}, {coefficient_cell(estimate.high)}]"
    return text


def coefficient_cell(value: float) -> str:
    """Formats a coefficient with two digits, NaN as a dash."""
    return "–" if np.isnan(value) else f"{value:.2f}"


def rank_correlation(
    metric: Sequence[float], error: Sequence[float], units: Sequence[Hashable] | None = None
) -> RankCorrelation:
    r"""Correlates a metric's order of runs with their test errors' order.

    The intervals are percentile intervals of a bootstrap that draws n of the n units: runs that
    are repeated with other seeds are no new settings. In a scenario of few values, each run is a
    unit, whatever its seed and its value of the scenario's variable. Drawing the runs of each
    value apart would keep the design of a scenario, drawing whole seeds what the runs of a seed
    have in common; but there are only 3 to 5 of them, and a run that is drawn twice is tied with
    itself where the order is least certain. Such intervals are too narrow: of nominally 95 %, they
    cover $\tau_b$ in 85 % and 78 % of simulated scenarios, and in the worst kind of scenario in 64
    % and 49 %. Those of all runs cover it in 96 % and 89 % (`benchmarks/bootstrap_coverage.py`).
    An order without an exception has an interval without width, however few the runs are.

    Args:
        metric: The metric of each run, shape (n,).
        error: The test error of each run, shape (n,). Runs in which one of both is NaN are left
            out.
        units: The unit of each run, shape (n,): runs of one unit are drawn together. By default,
            each run is one.

    Returns:
        The coefficients, with their intervals; NaN where all metrics or all errors are the same.
    """
    (metric, error), known = known_values(metric, error)
    counts = runs_and_resamples(known, units)
    return RankCorrelation(
        len(metric),
        estimate_of(kendall_of_resamples(metric, error, counts)),
        estimate_of(spearman_of_resamples(metric, error, counts)),
    )


def kendall_correlation(
    metric: Sequence[float], other: Sequence[float], units: Sequence[Hashable] | None = None
) -> Estimate:
    r"""Returns $\tau_b$ of two quantities of the same runs, as `rank_correlation` estimates it.

    Args:
        metric: One quantity of each run, shape (n,).
        other: The other quantity of each run, shape (n,). Runs in which one of both is NaN are
            left out.
        units: As of `rank_correlation`.

    Returns:
        The coefficient with its interval; NaN where all values of one of them are the same.
    """
    return rank_correlation(metric, other, units).kendall


def kendall_difference(
    metric: Sequence[float],
    other: Sequence[float],
    error: Sequence[float],
    units: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
) -> Estimate:
    r"""Returns how much larger a metric's $\tau_b$ with the test error is than another's.

    Args:
        metric: One metric of each run, shape (n,).
        other: The metric whose coefficient is subtracted, shape (n,).
        error: The test error of each run, shape (n,). Runs in which one of all is NaN are left
            out.
        units: As of `rank_correlation`.
        strata: The stratum of each run, shape (n,): only pairs of one are compared. By default,
            all are.

    Returns:
        The difference, with the interval of the same resamples for both coefficients; NaN where
        all metrics or all errors are the same.
    """
    (metric, other, error), known = known_values(metric, other, error)
    counts = runs_and_resamples(known, units)
    pairs = None if strata is None else same(codes_of(strata)[known])
    # The same resamples for both: what both metrics owe to the draw of the runs cancels.
    first, second = (
        kendall_of_resamples(values, error, counts, pairs) for values in (metric, other)
    )
    return estimate_of(first - second)


def known_values(*quantities: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns quantities of the same runs, a row each, without the runs in which one is NaN.

    Args:
        quantities: Each of shape (n,).

    Returns:
        The quantities of the m runs that are left, shape (k, m), and their places among the n,
        shape (m,).
    """
    values = np.array(quantities, float)
    known = np.flatnonzero(~np.isnan(values).any(axis=0))
    return values[:, known], known


def codes_of(names: Sequence[Hashable]) -> np.ndarray:
    """Returns a number for each name, shape (n,), 0 for the first and the same for the same."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], int)


def same(codes: np.ndarray) -> np.ndarray:
    """Returns 1 for each pair of equal numbers, [i, j] of i and j, else 0."""
    return (codes[:, None] == codes[None, :]).astype(float)


def granulated_kendall(
    metric: Sequence[float], error: Sequence[float], seeds: Sequence[int]
) -> float:
    r"""Returns the granulated coefficient of one variable, $\psi_i$ of Jiang et al. (2020).

    "Fantastic Generalization Measures and Where to Find Them", Section 2.2.1: Kendall's $\tau$
    over the networks that differ in nothing but variable i, averaged over everything else. Here
    the variable is the scenario's, and the seed is what else there is. Differences that only come
    from the seed do not count in it, and neither do those of other variables in the average
    $\Psi = \frac{1}{n} \sum_i \psi_i$ over the scenarios. As there, $\tau$ is the mean of
    $\mathrm{sgn}(\mu - \mu')\,\mathrm{sgn}(g - g')$ over all pairs: a tie counts as 0.

    Args:
        metric: $\mu$ of each run, shape (n,); runs with NaN are left out.
        error: The test error g, shape (n,). Jiang et al. take the generalization gap, which is
            the test error where the training error is 0.
        seeds: The seed of each run, shape (n,); each has one run for each value of the variable.

    Returns:
        The coefficient, in [-1, 1], over the seeds that have two runs or more; NaN without any.
    """
    metric, error, seeds = np.asarray(metric, float), np.asarray(error, float), np.asarray(seeds)
    known = ~np.isnan(metric)
    taus = []
    for seed in np.unique(seeds[known]):
        runs = known & (seeds == seed)
        num_runs = np.count_nonzero(runs)
        if num_runs > 1:
            products = signs(metric[runs]) * signs(error[runs])
            taus.append(products.sum() / (num_runs * (num_runs - 1)))
    return float(np.mean(taus)) if taus else float("nan")


def resample_counts(num_runs: int) -> np.ndarray:
    """Draws the bootstrap's resamples, the same ones for each metric.

    Args:
        num_runs: The number of runs, n, or of units.

    Returns:
        How often each is in each resample, shape (`NUM_RESAMPLES`, n), float64.
    """
    if not num_runs:
        return np.zeros((NUM_RESAMPLES, 0))
    rng = np.random.default_rng(0)
    # How often a run was drawn is all that a coefficient needs: sums over runs and pairs become
    # products of matrices.
    return rng.multinomial(num_runs, [1 / num_runs] * num_runs, NUM_RESAMPLES).astype(float)


def runs_and_resamples(
    known: Sequence[int], units: Sequence[Hashable] | None = None
) -> np.ndarray:
    """Draws resamples of units, below a row that has each run once: the runs themselves.

    Args:
        known: The places of m runs among all n, as `known_values` returns them.
        units: The unit of each run, shape (n,); None if each is one.

    Returns:
        How often each of the m runs is in each row, shape (1 + `NUM_RESAMPLES`, m), float64.
    """
    codes = codes_of(known if units is None else [units[run] for run in known])
    counts = resample_counts(len(np.unique(codes)))
    return np.vstack([np.ones(len(codes)), counts[:, codes]])


def estimate_of(coefficients: np.ndarray) -> Estimate:
    """Returns the estimate of a coefficient, given that of each row of `runs_and_resamples`."""
    if np.isnan(coefficients[0]):
        return UNKNOWN
    return Estimate(float(coefficients[0]), *percentile_interval(coefficients[1:]))


def kendall_of_resamples(
    metric: np.ndarray, error: np.ndarray, counts: np.ndarray, pairs: np.ndarray | None = None
) -> np.ndarray:
    """Returns Kendall's tau-b of many resamples at once.

    Args:
        metric: The metric of each run, shape (n,).
        error: The test error of each run, shape (n,).
        counts: How often each run is in each resample, shape (B, n).
        pairs: 1 for each pair of runs that is compared, else 0, shape (n, n); None for all.

    Returns:
        Shape (B,); NaN for resamples in which the metric or the error is the same in all runs.
    """
    metric_signs, error_signs = signs(metric), signs(error)
    if pairs is not None:
        metric_signs, error_signs = metric_signs * pairs, error_signs * pairs

    def over_pairs(matrix: np.ndarray) -> np.ndarray:
        # The sum of c_i c_j M_ij: a run drawn twice adds nothing for the pair with its copy, as
        # the diagonal of the signs is 0.
        return ((counts @ matrix) * counts).sum(axis=1)

    untied = over_pairs(metric_signs**2) * over_pairs(error_signs**2)
    return _divide(over_pairs(metric_signs * error_signs), np.sqrt(untied))


def spearman_of_resamples(metric: np.ndarray, error: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns Spearman's rho of many resamples at once; see `kendall_of_resamples`."""
    # How many runs are below a run, less those above: twice its rank, from the mean rank.
    metric_ranks, error_ranks = counts @ signs(metric).T, counts @ signs(error).T

    def over_runs(values: np.ndarray) -> np.ndarray:
        return (counts * values).sum(axis=1)

    variances = over_runs(metric_ranks**2) * over_runs(error_ranks**2)
    return _divide(over_runs(metric_ranks * error_ranks), np.sqrt(variances))


def percentile_interval(coefficients: np.ndarray) -> tuple[float, float]:
    """Returns the ends between which `LEVEL` of the coefficients that are defined lie."""
    low, high = np.nanquantile(coefficients, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def signs(values: np.ndarray) -> np.ndarray:
    """Returns the signs of all differences, [i, j] of i less j; also of infinite values."""
    # By comparing and not by subtracting: the difference of two infinite values is NaN.
    column, row = values[:, None], values[None, :]
    return (column > row).astype(float) - (column < row)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    undefined = np.full_like(numerator, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)
