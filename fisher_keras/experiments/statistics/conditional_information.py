r"""Conditional mutual information of a metric and the test error, given hyperparameters.

Y. Jiang, B. Neyshabur, H. Mobahi, D. Krishnan and S. Bengio, "Fantastic Generalization Measures
and Where to Find Them", ICLR 2020: the conditional independence test.
"""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from fisher_keras.experiments.statistics.rank_correlation import (
    UNKNOWN,
    Estimate,
    estimate_of,
    known_values,
    runs_and_resamples,
    signs,
)

MAX_CONDITIONS = 2
_NUM_RESAMPLES = 500  # Of those of `rank_correlation`: each takes all pairs for each set S.


def conditional_information(
    metric: Sequence[float],
    error: Sequence[float],
    hyperparameters: Mapping[str, Sequence[Any]],
    units: Sequence[Hashable] | None = None,
) -> Estimate:
    r"""Returns the conditional mutual information $\mathcal{K}(\mu)$ in the worst case.

    Of each pair of runs, $V_\mu$ and $V_g$ are the signs of the differences of their metrics and
    errors, and $U_S$ has both runs' values of the hyperparameters in S. Then

    $$\mathcal{K}(\mu) = \min_{|S| \le 2} \frac{I(V_\mu, V_g \mid U_S)}{H(V_g \mid U_S)},$$

    probabilities being shares of pairs. So it is 0 for a metric that only knows, say, the batch
    size, and 1 for one that orders the runs as the errors do, or the other way round. A tie is a
    sign of its own. As an estimate of information it is too high for few runs, the more so in the
    bootstrap's resamples: that of a random number tells how much.

    Args:
        metric: $\mu$ of each run, shape (n,); runs with NaN are left out.
        error: The test error g of each run, shape (n,).
        hyperparameters: The values of each hyperparameter, shape (n,), by its name.
        units: As of `rank_correlation`.

    Returns:
        The value, in [0, 1], with an interval of the resamples of `rank_correlation` (a run and
        its copy are no pair). Sets S that leave no doubt of $V_g$ do not count; NaN without any.
    """
    (metric, error), known = known_values(metric, error)
    num_runs = len(known)
    if num_runs < 2:
        return UNKNOWN
    # Each pair in both orders, so that the place of a run in the list tells nothing.
    first, second = np.nonzero(~np.eye(num_runs, dtype=bool))
    of_metric, of_error = (
        signs(values)[first, second].astype(int) + 1 for values in (metric, error)
    )
    counts = runs_and_resamples(known, units)[: 1 + _NUM_RESAMPLES]
    # A pair is in a resample as often as its first run times as often as its second.
    weights = counts[:, first] * counts[:, second]
    codes = {
        name: np.unique(np.asarray(values)[known], return_inverse=True)[1]
        for name, values in hyperparameters.items()
    }
    ratios = []
    for size in range(MAX_CONDITIONS + 1):
        for names in itertools.combinations(codes, size):
            conditions = [codes[name][runs] for name in names for runs in (first, second)]
            ratios.append(_ratio(of_metric, of_error, conditions, weights))
    ratios = np.array(ratios)
    # `nanmin` would warn of the columns that have no number at all.
    defined = ~np.isnan(ratios).all(axis=0)
    worst = np.full(len(counts), np.nan)
    worst[defined] = np.nanmin(ratios[:, defined], axis=0)
    return estimate_of(worst)


def _ratio(
    of_metric: np.ndarray, of_error: np.ndarray, conditions: Sequence[np.ndarray], weights: Any
) -> np.ndarray:
    """Returns I(V_mu, V_g | U) / H(V_g | U) for each row of weights of the pairs."""
    of_metric, of_error = [*conditions, of_metric], [*conditions, of_error]
    together = _entropy([*of_metric, of_error[-1]], weights)
    given = _entropy(conditions, weights)
    error_given = _entropy(of_error, weights) - given
    # I(m, g | U) = H(g | U) + H(m, U) - H(m, g, U), in which H(g | U) = H(g, U) - H(U).
    information = error_given + _entropy(of_metric, weights) - together
    undefined = np.full(len(weights), np.nan)
    # What rounding leaves of an entropy of 0 is no information.
    return np.divide(information, error_given, out=undefined, where=error_given > 1e-12)


def _entropy(variables: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Returns the joint entropy of some variables of the pairs, for each row of weights."""
    if not variables:
        return np.zeros(len(weights))
    _, cells = np.unique(np.stack(variables), axis=1, return_inverse=True)
    pairs = np.arange(len(cells))
    one_hot = scipy.sparse.csr_array((np.ones(len(cells)), (pairs, cells.ravel())))
    # Of a resample that is one run alone there are no pairs, and no entropy.
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    shares = weights @ one_hot / total
    # 0 ln 0 counts as 0: a resample need not have pairs in each of the cells.
    return -np.sum(shares * np.log(np.where(shares > 0, shares, 1)), axis=1)
