"""The metrics under `tf.distribute`; the tests on devices are in distribution_cases.py."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from processes import cluster_of, finish
from replicas import run_cases

HERE = pathlib.Path(__file__).parent
# What each of two processes runs; the code to evaluate with is appended.
WORKER = """
import sys, tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
from distribution_cases import classifier, evaluate
rank = strategy.cluster_resolver.task_id
def model():
    with strategy.scope():
        return classifier()
"""


def test_trials_are_spread_over_two_devices():
    run_cases(HERE / "distribution_cases.py", 2)


def evaluate_in_two_processes(code, tmp_path):
    """Returns exit code, stdout and stderr of both."""
    started = []
    for index, config in enumerate(cluster_of(2)):
        (tmp_path / str(index)).mkdir(exist_ok=True)
        path = os.pathsep.join([str(HERE), *sys.path])
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER + code],
                env=os.environ | {"TF_CONFIG": config, "PYTHONPATH": path},
                cwd=tmp_path / str(index),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return [finish(process) for process in started]


@pytest.fixture(scope="module")
def expected():
    """The report of one process."""
    code = "from distribution_cases import *; print(evaluate(classifier()).to_json())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout[result.stdout.index("{") :])


def test_trials_are_spread_over_two_processes(tmp_path, expected):
    """Each has the whole report, the chief alone the file; what is there is not done again."""
    code = """
from fisher_keras.metrics import evaluation
drawn = []
draw = evaluation.draw_sample
evaluation.draw_sample = lambda *a: drawn.append(a[3]) or draw(*a)
evaluate(model(), trials_path="trials.jsonl", num_trials=2)
print("DRAWN", drawn)
report = evaluate(model(), trials_path="trials.jsonl", num_trials=5)
print("DRAWN", drawn)
print("REPORT", report.to_json().replace("\\n", " "))
"""
    results = evaluate_in_two_processes(code, tmp_path)
    assert [status for status, _, _ in results] == [0, 0], results
    drawn = [re.findall(r"DRAWN (.*)", stdout) for _, stdout, _ in results]
    assert drawn == [["[0]", "[0, 2, 4]"], ["[1]", "[1, 3]"]]
    files = [sorted(path.name for path in (tmp_path / rank).iterdir()) for rank in "01"]
    assert files == [["trials.jsonl"], []]
    assert len((tmp_path / "0" / "trials.jsonl").read_text().splitlines()) == 1 + 5
    for _, stdout, _ in results:
        report = json.loads(re.search(r"REPORT (.*)", stdout)[1])
        assert report["evaluation"] == expected["evaluation"]
        for mine, right in zip(report["trials"], expected["trials"], strict=True):
            assert mine["index"] == right["index"]
            for name, value in right["metrics"].items():
                assert mine["metrics"][name] == pytest.approx(value, rel=1e-5)
            np.testing.assert_allclose(mine["log_spectrum"], right["log_spectrum"], atol=1e-5)


def test_an_error_in_one_process_ends_all(tmp_path):
    code = """
from fisher_keras.metrics import evaluation
draw = evaluation.draw_sample
def failing(labels, num_samples, seed, trial, stratified):
    if trial == 3:
        raise ValueError("no sample")
    return draw(labels, num_samples, seed, trial, stratified)
evaluation.draw_sample = failing
evaluate(model(), num_trials=5)
"""
    results = evaluate_in_two_processes(code, tmp_path)
    assert [status for status, _, _ in results] == [1, 1]
    assert re.search(r"^RuntimeError: Process 1 of 2: no sample$", results[0][2], re.M)
    assert re.search(r"^ValueError: no sample$", results[1][2], re.M)


def test_processes_that_evaluate_different_things_are_refused(tmp_path):
    results = evaluate_in_two_processes("evaluate(model(), seed=rank)", tmp_path)
    assert [status for status, _, _ in results] == [1, 1]
    for _, _, stderr in results:
        assert re.search(r"^ValueError: The processes .* evaluate different things", stderr, re.M)
