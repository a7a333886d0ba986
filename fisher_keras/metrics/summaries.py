"""Summaries of values over the trials of an evaluation."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fisher_keras.files import differences

# What decides which examples a trial samples, and of which logits its metrics are.
_OF_THE_SAMPLES = ("num_samples", "seed", "stratified", "unit", "data", "normalize_logits")


@dataclasses.dataclass(frozen=True)
class MetricSummary:
    """A metric over T trials.

    Attributes:
        mean: The estimate; for the log-determinant, the paper's gamma-hat.
        std: Standard deviation between the trials (T - 1 in the denominator). It is NaN for one
            trial, or if the value of a trial is infinite.
        standard_error: Standard error of the mean, std / sqrt(T).
    """

    mean: float
    std: float
    standard_error: float


def summarize(values: Sequence[float]) -> MetricSummary:
    """Returns mean, standard deviation and standard error of one metric over the trials."""
    values = np.asarray(values)
    # Where a trial is infinite, the deviation is inf - inf: NaN, as documented.
    with np.errstate(invalid="ignore"):
        std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return MetricSummary(float(np.mean(values)), std, std / math.sqrt(len(values)))


def summarize_differences(values: Sequence[float], others: Sequence[float]) -> MetricSummary:
    """Summarizes the differences of two sets of values over their common trials."""
    count = min(len(values), len(others))
    with np.errstate(invalid="ignore"):
        return summarize(np.subtract(values[:count], others[:count]))


def check_same_samples(evaluation: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raises a ValueError unless trial t of two evaluations has the same examples.

    Args:
        evaluation: All that the trials of one evaluation depend on.
        other: The same of the other evaluation.
    """
    mine, others = ({name: e.get(name) for name in _OF_THE_SAMPLES} for e in (evaluation, other))
    changed = differences(others, mine)
    if changed:
        raise ValueError(
            "Two evaluations can be compared trial by trial if they are of the same samples of "
            f"the same data: {'; '.join(changed)}. Evaluate both with the same arguments."
        )
