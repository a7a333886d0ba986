"""`evaluate_metrics` on small networks and the embedded digits."""

import importlib
import json
import pathlib
import sys

import keras
import numpy as np
import pytest

from fisher_keras.datasets import load_dataset
from fisher_keras.experiments.evaluate import comparison, differences, evaluate
from fisher_keras.experiments.evaluation_config import EvaluationConfig
from fisher_keras.experiments.saved_models import load_models
from fisher_keras.models import build_model


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
    printed = capsys.readouterr().out
    assert comparison(more) in printed
    assert differences(more) in printed


def test_a_model_that_is_not_there_is_one_line(tmp_path, run_command):
    missing = tmp_path / "missing.keras"
    status, _, errors = run_command("evaluate_metrics", f"--model={missing}", "--dataset=digits")
    assert status == 1
    assert errors == (
        f"evaluate_metrics: --model={missing}: there is no such file; expected a .keras file\n"
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


OWN_LAYERS = """
import keras

class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x

@keras.saving.register_keras_serializable("own")
class Thrice(keras.layers.Layer):
    def call(self, x):
        return 3 * x
"""


@pytest.mark.parametrize("name", ["Twice", "Thrice"])
def test_a_layer_of_the_users_own_takes_its_module(tmp_path, monkeypatch, name, run_command):
    """Registered with Keras or not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"layers_{name}.py").write_text(OWN_LAYERS)
    monkeypatch.syspath_prepend(tmp_path)
    layer = getattr(importlib.import_module(f"layers_{name}"), name)
    inputs = keras.Input(load_dataset("digits").image_shape)
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(layer()(inputs)))
    keras.Model(inputs, outputs).save("own.keras")
    # As it is in a new process.
    monkeypatch.delitem(sys.modules, f"layers_{name}")
    monkeypatch.delitem(keras.saving.get_custom_objects(), f"own>{name}", raising=False)
    flags = ["--model=own.keras", "--dataset=digits", "--num_samples=4", "--num_trials=2"]
    assert run_command("evaluate_metrics", *flags) == (
        1,
        "",
        f"evaluate_metrics: --model=own.keras cannot be loaded: it uses {name}, which is no part "
        "of Keras; give --import=MODULE, the name of the Python module that defines it\n",
    )
    for module in ("no_such_module", f"layers_{name}.py"):
        status, _, errors = run_command("evaluate_metrics", *flags, f"--import={module}")
        assert status == 1
        assert errors.startswith(f"evaluate_metrics: --import={module}: there is no such module")
    status, output, _ = run_command("evaluate_metrics", *flags, f"--import=layers_{name}")
    assert status == 0
    assert "log_determinant" in output


def test_a_module_that_lacks_another_one_is_told_apart(tmp_path, monkeypatch):
    (tmp_path / "lacking.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        load_models([], ["lacking"])


def test_what_keras_says_in_many_lines_is_one(tmp_path):
    inputs = keras.Input((8, 8, 1))
    lambdas = keras.layers.Lambda(lambda x: 2 * x)(inputs)
    keras.Model(inputs, keras.layers.Flatten()(lambdas)).save(tmp_path / "lambda.keras")
    with pytest.raises(ValueError, match="Lambda layer, which is Python code") as error:
        load_models([str(tmp_path / "lambda.keras")])
    assert len(str(error.value)) < 300


def test_images_of_another_shape_are_named(tmp_path):
    path = tmp_path / "model.keras"
    inputs = keras.Input((4, 4, 3))
    keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(inputs))).save(path)
    message = (
        rf"--model={path} takes inputs of shape \(4, 4, 3\), but the images of --dataset=digits "
        r"have the shape \(\d+, \d+, 1\)"
    )
    with pytest.raises(ValueError, match=message):
        evaluate(config((str(path),), None))


def test_smoothed_labels_are_those_of_the_trainings(models):
    """The excess loss is the loss less the entropy of the labels."""
    smooth = next(iter(evaluate(config(models[:1], None, label_smoothing=0.1)).values()))
    hard = next(iter(evaluate(config(models[:1], None)).values()))
    labels = np.full(10, 0.01)
    labels[0] += 0.9
    entropy = -np.sum(labels * np.log(labels))
    assert smooth.train.loss - smooth.train.excess_loss == pytest.approx(entropy, rel=1e-5)
    assert hard.train.loss == pytest.approx(hard.train.excess_loss)
    assert smooth.metrics == hard.metrics  # They are of hard labels.
    assert [note for note in smooth.notes if "above the least" in note]
    assert smooth.test == hard.test


def test_without_an_output_folder_nothing_is_written(models, tmp_path, monkeypatch, run_command):
    monkeypatch.chdir(tmp_path)
    flags = [f"--model={models[0]}", "--dataset=digits", "--num_samples=5", "--num_trials=2"]
    status, output, errors = run_command(
        "evaluate_metrics", *flags, "--metrics=log_determinant,robustness"
    )
    assert status == 0, errors
    assert "log_determinant" in output
    assert "robustness" in output
    assert not list(tmp_path.iterdir())


def test_differences_are_of_the_same_trials(models):
    reports = evaluate(config(models, None, metrics=("log_determinant", "trace")))
    (first, base), (name, other) = reports.items()
    header, _, line = differences(reports).splitlines()
    assert header == f"| less {first} | log_determinant | trace |"
    cells = [name]
    for metric in ("log_determinant", "trace"):
        pairs = [
            a.metrics[metric] - b.metrics[metric]
            for a, b in zip(other.trials, base.trials, strict=True)
        ]
        error = np.std(pairs, ddof=1) / np.sqrt(len(pairs))
        cells.append(f"{np.mean(pairs):+.5g} ± {error:.2g}")
    assert line == f"| {' | '.join(cells)} |"
    # An infinite one is a dash.
    base.trials[0].metrics["log_determinant"] = -np.inf
    assert differences(reports).splitlines()[2] == f"| {name} | – | {cells[2]} |"


TASK = """
import keras
import numpy as np
import tensorflow as tf


class Cropped(keras.layers.Layer):
    def call(self, x, y=None, sample_weight=None):
        return keras.utils.pack_x_y_sample_weight(tf.strings.to_number(x), y, sample_weight)


@keras.saving.register_keras_serializable("texts")
class Task(keras.Model):
    def __init__(self):
        inputs = keras.Input((4,))
        super().__init__(inputs, keras.layers.Dense(3)(inputs))
        self.preprocessor = Cropped()

    def preprocess_samples(self, x, y=None, sample_weight=None):
        return self.preprocessor(x, y=y, sample_weight=sample_weight)

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls()

    def fit(self, x=None, y=None, **kwargs):
        return super().fit(x.map(self.preprocess_samples), **kwargs)

    def predict(self, x, **kwargs):
        return super().predict(self.preprocess_samples(x), **kwargs)


def load_data():
    x = np.random.default_rng(0).normal(size=(40, 4)).round(3).astype(str)
    return (x[:30], np.arange(30) % 3), (x[30:], np.arange(10) % 3)
"""


def test_a_classifier_with_a_preprocessor_takes_a_users_own_data(
    tmp_path, monkeypatch, run_command
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts_of_a_user.py").write_text(TASK)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("texts_of_a_user")
    module.Task().save("a.keras")
    module.Task().save("b.keras")
    flags = ["--model=a.keras", "--model=b.keras", "--import=texts_of_a_user"]
    flags += ["--num_samples=4", "--num_trials=2", "--metrics=log_determinant"]
    status, output, errors = run_command("evaluate", *flags, "--dataset=texts_of_a_user:load_data")
    assert status == 0, errors
    x, y = module.load_data()[1]
    for name in "ab":
        model = keras.models.load_model(f"{name}.keras")
        wrong = (model(x.astype("float32")).numpy().argmax(axis=1) != y).sum()
        assert f"error {10.0 * wrong:.2f} % ({wrong} of 10)" in output
    assert "| less " in output
    status, _, errors = run_command(
        "evaluate", *flags, "--dataset=texts_of_a_user:load_data", "--train_size=5"
    )
    assert status == 1
    assert "--train_size is not for --dataset=texts_of_a_user:load_data" in errors


def test_a_model_on_hugging_face_is_read_by_keras(monkeypatch):
    read = []
    monkeypatch.setattr(keras.models, "load_model", lambda path, **_: read.append(path))
    assert list(load_models(["hf://someone/net-v1.5", "hf://someone/other"])) == [
        "net-v1.5",
        "other",
    ]
    assert read == ["hf://someone/net-v1.5", "hf://someone/other"]


def test_hugging_face_out_of_reach_is_one_line(run_command, monkeypatch):
    def no_network(path, **_):
        raise FileNotFoundError("Got: ConnectError\nCheck your internet connection.")

    monkeypatch.setattr(keras.models, "load_model", no_network)
    status, _, errors = run_command("evaluate", "--model=hf://someone/net", "--dataset=digits")
    assert status == 1
    assert errors == (
        "evaluate: --model=hf://someone/net cannot be read from Hugging Face: check its name and "
        "the network, or give a .keras file (Got: ConnectError Check your internet connection.)\n"
    )
