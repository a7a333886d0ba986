"""Training under `tf.distribute`; the tests themselves are in replica_cases.py."""

import pathlib

from replicas import run_cases

CASES = pathlib.Path(__file__).with_name("replica_cases.py")


def test_two_replicas_train_as_one_device():
    run_cases(CASES, 2)


def test_four_replicas_train_as_one_device():
    """What more than two replicas may change: their shares, and means over them."""
    run_cases(CASES, 4, "-k", "float64 and not None or uneven or empty or own_moments")
