"""Training under `tf.distribute`; the tests themselves are in replica_cases.py."""

import pathlib

import pytest
from replicas import run_cases


@pytest.mark.parametrize("devices", [2, 4])
def test_replicas_train_as_one_device(devices):
    run_cases(pathlib.Path(__file__).with_name("replica_cases.py"), devices)
