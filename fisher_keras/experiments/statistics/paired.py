"""The mean of paired differences: of two methods from the same seeds, for example."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import scipy.stats


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """A mean difference with Student's t interval.

    Attributes:
        num_pairs: n.
        mean: Of the first less the second.
        low: Lower end of the interval.
        high: Upper end.
    """

    num_pairs: int
    mean: float
    low: float
    high: float

    @property
    def is_within_noise(self) -> bool:
        """Whether the interval has 0 in it."""
        return self.low <= 0 <= self.high


def paired_difference(
    first: Sequence[float], second: Sequence[float], level: float = 0.95
) -> PairedDifference:
    """Estimates the mean of the differences of pairs.

    Args:
        first: Shape (n,), n of at least 2.
        second: Shape (n,), in the order of the first.
        level: How often such an interval covers the mean, if the differences are normal.

    Returns:
        The mean of first - second, with its interval.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean = statistics.fmean(differences)
    standard_error = statistics.stdev(differences) / math.sqrt(len(differences))
    reach = scipy.stats.t.ppf((1 + level) / 2, len(differences) - 1) * standard_error
    return PairedDifference(len(differences), mean, float(mean - reach), float(mean + reach))
