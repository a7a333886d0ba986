"""The mean of paired differences, as of two methods trained from the same seeds."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np
import scipy.stats


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """A mean difference with Student's t interval.

    Attributes:
        num_pairs: The number of pairs, n.
        mean: The mean of first - second.
        low: Lower end of the interval.
        high: Upper end.
    """

    num_pairs: int
    mean: float
    low: float
    high: float

    @property
    def is_within_noise(self) -> bool:
        """True if the interval has 0 in it, or is not known."""
        return not (self.low > 0 or self.high < 0)


def paired_difference(
    first: Sequence[float], second: Sequence[float], level: float = 0.95
) -> PairedDifference:
    """Estimates the mean of the differences of pairs.

    Args:
        first: A value of each pair, shape (n,), n of at least 2.
        second: The other value of each pair, shape (n,).
        level: The probability that such an interval covers the mean of normal differences.

    Returns:
        The mean of first - second, with its interval; all NaN where a value is infinite or NaN.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if not np.isfinite(differences).all():
        return PairedDifference(len(differences), math.nan, math.nan, math.nan)
    mean = statistics.fmean(differences)
    standard_error = statistics.stdev(differences) / math.sqrt(len(differences))
    reach = scipy.stats.t.ppf((1 + level) / 2, len(differences) - 1) * standard_error
    return PairedDifference(len(differences), mean, float(mean - reach), float(mean + reach))


def paired_cell(first: Sequence[float], second: Sequence[float], digits: int) -> str:
    """Formats the mean of paired differences for a table.

    Args:
        first: A value of each pair.
        second: The other value of each pair.
        digits: The number of digits after the decimal point.

    Returns:
        The mean with its 95 % interval; without one for a single pair, "–" for none, or where a
        difference is infinite or NaN.
    """
    if not np.isfinite([*first, *second]).all():
        return "–"
    if len(first) < 2:
        return "".join(f"{a - b:+.{digits}f}" for a, b in zip(first, second, strict=True)) or "–"
    difference = paired_difference(first, second)
    interval = f"[{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"
    return f"{difference.mean:+.{digits}f} {interval}"
