r"""Rank correlations of a metric and the test error once a third quantity is accounted for.

The partial coefficient of x and y given z is, for Kendall's $\tau_b$ and Spearman's $\rho$ alike,

$$r_{xy \cdot z} = \frac{r_{xy} - r_{xz} r_{yz}}{\sqrt{(1 - r_{xz}^2)(1 - r_{yz}^2)}}$$

and of several given quantities the same formula once for each, with coefficients given the others
(M. G. Kendall, "Partial rank correlation", Biometrika 1942). Spearman's is the correlation of what
is left of the ranks of x and y after a linear fit by those of z. Only the order of z counts: the
training loss and its logarithm are the same.
"""

import functools
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from fisher_keras.experiments.statistics.rank_correlation import (
    Estimate,
    OfResamples,
    RankCorrelation,
    estimate_of,
    kendall_of_resamples,
    known_values,
    runs_and_resamples,
    spearman_of_resamples,
)

# A coefficient this close to 1 or -1 leaves nothing of an order but rounding.
_ROUNDING = 1e-12


def partial_rank_correlation(
    metric: Sequence[float],
    error: Sequence[float],
    given: Sequence[float] | Mapping[str, Sequence[float]],
    units: Sequence[Hashable] | None = None,
) -> RankCorrelation:
    """Correlates a metric's order of runs with their test errors' order, given others' orders.

    Args:
        metric: The metric of each run, shape (n,).
        error: The test error of each run, shape (n,).
        given: The quantity that is accounted for, such as the training loss, shape (n,), or
            several by name. Runs in which one of all is NaN are left out.
        units: As of `rank_correlation`.

    Returns:
        The partial coefficients with intervals, of the resamples of `rank_correlation`; NaN where
        the order of a given quantity is that of the metric or the error, or all of one are the
        same.
    """
    columns = list(given.values()) if isinstance(given, Mapping) else [given]
    values, known = known_values(metric, error, *columns)
    counts = runs_and_resamples(known, units)
    return RankCorrelation(
        values.shape[1],
        _estimate(values, counts, kendall_of_resamples),
        _estimate(values, counts, spearman_of_resamples),
    )


def _estimate(values: np.ndarray, counts: np.ndarray, of_resamples: OfResamples) -> Estimate:
    @functools.cache
    def partial(first: int, second: int, num_given: int) -> np.ndarray:
        """Returns the coefficients of two rows given so many of the quantities."""
        if not num_given:
            return of_resamples(values[first], values[second], counts)
        last = num_given + 1  # The rows before are the metric, the error and the other quantities.
        together, first_given, second_given = (
            # Sorted, as the coefficient is the same either way and the cache knows one of them.
            partial(*sorted(rows), num_given - 1)
            for rows in ((first, second), (first, last), (second, last))
        )
        left = (1 - first_given**2) * (1 - second_given**2)
        # Negated, so that NaN is caught as well as what is too small.
        left[~(left > _ROUNDING)] = np.nan
        return (together - first_given * second_given) / np.sqrt(left)

    return estimate_of(partial(0, 1, len(values) - 2))
