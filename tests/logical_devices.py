"""Runs tests in a process that has several logical CPU devices."""

import os
import subprocess
import sys

# Devices are configured before TensorFlow's first use, which in this process has been.
_SEVERAL_CPUS = """
import sys, pytest, tensorflow as tf
count, *arguments = sys.argv[1:]
(cpu,) = tf.config.list_physical_devices("CPU")
devices = [tf.config.LogicalDeviceConfiguration()] * int(count)
tf.config.set_logical_device_configuration(cpu, devices)
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *arguments]))
"""


def run_cases(path, devices, *options, **environment):
    """Runs the tests of a file where there are so many CPU devices; fails as they do.

    Options are those of pytest.
    """
    result = subprocess.run(
        [sys.executable, "-c", _SEVERAL_CPUS, str(devices), str(path), *options],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
