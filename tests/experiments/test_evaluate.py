"""`bin/evaluate_metrics` on small networks and the embedded digits, as a user runs it."""

import json
import pathlib
import subprocess
import sys

import keras
import pytest

from fisher_keras.datasets import load_dataset
from fisher_keras.experiments.evaluate import comparison, evaluate
from fisher_keras.experiments.evaluation_config import EvaluationConfig
from fisher_keras.models import build_model

SCRIPT = pathlib.Path(__file__).parents[2] / "bin" / "evaluate_metrics"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two untrained networks, of which the second is ten times surer of what it says."""
    paths = []
    for name, factor in (("one", 1.0), ("other", 10.0)):
        keras.utils.set_random_seed(0)
        model = build_model("cnn", 10, load_dataset("digits").image_shape, width=0.05)
        model.layers[-1].set_weights([factor * w for w in model.layers[-1].get_weights()])
        paths.append(tmp_path_factory.mktemp(name) / "last.keras")
        model.save(paths[-1])
    return tuple(map(str, paths))


def config(models, output, **changes):
    usual = {"dataset": "digits", "num_samples": 6, "num_trials": 3}
    return EvaluationConfig(models=models, output=output, **usual | changes)


def test_models_are_compared_in_order_and_stopped_work_is_kept(models, tmp_path, capsys):
    reports = evaluate(config(models, str(tmp_path), num_trials=2))
    trials = sorted(tmp_path.glob("*.trials.jsonl"))
    before = [path.read_text() for path in trials]
    assert [path.name for path in trials] == [
        f"{pathlib.Path(m).parent.name}_last.trials.jsonl" for m in models
    ]
    more = evaluate(config(models, str(tmp_path)))
    for path, text in zip(trials, before, strict=True):
        assert path.read_text().startswith(text)
    for name, report in reports.items():
        assert [t.metrics for t in more[name].trials[:2]] == [t.metrics for t in report.trials]
    means = [report.metrics["log_determinant"].mean for report in more.values()]
    assert means == sorted(means)
    name = next(iter(more))
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["metrics"]["log_determinant"]["mean"] == pytest.approx(means[0])
    for figure in (f"{name}.spectrum.png", "comparison.png"):
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
    assert comparison(more) in capsys.readouterr().out


def test_script_tells_in_one_line_what_is_wrong(tmp_path):
    missing = tmp_path / "missing.keras"
    command = [sys.executable, SCRIPT, f"--model={missing}", "--dataset=digits"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f"evaluate_metrics: --model={missing}: there is no such file; expected a .keras file"
    )


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_model_is_one_line(models, tmp_path, damage):
    content = bytearray(pathlib.Path(models[0]).read_bytes())
    if damage == "changed":
        middle = len(content) // 2
        content[middle : middle + 200] = bytes(200)
    path = tmp_path / "model.keras"
    path.write_bytes({"cut": content[:-100], "changed": content, "empty": b""}[damage])
    with pytest.raises(ValueError, match=rf"--model={path} is no \.keras file, or only a part"):
        evaluate(config((str(path),), None))


def test_script_evaluates(models, tmp_path):
    command = [sys.executable, SCRIPT, f"--model={models[0]}", "--dataset=digits"]
    command += ["--num_samples=5", "--num_trials=2", "--metrics=log_determinant,robustness"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "log_determinant" in done.stdout
    assert "robustness" in done.stdout
    assert not list(tmp_path.iterdir())
