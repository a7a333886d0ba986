"""Training under `tf.distribute`, in a file of its own, which runs beside that of two replicas."""

import pathlib

from replicas import run_cases


def test_four_replicas_train_as_one_device():
    """What more than two replicas may change: their shares, and means over them."""
    kept = "gradients and synchronized and float64 or float64-31 or uneven or empty or own_moments"
    run_cases(pathlib.Path(__file__).with_name("replica_cases.py"), 4, "-k", kept)
