"""What the tests of scripts and of several processes share."""

import subprocess
import time

TIMEOUT = 120


def finish(process, timeout=TIMEOUT):
    """Returns exit code, stdout and stderr; ends a process that takes too long."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, stdout, stderr


def wait_for(path, process, timeout=TIMEOUT):
    deadline = time.monotonic() + timeout
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
