"""The examples run, and what they compute is what they say it is."""

import json
import math
import pathlib
import runpy

import matplotlib
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def test_own_model_and_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    ran = runpy.run_path(str(EXAMPLES / "own_model_and_data.py"))
    ran["plt"].close("all")
    printed = capsys.readouterr().out

    assert set(ran["reports"]) == {"plain", "regularized"}
    initial = ran["new_classifier"]()
    for name, report in ran["reports"].items():
        classifier = ran["classifiers"][name]
        # Both were trained, to a minimum.
        assert not np.array_equal(classifier.get_weights()[0], initial.get_weights()[0])
        assert report.train.num_errors == 0
        assert report.notes == ()
        predicted = classifier.predict(ran["x_test"], verbose=0).argmax(axis=1)
        error = np.mean(predicted != ran["y_test"])
        assert report.test.error == pytest.approx(error)
        assert error < 0.1
        assert f"{100 * error:13.2f}" in printed
        assert sum(np.isfinite(ran["histories"][name]["log_determinant"])) == 8

        # Theorem 1, with Equation 5 in it: W in the height cancels but for the volume's powers.
        L0, N = report.train.loss, 500
        height = (math.pi ** (1 / report.num_parameters) / (4 * math.pi * math.e)) * math.exp(
            report.metrics["log_determinant"].mean / 100
        )
        root = math.sqrt((2 * L0 + 2 * height + math.log(2 * N / 0.05)) / (N - 1))
        assert ran["bounds"][name] == pytest.approx(L0 + height + 2 * root)

        written = json.loads((tmp_path / f"own_model_and_data/report_{name}.json").read_text())
        assert written["metrics"]["trace"]["mean"] == report.metrics["trace"].mean
    for figure in ("training", "spectrum"):
        assert (tmp_path / f"own_model_and_data/{figure}.png").stat().st_size > 5000
