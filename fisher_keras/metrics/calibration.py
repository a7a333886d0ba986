"""How far a classifier's confidence is from its accuracy."""

import numpy as np

NUM_BINS = 15


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, num_bins: int = NUM_BINS
) -> float:
    r"""Returns the expected calibration error.

    $$\mathrm{ECE} = \sum_m \frac{|B_m|}{N} \left|\mathrm{acc}(B_m) - \mathrm{conf}(B_m)\right|,$$

    $B_m$ being the examples whose confidence is in $(\frac{m - 1}{M}, \frac{m}{M}]$: C. Guo,
    G. Pleiss, Y. Sun and K. Q. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
    Equation 3, with their M = 15.

    Args:
        confidence: The probability of each example's most probable class, shape (N,).
        correct: Whether that is the right class, shape (N,).
        num_bins: M, bins of equal width.

    Returns:
        Between 0 and 1.
    """
    bins = np.ceil(confidence * num_bins).astype(int)
    # |B_m| (acc - conf) is the sum of the differences of the examples in it.
    differences = np.bincount(bins, weights=correct - confidence)
    return float(np.abs(differences).sum() / len(confidence))
