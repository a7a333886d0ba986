"""A run of an experiment, against its parts done by hand."""

import dataclasses
import json
import linecache
import sys

import keras
import numpy as np
import pytest
from tiny_network import TINY

from fisher_keras.classifier import Classifier
from fisher_keras.experiments.runs import trained_run as module
from fisher_keras.experiments.runs.store import Record
from fisher_keras.experiments.runs.trained_network import TrainedNetwork, excess_losses
from fisher_keras.experiments.runs.trained_run import (
    MetricSettings,
    execute,
    trained_run,
)
from fisher_keras.experiments.search.trial_run import execute as execute_trial
from fisher_keras.experiments.search.trial_run import trial_run
from fisher_keras.experiments.training.config import TrainingConfig, resolve
from fisher_keras.experiments.training.data import load_training_data
from fisher_keras.fisher.gram import loss_gradient_gram
from fisher_keras.metrics.trials import draw_sample

METRICS = MetricSettings(("log_determinant", "trace"), 5, 3, normalize_logits=0.04)


def training(**changes):
    values = {
        "dataset": "digits",
        "width": 0.125,
        "train_size": 60,
        "epochs": 2,
        "batch_size": 20,
        "augmentation": "no-aug",
    }
    return TrainingConfig(**(values | changes))


def test_images_of_a_report_do_not_pass_again(tmp_path, monkeypatch):
    passed = []
    original = module.evaluate_data_loss

    def counted(classifier, labelled, name, *options):
        passed.append((name, len(labelled)))
        return original(classifier, labelled, name, *options)

    monkeypatch.setattr(module, "evaluate_data_loss", counted)
    run = trained_run("test", training(confusion_size=30, epochs=1, **TINY), METRICS, "label")
    result = execute(run, tmp_path, data_dir=None, download=False)
    assert passed == [("confusion", 30)]
    assert list(result)[:3] == ["train", "confusion", "test"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    run = trained_run("test", training(confusion_size=30, seed=3, **TINY), METRICS, "label")
    return run, directory, execute(run, directory, data_dir=None, download=False)


def test_metrics_are_of_the_training_images_without_the_confusion_set(finished):
    _, directory, result = finished
    model = keras.models.load_model(directory / "training" / "last.keras", compile=False)
    data = load_training_data(training(seed=3, **TINY)).examples("train")
    images, labels = data.x, data.y
    assert len(images) == result["train"]["num_images"] == 60
    log_p = keras.ops.log_softmax(model(images)).numpy().astype(np.float64)
    loss = -np.mean(log_p[np.arange(60), labels])
    assert result["train"]["loss"] == pytest.approx(loss, rel=1e-5)
    errors = np.argmax(log_p, axis=1) != labels
    assert result["train"]["error_percent"] == pytest.approx(100 * np.mean(errors))
    classifier, determinants = Classifier(model), []
    for trial in range(3):
        rows = draw_sample(labels, 5, seed=3, trial=trial, stratified=False)
        gram = loss_gradient_gram(classifier, images[rows], labels[rows])
        xi = np.exp(gram.log_scale[:, None] + gram.log_scale) * gram.matrix
        determinants.append(np.linalg.slogdet(xi)[1])
    summary = result["metrics"]["log_determinant"]
    assert summary["mean"] == pytest.approx(np.mean(determinants), rel=1e-6)
    assert summary["std"] == pytest.approx(np.std(determinants, ddof=1), rel=1e-4)
    means = {name: found["mean"] for name, found in result["metrics"].items()}
    parts = means["log_squared_norms"] + means["log_determinant_cosines"]
    assert parts == pytest.approx(means["log_determinant"], rel=1e-12)
    assert summary["mean"] != result["normalized_metrics"]["log_determinant"]["mean"]


def distance(log_p, labels, smoothing):
    """The mean Kullback-Leibler divergence of the network from the labels."""
    smoothed = (1 - smoothing) * np.eye(10)[labels] + smoothing / 10
    entropy = -np.sum(smoothed * np.log(np.where(smoothed > 0, smoothed, 1)), axis=1)
    return np.mean(-np.sum(smoothed * log_p, axis=1) - entropy)


def test_losses_are_counted_from_the_least_that_labels_allow(tmp_path):
    settings = training(confusion_size=30, label_smoothing=0.2, **TINY)
    run = trained_run("test", settings, MetricSettings(("trace",), 5, 1), "label")
    result = execute(run, tmp_path, data_dir=None, download=False)
    model = keras.models.load_model(tmp_path / "training" / "last.keras", compile=False)
    data = load_training_data(resolve(settings))
    found = []
    for part in ("train", "confusion"):
        images, labels = data.examples(part).x, data.examples(part).y
        log_p = keras.ops.log_softmax(model(images)).numpy().astype(np.float64)
        found.append(distance(log_p, labels, 0.2))
        assert result[part]["excess_loss"] == pytest.approx(found[-1], rel=1e-5)
        assert result[part]["loss"] == pytest.approx(distance(log_p, labels, 0.0), rel=1e-5)
        assert result[part]["num_images"] == len(images)
    network = TrainedNetwork.of(Record(run.key, **run.definition, wall_time_s=1.0, result=result))
    assert excess_losses([network]) == pytest.approx(
        [np.average(found, weights=[60, 30])], rel=1e-5
    )
    note = f"training loss is {found[0]:.3g} above the least that the labels allow"
    assert note in result["notes"][0]


def test_records_of_before():
    def network(confusion_size=0, label_smoothing=0.0, **result):
        settings = {"confusion_size": confusion_size, "label_smoothing": label_smoothing}
        part = {"loss": 0.3, "error_percent": 1.0, "num_images": 100}
        result = {"train": part, "test": part, "metrics": {}, **result}
        return TrainedNetwork.of(Record("key", "test", 1, {"training": settings}, 0, 1.0, result))

    confusion = {"loss": 0.9, "error_percent": 1.0, "excess_loss": 0.9, "num_images": 50}
    plain, with_it, without_it = network(), network(50, confusion=confusion), network(50)
    assert excess_losses([plain, with_it]) == pytest.approx([0.3, 0.5])
    # It counts everywhere or nowhere.
    assert excess_losses([plain, with_it, without_it]) == [0.3] * 3
    assert np.isnan(excess_losses([network(label_smoothing=0.1)]))


def test_what_is_there_is_not_done_again(finished):
    run, directory, result = finished
    model = (directory / "training" / "last.keras").stat().st_mtime_ns
    trials = directory / "metrics.trials.jsonl"
    whole = trials.read_text()
    # A trial that was written down already, marked, and one that was not yet.
    first, second, *_ = whole.splitlines(keepends=True)
    marked = json.loads(second)
    marked["metrics"]["log_determinant"] = 1000.0
    trials.write_text(first + json.dumps(marked) + "\n")
    again = execute(run, directory, data_dir=None, download=False)
    assert (directory / "training" / "last.keras").stat().st_mtime_ns == model
    assert again["normalized_metrics"] == result["normalized_metrics"]
    values = [json.loads(line)["metrics"]["log_determinant"] for line in whole.splitlines()[1:]]
    mean = (1000.0 + sum(values[1:])) / 3
    assert again["metrics"]["log_determinant"]["mean"] == pytest.approx(mean)


def test_result_is_json(finished):
    assert json.loads(json.dumps(finished[2], allow_nan=False)) == finished[2]


def test_key_depends_on_what_decides_and_on_nothing_else():
    def key(metrics=METRICS, **changes):
        return trained_run("test", training(**changes), metrics, "label").key

    assert key() == key(data_dir="elsewhere", download=True, output_dir="x", resume=True)
    # The recipe's own value said aloud.
    assert key() == key(learning_rate=0.01)
    different = [
        key(),
        key(seed=1),
        key(epochs=3),
        key(confusion_size=1),
        key(schedule="plateau"),
        key(label_smoothing=0.1),
        key(target_loss=0.1),
        key(regularize=True),
        key(regularize=True, beta=20.0),
        key(MetricSettings(("trace",), 5, 3)),
    ]
    assert len(set(different)) == len(different)


def test_settings_that_are_the_same_in_every_training_stay_out_of_the_key(monkeypatch):
    config = trained_run("test", training(), METRICS, "label").config["training"]
    assert "label_smoothing" not in config
    assert "mixed_precision" not in config
    assert config["dataset"] == "digits"
    assert config["learning_rate"] == 0.01
    places = {"seed", "data_dir", "download", "output_dir", "resume", "dry_run"}
    assert not places & config.keys()


NETWORK = """
import keras

def net(num_classes, shape):
    x = keras.Input(shape)
    return keras.Model(x, keras.layers.Dense(num_classes)(keras.layers.Flatten()(x)))
"""


def test_a_run_is_of_the_code_of_its_network(tmp_path, monkeypatch):
    """Runs and trials of a search with another code have other keys, and are not executed."""
    file = tmp_path / "its_network.py"
    file.write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "its_network", raising=False)
    config = training(width=None, arch="its_network:net")
    searched = dataclasses.replace(config, method="fisher")

    def runs():
        return trained_run("test", config, METRICS, "label"), trial_run(searched, "data")

    run, trial = runs()
    assert (run, trial) == runs()
    file.write_text(NETWORK.replace("Dense(num_classes)", "Dense(num_classes, use_bias=False)"))
    del sys.modules["its_network"]
    linecache.clearcache()
    assert not {run.key, trial.key} & {other.key for other in runs()}
    for old, function in ((run, execute), (trial, execute_trial)):
        with pytest.raises(ValueError, match="its_network:net is not what it was when the comm"):
            function(old, tmp_path / "runs" / "x", data_dir=None, download=False)
