"""Tests of the quickstart's comparison."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from processes import finish

from fisher_keras.datasets import load_dataset, subset
from fisher_keras.experiments import quickstart
from fisher_keras.models import build_model
from fisher_keras.models.recipes import RegularizerSettings

ROOT = pathlib.Path(__file__).parents[2]
TINY = quickstart.Settings(width=0.05, train_size=20, epochs=2, batch_size=8)


@pytest.fixture
def store(tmp_path):
    return tmp_path / "runs.jsonl"


@pytest.fixture
def trained(monkeypatch):
    """Replaces the training, and returns the list of (method, seed) trained so far."""
    calls = []

    def train(settings, dataset, method, seed):
        calls.append((method, seed))
        return {"train_loss": [1.0], "test_error": [10.0 * seed], "seconds": 1.0}

    monkeypatch.setattr(quickstart, "train", train)
    return calls


def test_compare_trains_each_method_from_each_seed(store):
    runs = quickstart.compare(TINY, 2, store)
    assert [(run["seed"], run["method"]) for run in runs] == [
        (0, "baseline"),
        (0, "clipped"),
        (0, "regularized"),
        (1, "baseline"),
        (1, "clipped"),
        (1, "regularized"),
    ]
    for run in runs:
        assert len(run["train_loss"]) == len(run["test_error"]) == TINY.epochs
        assert np.isfinite(run["train_loss"]).all()
        # Whole numbers of the 397 test images.
        wrong = np.array(run["test_error"]) * 397 / 100
        np.testing.assert_allclose(wrong, np.round(wrong), atol=1e-9)
    assert [json.loads(line) for line in store.read_text().splitlines()] == runs


def test_curves_are_those_of_the_seeds_network():
    """At a learning rate of almost zero, the network is still the one that the seed makes."""
    settings = dataclasses.replace(TINY, epochs=1, learning_rate=1e-12)
    dataset = load_dataset("digits")
    images, labels, _, _ = subset(dataset.train_images, dataset.train_labels, 20, seed=3)
    mean, std = images.mean(), images.std()
    keras.utils.set_random_seed(3)
    network = build_model("cnn", 10, dataset.image_shape, width=TINY.width)
    logits = network.predict((images - mean) / std, verbose=0).astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = -log_probabilities[np.arange(20), labels].mean()
    predictions = network.predict((dataset.test_images - mean) / std, verbose=0).argmax(axis=1)
    error = 100 * np.mean(predictions != dataset.test_labels)

    for method in quickstart.METHODS:
        run = quickstart.train(settings, dataset, method, seed=3)
        assert run["train_loss"] == pytest.approx([loss], rel=1e-5)
        assert run["test_error"] == pytest.approx([error])


def test_finished_runs_are_not_trained_again(store, trained):
    first = quickstart.compare(TINY, 2, store)
    trained.clear()
    again = quickstart.compare(TINY, 3, store)
    assert trained == [("baseline", 2), ("clipped", 2), ("regularized", 2)]
    assert again[:6] == first


def test_changed_settings_are_trained_again(store, trained):
    first = quickstart.compare(TINY, 2, store)
    trained.clear()
    quickstart.compare(dataclasses.replace(TINY, epochs=3), 2, store)
    assert len(trained) == 6
    trained.clear()
    other = dataclasses.replace(TINY, regularizer=RegularizerSettings(beta=1.0))
    quickstart.compare(other, 2, store)
    assert trained == [("regularized", 0), ("regularized", 1)]
    trained.clear()
    assert quickstart.compare(TINY, 2, store) == first
    assert trained == []


def test_a_stopped_comparison_goes_on_where_it_was(store, trained, monkeypatch):
    train = quickstart.train

    def stopped_at_seed_1(settings, dataset, method, seed):
        if seed == 1:
            raise KeyboardInterrupt
        return train(settings, dataset, method, seed)

    monkeypatch.setattr(quickstart, "train", stopped_at_seed_1)
    with pytest.raises(KeyboardInterrupt):
        quickstart.compare(TINY, 3, store)
    trained.clear()
    monkeypatch.setattr(quickstart, "train", train)
    quickstart.compare(TINY, 2, store)
    assert trained == [("baseline", 1), ("clipped", 1), ("regularized", 1)]


def test_time_left_is_printed(store, trained, capsys):
    quickstart.compare(TINY, 2, store)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("6 runs to train; 0 are in ")
    assert lines[2].startswith("[2/6] seed 0, clipped: test error 0.00 % after 1 s; about ")
    assert lines[6].endswith("about 0 s left")


def run(method, seed, losses, errors):
    return {"method": method, "seed": seed, "train_loss": losses, "test_error": errors}


# Means and sample standard deviations by hand, of the last epochs. Test errors: baseline 4 and 6,
# clipped 5 and 5, regularized 3 and 4. Losses: 0.5 and 1.5, 0.25 and 0.75, 1 and 1.
RUNS = [
    run("baseline", 0, [2.0, 0.5], [9.0, 4.0]),
    run("clipped", 0, [2.0, 0.25], [9.0, 5.0]),
    run("regularized", 0, [2.0, 1.0], [8.0, 3.0]),
    run("baseline", 1, [4.0, 1.5], [7.0, 6.0]),
    run("clipped", 1, [4.0, 0.75], [8.0, 5.0]),
    run("regularized", 1, [2.0, 1.0], [8.0, 4.0]),
]
TABLE = """\
                test error (%)       training loss
baseline           5.00 ± 1.41     1.0000 ± 0.7071
clipped            5.00 ± 0.00     0.5000 ± 0.3536
regularized        3.50 ± 0.71     1.0000 ± 0.0000"""


def test_table():
    assert quickstart.format_table(quickstart.summarize(RUNS)) == TABLE


def test_figure_shows_mean_and_range():
    loss_axes, error_axes = quickstart.plot_learning_curves(RUNS).axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in error_axes.lines}
    assert curves == {
        "baseline": [[1, 8], [2, 5]],
        "clipped": [[1, 8.5], [2, 5]],
        "regularized": [[1, 8], [2, 3.5]],
    }
    baseline_band = loss_axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (baseline_band.min(), baseline_band.max()) == (0.5, 4.0)


def test_clipping_only_clips():
    """With a bound that no gradient reaches it is the baseline; with another it is not."""
    dataset = load_dataset("digits")

    def losses(method, clip_norm):
        settings = dataclasses.replace(TINY, regularizer=RegularizerSettings(clip_norm=clip_norm))
        return quickstart.train(settings, dataset, method, seed=0)["train_loss"]

    baseline = losses("baseline", 1.0)
    assert losses("clipped", 1e6) == pytest.approx(baseline, rel=1e-4)
    assert losses("clipped", 1e-6) != pytest.approx(baseline, rel=1e-4)


def test_results_are_printed_and_saved(tmp_path, trained, capsys):
    folder = tmp_path / "new" / "folder"
    quickstart.report(TINY, 2, folder)
    runs = [json.loads(line) for line in (folder / "runs.jsonl").open()]
    summary = quickstart.summarize(runs)
    assert quickstart.format_table(summary) in capsys.readouterr().out
    results = json.loads((folder / "results.json").read_text())
    assert results["seeds"] == 2
    assert results["settings"]["epochs"] == TINY.epochs
    assert results["regularized"] == summary["regularized"]
    assert (folder / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "learning_curves.pdf").read_bytes().startswith(b"%PDF")


def test_ctrl_c_ends_with_a_clear_line(tmp_path):
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "fisher_keras.experiments.quickstart", "--seeds=1000"),
            *("--width=0.05", "--train_size=20", "--epochs=1", f"--output_dir={tmp_path}"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not process.stdout.readline().startswith("[1/3000]"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    status, _, errors = finish(process)
    assert status == 130
    assert errors.splitlines()[-1] == f"Stopped. The finished runs are kept in {tmp_path}."
    assert "Traceback" not in errors
    assert json.loads((tmp_path / "runs.jsonl").read_text().splitlines()[0])["seed"] == 0
