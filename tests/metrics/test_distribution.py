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


def test_each_of_two_processes_evaluates_all_trials(tmp_path, expected):
    """Each has the whole report, the chief alone the file, in which it finds its trials again."""
    code = """
from fisher_keras.metrics import evaluation_options as options
drawn = []
draw = options.draw_sample
options.draw_sample = lambda *a: drawn.append(a[3]) or draw(*a)
evaluate(model(), trials_path="trials.jsonl", num_trials=2)
print("DRAWN", sorted(set(drawn)))
drawn.clear()
report = evaluate(model(), trials_path="trials.jsonl", num_trials=5)
print("DRAWN", sorted(set(drawn)))
print("REPORT", report.to_json().replace("\\n", " "))
"""
    results = evaluate_in_two_processes(code, tmp_path)
    assert [status for status, _, _ in results] == [0, 0], results[0][2][-4000:]
    drawn = [re.findall(r"DRAWN (.*)", stdout) for _, stdout, _ in results]
    assert drawn == [["[0, 1]", "[2, 3, 4]"], ["[0, 1]", "[0, 1, 2, 3, 4]"]]
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


def test_the_metrics_of_the_chief_are_those_of_all_processes(tmp_path):
    """Rounding may differ between machines, and no callback may decide differently then."""
    code = """
import dataclasses
import numpy as np
from distribution_cases import X, Y
from fisher_keras import callbacks
evaluate_here = callbacks.evaluate
def differing(*args):
    report = evaluate_here(*args)
    means = iter([2.0 + rank, -np.inf if rank == 0 else 1.0])
    changed = {n: dataclasses.replace(s, mean=next(means)) for n, s in report.metrics.items()}
    return dataclasses.replace(report, metrics=changed)
callbacks.evaluate = differing
with strategy.scope():
    trained = classifier()
    trained.compile("sgd", "sparse_categorical_crossentropy")
names = ("trace", "log_determinant")
fisher = callbacks.FisherMetrics((X, Y), metrics=names, num_samples=8, from_logits=True)
fisher.set_model(trained)
fisher.on_train_begin()
logs = {}
fisher.on_epoch_end(0, logs)
print("LOGS", *(logs[name] for name in names))
"""
    results = evaluate_in_two_processes(code, tmp_path)
    assert [status for status, _, _ in results] == [0, 0], results[0][2][-4000:]
    assert [re.search(r"LOGS (.*)", stdout)[1] for _, stdout, _ in results] == ["2.0 -inf"] * 2
