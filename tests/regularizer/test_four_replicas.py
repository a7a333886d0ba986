"""Training under `tf.distribute`, in a file of its own, which runs beside that of two replicas."""

import pathlib

import pytest
from logical_devices import run_cases
from marks import nightly

# What more than two replicas may change: their shares, and means over them.
GRADIENTS = "gradients and float64 and finite and shared"
TRAININGS = "empty and product or uneven and not shared or own_moments"
IN_CI = f"{GRADIENTS} or {TRAININGS}"
OTHERS = "gradients and synchronized and float64 or uneven or empty or float64-31"


@pytest.mark.parametrize("kept", [IN_CI, nightly(OTHERS)])
def test_four_replicas_train_as_one_device(kept):
    run_cases(pathlib.Path(__file__).with_name("replica_cases.py"), 4, "-k", kept)
