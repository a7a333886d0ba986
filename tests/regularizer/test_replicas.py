"""Training under `tf.distribute`; the tests themselves are in replica_cases.py."""

import pathlib

from replicas import run_cases


def test_two_replicas_train_as_one_device():
    run_cases(pathlib.Path(__file__).with_name("replica_cases.py"), 2)
