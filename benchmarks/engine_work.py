"""Work of the runs of engine.py. Their processes import this module, and little else."""

import pathlib
import time
from typing import Any

_SIZE = 1000  # Of the matrices.


def sleep(run: Any, directory: pathlib.Path, amount: float) -> dict:
    """Sleeps for so many seconds."""
    time.sleep(amount)
    return {}


def compute(run: Any, directory: pathlib.Path, amount: float) -> dict:
    """Multiplies matrices so many times."""
    import numpy as np

    matrix = np.random.default_rng(0).normal(size=(_SIZE, _SIZE)) / _SIZE
    for _ in range(int(amount)):
        matrix @ matrix
    return {}
