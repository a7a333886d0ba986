"""Starts TensorFlow without the notices that its C++ prints."""

import contextlib
import os
import sys
from collections.abc import Iterator

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_ERRORS = "2"


@contextlib.contextmanager
def without_notices() -> Iterator[None]:
    """Keeps imports of TensorFlow in a block from printing to stderr.

    TF_CPP_MIN_LOG_LEVEL=0 or 1 shows the notices.
    """
    given = os.environ.get(_LEVEL)
    # The levels are single digits, whose order as text is that of the numbers.
    if given is not None and given < _ERRORS:
        yield
        return
    os.environ[_LEVEL] = given or _ERRORS
    # The descriptor, and not `sys.stderr`: C++ does not print through Python.
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        if given is None:
            del os.environ[_LEVEL]  # Processes that this one starts do the same.


def find_devices() -> None:
    """Has TensorFlow, if it is imported, look for GPUs, which is when it prints most."""
    if tf := sys.modules.get("tensorflow"):
        tf.config.list_physical_devices()  # Not the logical ones: they take the GPUs' memory.
