import math

import pytest

from fisher_keras.experiments.statistics.convergence import convergence_flags


def test_runs_alike_are_not_flagged():
    assert convergence_flags([1e-3, 2e-3, 4e-3], [0, 0.1, 0.5]) == [(), (), ()]


def test_training_error_above_half_a_percent():
    (_, (reason,)) = convergence_flags([1e-3, 1e-3], [0.5, 0.51])
    assert reason == "training error 0.51 % (more than 0.5 %)"


def test_loss_far_above_the_median():
    first, second, third, (reason,) = convergence_flags([1e-3, 2e-3, 3e-3, 0.03], [0] * 4)
    assert first == second == third == ()
    assert reason == "training loss 0.03 (more than 10 times the median 0.0025)"


@pytest.mark.parametrize(("outlier", "flagged"), [(0.0499, False), (0.0501, True)])
def test_ten_times_the_median(outlier, flagged):
    flags = convergence_flags([0.005, 0.005, 0.005, outlier], [0] * 4)
    assert [bool(reasons) for reasons in flags] == [False, False, False, flagged]


@pytest.mark.parametrize(("outlier", "flagged"), [(0.0099, False), (0.0101, True)])
def test_a_small_loss_is_close_to_any_smaller_one(outlier, flagged):
    flags = convergence_flags([1e-6, 1e-6, 1e-6, outlier], [0] * 4)
    assert [bool(reasons) for reasons in flags] == [False, False, False, flagged]


def test_both_reasons_are_given():
    assert len(convergence_flags([1e-3, 1e-3, 2.0], [0, 0, 60])[2]) == 2


def test_a_loss_that_is_not_known_or_infinite():
    flags = convergence_flags([1e-3, math.nan, math.inf], [0, 0, 0])
    assert flags == [(), (), ("training loss inf",)]


def test_a_target_that_was_not_reached():
    flags = convergence_flags([1e-3, 2e-3, 2.1e-3], [0, 0, 0], target_loss=2e-3)
    assert flags == [(), (), ("training loss 0.0021 (did not reach the target 0.002)",)]


def test_an_error_that_is_no_number():
    assert convergence_flags([1e-3], [math.nan]) == [("training error nan % (more than 0.5 %)",)]
