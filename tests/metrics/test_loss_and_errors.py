"""The expected calibration error in closed form, and bin by bin."""

import numpy as np
import pytest

from fisher_keras.metrics.loss_and_errors import expected_calibration_error


def bin_by_bin(confidence, correct, num_bins):
    total = 0.0
    for m in range(1, num_bins + 1):
        inside = ((m - 1) / num_bins < confidence) & (confidence <= m / num_bins)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            total += inside.sum() / len(confidence) * gap
    return total


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_against_the_bins_one_by_one(num_bins):
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.1, 1, size=300)
    correct = rng.uniform(size=300) < confidence**2
    found = expected_calibration_error(confidence, correct, num_bins)
    assert found == pytest.approx(bin_by_bin(confidence, correct, num_bins))


def test_sure_and_wrong():
    assert expected_calibration_error(np.ones(4), np.array([True, True, False, True])) == 0.25
    assert expected_calibration_error(np.ones(4), np.ones(4, bool)) == 0.0


def test_errors_in_one_bin_balance_and_in_two_bins_add_up():
    # 0.91 and 0.97 are in (14/15, 1] and (13/15, 14/15].
    apart = expected_calibration_error(np.array([0.91, 0.97]), np.array([True, False]))
    assert apart == pytest.approx((0.09 + 0.97) / 2)
    together = expected_calibration_error(np.array([0.95, 0.97]), np.array([True, False]))
    assert together == pytest.approx(abs(1 - 0.95 - 0.97) / 2)
