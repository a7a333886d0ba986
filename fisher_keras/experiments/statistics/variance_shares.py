"""Shares of variance: how much of a quantity each setting of the trainings explains."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

TOGETHER = "together"


def variance_shares(
    values: Sequence[float], factors: Mapping[str, Sequence[Hashable]]
) -> dict[str, float]:
    r"""Returns the type II shares of the variance of a quantity.

    In the linear model of main effects, a level a free constant, the share of a factor is the sum
    of squares that it adds to all other factors, over the total sum of squares. Where factors are
    not independent of each other in the runs, shares do not add up to that of all together.

    Args:
        values: The quantity of each run, shape (n,); runs in which it is not finite are left out.
        factors: The level of each run by the factor's name, shape (n,) each.

    Returns:
        The share of each factor, and `TOGETHER`, that of all; NaN if all values are the same, or
        if the constants are so many that they fit any values.
    """
    values = np.asarray(values, float)
    known = np.isfinite(values)
    values = values[known]
    dummies = {
        name: _dummies([level for level, kept in zip(levels, known, strict=True) if kept])
        for name, levels in factors.items()
    }
    total, _ = _fit(values, [])
    left, num_constants = _fit(values, list(dummies.values()))
    if len(np.unique(values)) < 2 or num_constants == len(values):
        return dict.fromkeys([*factors, TOGETHER], np.nan)
    without = {
        name: _fit(values, [d for other, d in dummies.items() if other != name])[0]
        for name in factors
    }
    # More columns leave no more: below 0 there is rounding alone.
    shares = {name: max(0.0, (rest - left) / total) for name, rest in without.items()}
    return shares | {TOGETHER: 1 - left / total}


def _dummies(levels: Sequence[Hashable]) -> np.ndarray:
    """Returns an indicator column for each level, shape (n, number of levels)."""
    # Not sorted: the levels of one factor may be of kinds that have no common order.
    names = list(dict.fromkeys(levels))
    return np.array([[level == name for name in names] for level in levels], float)


def _fit(values: np.ndarray, columns: Sequence[np.ndarray]) -> tuple[float, int]:
    """Returns the sum of squares that a constant and the columns leave, and their rank."""
    # The indicators of a factor add up to the constant: the fit is not unique, what it leaves is.
    design = np.column_stack([np.ones(len(values)), *columns])
    coefficients, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    return float(np.sum((values - design @ coefficients) ** 2)), int(rank)
