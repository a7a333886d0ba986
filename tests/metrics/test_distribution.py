"""The metrics under `tf.distribute`; the tests on devices are in distribution_cases.py."""

import json
import os
import pathlib
import re
import sys

import numpy as np
import pytest
from distribution_cases import classifier, evaluate
from logical_devices import run_cases
from marks import nightly
from processes import cluster_of, finish, start

HERE = pathlib.Path(__file__).parent
# What each of two processes runs, for all tests below.
WORKER = """
import dataclasses
import numpy as np
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
from distribution_cases import X, Y, classifier, evaluate
from fisher_keras import callbacks
from fisher_keras.metrics import evaluation_options as options
rank = strategy.cluster_resolver.task_id
def model():
    with strategy.scope():
        return classifier()

drawn = []
draw = options.draw_sample
options.draw_sample = lambda *a: drawn.append(a[3]) or draw(*a)
evaluate(model(), trials_path="trials.jsonl", num_trials=2)
print("DRAWN", sorted(set(drawn)))
drawn.clear()
report = evaluate(model(), trials_path="trials.jsonl", num_trials=5)
print("DRAWN", sorted(set(drawn)))
print("REPORT", report.to_json().replace("\\n", " "))

evaluate_here = callbacks.evaluate
def differing(*args):
    report = evaluate_here(*args)
    means = iter([2.0 + rank, -np.inf if rank == 0 else 1.0])
    changed = {n: dataclasses.replace(s, mean=next(means)) for n, s in report.metrics.items()}
    return dataclasses.replace(report, metrics=changed)
callbacks.evaluate = differing
trained = model()
with strategy.scope():
    trained.compile("sgd", "sparse_categorical_crossentropy")
names = ("trace", "log_determinant")
fisher = callbacks.FisherMetrics((X, Y), metrics=names, num_samples=8, from_logits=True)
fisher.set_model(trained)
fisher.on_train_begin()
logs = {}
fisher.on_epoch_end(0, logs)
print("LOGS", *(logs[name] for name in names))
"""


@pytest.mark.parametrize("options", [(), nightly(("-m", "nightly"))])
def test_trials_are_spread_over_two_devices(options):
    run_cases(HERE / "distribution_cases.py", 2, *options)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """The folder, in which each of two processes has one of its own, and what both printed."""
    folder = tmp_path_factory.mktemp("processes")
    started = []
    for index, config in enumerate(cluster_of(2)):
        (folder / str(index)).mkdir()
        path = os.pathsep.join([str(HERE), *sys.path])
        here = folder / str(index)
        started.append(start("-c", WORKER, cwd=here, TF_CONFIG=config, PYTHONPATH=path))
    results = [finish(process) for process in started]
    assert [status for status, _, _ in results] == [0, 0], results[0][2][-4000:]
    return folder, [stdout for _, stdout, _ in results]


def test_each_of_two_processes_evaluates_all_trials(processes):
    """Each has the whole report, the chief alone the file, in which it finds its trials again."""
    folder, printed = processes
    drawn = [re.findall(r"DRAWN (.*)", stdout) for stdout in printed]
    assert drawn == [["[0, 1]", "[2, 3, 4]"], ["[0, 1]", "[0, 1, 2, 3, 4]"]]
    files = [sorted(path.name for path in (folder / rank).iterdir()) for rank in "01"]
    assert files == [["trials.jsonl"], []]
    assert len((folder / "0" / "trials.jsonl").read_text().splitlines()) == 1 + 5
    expected = json.loads(evaluate(classifier()).to_json())
    for stdout in printed:
        report = json.loads(re.search(r"REPORT (.*)", stdout)[1])
        assert report["evaluation"] == expected["evaluation"]
        for mine, right in zip(report["trials"], expected["trials"], strict=True):
            assert mine["index"] == right["index"]
            for name, value in right["metrics"].items():
                assert mine["metrics"][name] == pytest.approx(value, rel=1e-5)
            np.testing.assert_allclose(mine["log_spectrum"], right["log_spectrum"], atol=1e-5)


def test_the_metrics_of_the_chief_are_those_of_all_processes(processes):
    """Rounding may differ between machines, and no callback may decide differently then."""
    _, printed = processes
    assert [re.search(r"LOGS (.*)", stdout)[1] for stdout in printed] == ["2.0 -inf"] * 2
