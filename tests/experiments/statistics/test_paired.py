import numpy as np
import pytest
import scipy.stats

from fisher_keras.experiments.statistics.paired import paired_cell, paired_difference


def test_two_pairs_by_hand():
    # Differences -1 and -2: standard error 1/2; t with one degree of freedom reaches
    # tan(0.95 * pi / 2).
    found = paired_difference([3.0, 4.0], [4.0, 6.0])
    reach = 0.5 * np.tan(0.95 * np.pi / 2)
    assert (found.num_pairs, found.mean) == (2, -1.5)
    assert (found.low, found.high) == pytest.approx((-1.5 - reach, -1.5 + reach))
    assert found.is_within_noise


def test_interval_is_that_of_scipy():
    random = np.random.default_rng(0)
    first, second = random.normal(1, 1, 7), random.normal(0, 1, 7)
    for level in (0.9, 0.95):
        found = paired_difference(first, second, level)
        expected = scipy.stats.ttest_rel(first, second).confidence_interval(level)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("shift", "within"), [(-5, False), (0, True), (5, False)])
def test_noise(shift, within):
    noise = np.array([0.1, -0.1, 0.2, -0.2])
    assert paired_difference(noise + shift, np.zeros(4)).is_within_noise is within


def test_equal_differences_have_an_interval_without_width():
    found = paired_difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)


def test_differences_in_a_table():
    assert paired_cell([1.0, 2.0, 4.5], [2.0, 2.5, 4.0], 2) == "-0.33 [-2.23, +1.56]"
    assert paired_cell([1.0], [2.5], 1) == "-1.5"
    assert paired_cell([], [], 1) == "–"


def test_an_infinite_difference_has_no_mean_and_shows_nothing():
    difference = paired_difference([1.0, -np.inf], [0.5, 2.0])
    assert np.isnan([difference.mean, difference.low, difference.high]).all()
    assert difference.is_within_noise
