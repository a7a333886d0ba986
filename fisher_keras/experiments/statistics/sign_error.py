r"""Robust sign error: frequency of wrong orders of two networks, in the worst case.

G. K. Dziugaite, A. Drouin, B. Neal, N. Rajkumar, E. Caballero, L. Wang, I. Mitliagkas and
D. M. Roy, "In Search of Robust Measures of Generalization", NeurIPS 2020.
"""

import dataclasses
import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from fisher_keras.experiments.statistics.rank_correlation import (
    UNKNOWN,
    Estimate,
    estimate_of,
    known_values,
    runs_and_resamples,
    signs,
)


@dataclasses.dataclass(frozen=True)
class SignError:
    """The sign-errors of a metric over environments; 1/2 is chance.

    Attributes:
        num_environments: The environments in which test errors are known well enough to count.
        mean: Over the environments, with its interval.
        worst: The largest, with its interval: the robust sign-error.
    """

    num_environments: int
    mean: Estimate
    worst: Estimate


def robust_sign_error(
    metric: Sequence[float],
    error: Sequence[float],
    hyperparameters: Mapping[str, Sequence[Any]],
    num_test_images: int,
    units: Sequence[Hashable] | None = None,
) -> SignError:
    r"""Returns the sign-errors over pairs of settings that differ in one hyperparameter.

    Such a pair is an environment e: an intervention on one hyperparameter. In it, the error is

    $$\ell_e = \mathrm{E}\left[\tfrac{1}{2}
        \left(1 - \mathrm{sgn}(\mu - \mu')\,\mathrm{sgn}(g - g')\right)\right]$$

    over all pairs of a run of one setting and a run of the other, weighted by
    $\max(0, 1 - 2 e^{-n \Delta^2 / 2})^2$, $\Delta = |g - g'|$: by Hoeffding's inequality, the
    probability at least that both test errors, each of n images, are closer to the truth than
    half their difference. Differences that n images cannot tell apart so do not count. (The
    authors, who have ten seeds a setting, also leave out environments with few pairs.)

    Args:
        metric: $\mu$ of each run, shape (n,); runs with NaN are left out.
        error: The test error g of each run in percent, shape (n,).
        hyperparameters: The values of each hyperparameter, shape (n,), by its name. Runs that
            have the same values of all are of one setting.
        num_test_images: n, how many images each test error is of.
        units: As of `rank_correlation`.

    Returns:
        Mean and worst, with intervals of the resamples of `rank_correlation`; NaN without an
        environment.
    """
    (metric, error), known = known_values(metric, error)
    nothing = SignError(0, *[UNKNOWN] * 2)
    if not len(known):
        return nothing
    settings = [tuple(values[run] for values in hyperparameters.values()) for run in known]
    wrong = (1 - signs(metric) * signs(error)) / 2
    # As a share of images, which Hoeffding's inequality is about: errors come in percent.
    half_width = np.abs(error[:, None] - error[None, :]) / 100 / 2
    certain = np.maximum(0, 1 - 2 * np.exp(-2 * num_test_images * half_width**2)) ** 2
    counts = runs_and_resamples(known, units)
    errors = []
    for one, other in itertools.combinations(dict.fromkeys(settings), 2):
        if sum(a != b for a, b in zip(one, other, strict=True)) == 1:
            rows, columns = (
                [run for run, found in enumerate(settings) if found == setting]
                for setting in (one, other)
            )
            # The sum of c_i c_j W_ij over the pairs of both settings, for all rows c at once.
            total, weighted = (
                ((counts[:, rows] @ of_pairs[np.ix_(rows, columns)]) * counts[:, columns]).sum(1)
                for of_pairs in (certain, certain * wrong)
            )
            undefined = np.full(len(counts), np.nan)
            errors.append(np.divide(weighted, total, out=undefined, where=total > 0))
    # An environment counts in the resamples if it does in the runs.
    errors = np.array([found for found in errors if not np.isnan(found[0])])
    if not len(errors):
        return nothing
    # Resamples without any environment have no mean. The first column, of the runs themselves,
    # always stays: each row that is left has a number there.
    errors = errors[:, ~np.isnan(errors).all(axis=0)]
    mean, worst = (estimate_of(over(errors, axis=0)) for over in (np.nanmean, np.nanmax))
    return SignError(len(errors), mean, worst)
