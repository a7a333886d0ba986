"""The examples run, and what they compute is what they say it is.

Their pages are left where `docs/generate` finds them, which need not execute them again.
"""

import json
import math
import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def run_example(monkeypatch, generator):
    import execute
    import gallery

    def run(name):
        script = EXAMPLES / f"{name}.py"
        with gallery.new_folder(ROOT, script) as folder:
            monkeypatch.chdir(folder)
            return execute.execute(script)

    return run


def test_own_model_and_data(run_example):
    ran = run_example("own_model_and_data")
    report = ran["report"]
    assert report.notes == ()
    assert report.train.num_errors == 0
    predicted = ran["classifier"].predict(ran["x_test"], verbose=0).argmax(axis=1)
    error = np.mean(predicted != ran["y_test"].argmax(axis=1))
    assert report.test.error == pytest.approx(error)
    assert error < 0.1
    assert sum(np.isfinite(ran["history"]["log_determinant"])) == 17

    # Theorem 1, with Equation 5 in it: W in the height cancels but for the volume's powers.
    L0, N = report.train.loss, 500
    height = (math.pi ** (1 / report.num_parameters) / (4 * math.pi * math.e)) * math.exp(
        report.metrics["log_determinant"].mean / 100
    )
    root = math.sqrt((2 * L0 + 2 * height + math.log(2 * N / 0.05)) / (N - 1))
    assert ran["bound"] == pytest.approx(L0 + height + 2 * root)

    written = json.loads(pathlib.Path("own_model_and_data/report.json").read_text())
    assert written["metrics"]["trace"]["mean"] == report.metrics["trace"].mean
    for figure in ("training", "spectrum"):
        assert pathlib.Path(f"own_model_and_data/{figure}.png").stat().st_size > 5000


def test_transformer(run_example):
    ran = run_example("transformer")
    for sequence, label in zip(ran["x_test"], ran["y_test"], strict=True):
        assert next(token for token in sequence if token < 4) == label
    assert ran["report"].notes == ()
    assert ran["report"].train.num_errors == 0
    assert ran["report"].test.error < 0.1
    traces = ran["history"]["fisher_trace"]
    assert traces[-1] < 0.1 * traces[0]


def test_wrong_labels(run_example):
    ran = run_example("wrong_labels")
    (_, labels), _ = ran["draw"](0)
    rows = np.random.default_rng(0).permutation(len(ran["images"]))[:200]
    wrong = labels != ran["digits"].target[rows]
    assert 45 <= wrong[:60].sum() <= 60  # A random label is right once in ten.
    assert not wrong[60:].any()
    # What the page says: each seed's error is lower, by more than 4 points in the mean.
    differences = ran["regularized"][:, -1] - ran["plain"][:, -1]
    assert (differences < 0).all()
    assert differences.mean() < -4
    assert ran["plain"].mean(axis=0).argmin() < 4


def test_small_batches(run_example):
    ran = run_example("small_batches")
    assert ran["low"] < 0 < ran["high"]
    assert ran["high"] - ran["low"] < 1
    assert (ran["plain"] != ran["regularized"]).any()


def test_fine_tuning(run_example):
    ran = run_example("fine_tuning")
    reports = ran["reports"]
    head, convolutions = 512 * 5 + 5, 9 * 16 + 9 * 16 * 32
    for (_, weights), report in reports.items():
        assert report.num_parameters == head + (convolutions if weights == "all" else 0)
        assert report.notes == ()
    frozen, thawed = (ran["models"][name].get_layer("backbone") for name in ("frozen", "thawed"))
    pretrained = ran["backbone"].get_weights()
    for weights, same in ((frozen.get_weights(), True), (thawed.get_weights(), False)):
        assert np.array_equal(weights[0], pretrained[0]) == same
        # The moments of batch normalization are those of the first task.
        np.testing.assert_array_equal(weights[3], pretrained[3])
    # More weights add to xi a matrix without negative eigenvalues.
    for name in ("frozen", "thawed"):
        gamma_hats = [reports[name, w].metrics["log_determinant"].mean for w in ("head", "all")]
        assert gamma_hats[0] < gamma_hats[1]


def test_watch_training(run_example):
    ran = run_example("watch_training")
    history = ran["history"]
    evaluated = np.isfinite(history["log_determinant"])
    assert list(np.flatnonzero(evaluated) + 1) == list(ran["written"]) == [1, *range(4, 61, 4)]
    parts = np.add(history["log_squared_norms"], history["log_determinant_cosines"])
    np.testing.assert_allclose(parts[evaluated], np.array(history["log_determinant"])[evaluated])
    known = np.array(history["log_determinant"])[evaluated]
    np.testing.assert_allclose(list(ran["written"].values()), known, rtol=1e-6)
    assert "fisher_log10_spectrum" in ran["events"].Tags()["tensors"]


def test_every_example_is_tested_and_a_page():
    pages = (EXAMPLES.parent / "mkdocs.yml").read_text()
    for script in EXAMPLES.glob("*.py"):
        assert f"test_{script.stem}" in globals()
        assert f"examples/{script.stem}.md" in pages
