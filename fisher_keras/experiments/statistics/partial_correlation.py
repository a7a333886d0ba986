r"""Rank correlations of a metric and the test error once a third quantity is accounted for.

The partial coefficient of x and y given z is, for Kendall's $\tau_b$ and Spearman's $\rho$ alike,

$$r_{xy \cdot z} = \frac{r_{xy} - r_{xz} r_{yz}}{\sqrt{(1 - r_{xz}^2)(1 - r_{yz}^2)}}$$

(M. G. Kendall, "Partial rank correlation", Biometrika 1942). Spearman's is the correlation of what
is left of the ranks of x and y after a linear fit by those of z. Only the order of z counts: the
training loss and its logarithm are the same.
"""

from collections.abc import Sequence

import numpy as np

from fisher_keras.experiments.statistics.rank_correlation import (
    Estimate,
    OfResamples,
    RankCorrelation,
    kendall_of_resamples,
    percentile_interval,
    resample_counts,
    spearman_of_resamples,
)

# A coefficient this close to 1 or -1 leaves nothing of an order but rounding.
_ROUNDING = 1e-12


def partial_rank_correlation(
    metric: Sequence[float], error: Sequence[float], given: Sequence[float]
) -> RankCorrelation:
    """Correlates a metric's order of runs with their test errors' order, given a third quantity's.

    Args:
        metric: The metric of each run, shape (n,).
        error: The test error of each run, shape (n,).
        given: What is accounted for, such as the training loss, shape (n,). Runs in which it or
            the metric is NaN are left out.

    Returns:
        The partial coefficients with intervals, of the resamples of `rank_correlation`; NaN where
        the order of the third quantity is that of the metric or the error, or all of one are the
        same.
    """
    metric, error, given = (np.asarray(values, float) for values in (metric, error, given))
    known = ~(np.isnan(metric) | np.isnan(given))
    values = metric[known], error[known], given[known]
    return RankCorrelation(
        int(known.sum()),
        _estimate(*values, kendall_of_resamples),
        _estimate(*values, spearman_of_resamples),
    )


def _estimate(
    metric: np.ndarray, error: np.ndarray, given: np.ndarray, of_resamples: OfResamples
) -> Estimate:
    num_runs = len(metric)
    if not num_runs:
        return Estimate(np.nan, np.nan, np.nan)
    # The runs themselves are the first of the resamples.
    counts = np.vstack([np.ones(num_runs), resample_counts(num_runs)])
    with_error = of_resamples(metric, error, counts)
    metric_given = of_resamples(metric, given, counts)
    error_given = of_resamples(error, given, counts)
    left = (1 - metric_given**2) * (1 - error_given**2)
    left[~(left > _ROUNDING)] = np.nan
    partial = (with_error - metric_given * error_given) / np.sqrt(left)
    if np.isnan(partial[0]):
        return Estimate(np.nan, np.nan, np.nan)
    return Estimate(float(partial[0]), *percentile_interval(partial[1:]))
