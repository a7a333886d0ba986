"""Imports TensorFlow without what its C++ prints as it starts, for commands.

To be imported before anything that imports TensorFlow. Set TF_CPP_MIN_LOG_LEVEL to see them.
"""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def _without_notices() -> Iterator[None]:
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        del os.environ["TF_CPP_MIN_LOG_LEVEL"]  # Processes that this one starts do the same.


with _without_notices():
    import tensorflow as tf

    tf.config.list_physical_devices()  # Not the logical ones, which would take the GPUs' memory.
