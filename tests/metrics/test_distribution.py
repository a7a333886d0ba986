"""The metrics under `tf.distribute`; the tests themselves are in distribution_cases.py."""

import os
import pathlib
import subprocess
import sys

CASES = pathlib.Path(__file__).with_name("distribution_cases.py")
# Devices are configured before TensorFlow's first use, which in this process has been.
TWO_CPUS = """
import sys, pytest, tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[1]]))
"""


def test_trials_are_spread_over_two_devices():
    result = subprocess.run(
        [sys.executable, "-c", TWO_CPUS, CASES],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
