"""Training under `tf.distribute`; the tests themselves are in replica_cases.py."""

import concurrent.futures
import pathlib

import pytest
from logical_devices import run_cases
from processes import cluster_of
from test_four_replicas import ALL, IN_CI

CASES = pathlib.Path(__file__).with_name("replica_cases.py")


def test_two_replicas_train_as_one_device():
    run_cases(CASES, 2, "-k", f"not ({IN_CI})")


@pytest.mark.nightly
def test_two_replicas_train_as_one_device_in_all_other_cases():
    run_cases(CASES, 2, "-m", "nightly")
    run_cases(CASES, 2, "-k", IN_CI)


@pytest.mark.nightly
def test_gradients_of_two_processes_are_those_of_one_device():
    """The results of `fit` there are compared with two devices of a process by test_workers.py."""
    kept = "gradients_are and synchronized"
    with concurrent.futures.ThreadPoolExecutor() as threads:
        processes = [
            threads.submit(run_cases, CASES, 1, *ALL, "-k", kept, TF_CONFIG=config)
            for config in cluster_of(2)
        ]
    for process in processes:
        process.result()
