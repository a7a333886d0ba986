"""Training under `tf.distribute`, in a file of its own, which runs beside that of two replicas."""

import pathlib

import pytest
from logical_devices import run_cases
from marks import nightly

# What more than two replicas may change: their shares, and means over them.
GRADIENTS = "gradients and float64 and finite and shared"
IN_CI = f"{GRADIENTS} or empty and product"
OTHERS = "gradients and synchronized and float64 or uneven or empty or float64-31 or own_moments"
ALL = ("-m", "nightly or not nightly")


@pytest.mark.parametrize("options", [("-k", IN_CI), nightly((*ALL, "-k", OTHERS))])
def test_four_replicas_train_as_one_device(options):
    run_cases(pathlib.Path(__file__).with_name("replica_cases.py"), 4, *options)
