"""Records completed from saved networks, against what is computed by hand from the networks."""

import json
import shutil

import keras
import numpy as np
import pytest

from fisher_keras.classifier import Classifier
from fisher_keras.experiments.runs import completion
from fisher_keras.experiments.runs.completion import complete_metrics
from fisher_keras.experiments.runs.completion_options import CompletionOptions
from fisher_keras.experiments.runs.store import ExperimentStore
from fisher_keras.experiments.runs.trained_run import MetricSettings, execute, trained_run
from fisher_keras.experiments.training import provenance
from fisher_keras.experiments.training.config import TrainingConfig, resolve
from fisher_keras.experiments.training.data import load_training_data
from fisher_keras.fisher.gram import loss_gradient_gram
from fisher_keras.metrics.evaluation import evaluate_local_minimum
from fisher_keras.metrics.metric import DEFAULT_METRICS
from fisher_keras.metrics.trials import draw_sample

SCALE = 0.5


def training(seed):
    return TrainingConfig(
        dataset="digits",
        arch="tiny_network:tiny",
        train_size=60,
        validation_size=20,
        epochs=1,
        batch_size=20,
        augmentation="no-aug",
        label_smoothing=0.1,
        seed=seed,
    )


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A store of two runs, as the experiment leaves it."""
    store = ExperimentStore(tmp_path_factory.mktemp("store"))
    settings = MetricSettings(("log_determinant", "trace"), 5, 3, normalize_logits=SCALE)
    for seed in (0, 1):
        run = trained_run("test", training(seed), settings, "label")
        directory = store.write_definition(run, execute)
        store.finish(run, execute(run, directory, data_dir=None, download=False), 1.0)
    store.write_lines()
    return store


@pytest.fixture(scope="module")
def remembering():
    """`evaluate_local_minimum`, which evaluates the same network once for all tests."""
    reports = {}

    def evaluate(classifier, data, num_samples, num_trials, seed, *others, **options):
        weights = b"".join(w.numpy().tobytes() for w in classifier.model.weights)
        key = weights, classifier.normalize_logits, seed
        if key not in reports:
            reports[key] = evaluate_local_minimum(
                classifier, data, num_samples, num_trials, seed, *others, **options
            )
        return reports[key]

    return evaluate


@pytest.fixture
def clean(monkeypatch, remembering):
    """A tree without uncommitted changes."""
    monkeypatch.setattr(provenance, "git_revision", lambda: "abc")
    monkeypatch.setattr(completion, "evaluate_local_minimum", remembering)


@pytest.fixture
def store(executed, tmp_path, clean):
    """The part of it under version control: the records and the networks."""
    (tmp_path / "networks").mkdir()
    shutil.copy(executed.lines, tmp_path)
    for record in executed.records():
        network = executed.begun(record.key) / "training" / "last.keras"
        shutil.copy(network, tmp_path / "networks" / f"{record.key}.keras")
    return ExperimentStore(tmp_path)


def complete(store):
    complete_metrics(CompletionOptions(stores=(str(store.directory),), download=False))


def by_hand(model, seed, scale):
    """The mean ln det Xi: ln det xi less 2 sum ln(1 - p), over the trials of a run."""
    examples = load_training_data(resolve(training(seed))).examples("train")
    classifier, values = Classifier(model, normalize_logits=scale), []
    for trial in range(3):
        rows = draw_sample(examples.y, 5, seed=seed, trial=trial, stratified=False)
        logits = model(examples.x[rows]).numpy().astype(np.float64)
        if scale:
            logits /= scale * np.linalg.norm(logits, axis=1, keepdims=True)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        p = p[np.arange(5), examples.y[rows]]
        gram = loss_gradient_gram(classifier, examples.x[rows], examples.y[rows])
        log_determinant = np.linalg.slogdet(gram.matrix)[1] + 2 * np.sum(gram.log_scale)
        values.append(log_determinant - 2 * np.sum(np.log1p(-p)))
    return np.mean(values)


def test_metrics_are_added_and_nothing_else_changes(executed, store):
    complete(store)
    for before, after in zip(executed.records(), store.records(), strict=True):
        assert after.key == before.key
        model = keras.models.load_model(
            store.directory / "networks" / f"{after.key}.keras", compile=False
        )
        for name, scale in {"metrics": None, "normalized_metrics": SCALE}.items():
            found = after.result[name]
            assert set(found) == set(DEFAULT_METRICS)
            if after.seed or scale:  # A trace less.
                expected = pytest.approx(by_hand(model, after.seed, scale), rel=1e-4)
                assert found["log_determinant_margins"]["mean"] == expected
            assert {metric: found[metric] for metric in before.result[name]} == before.result[name]
        weights = np.concatenate([w.numpy().ravel() for w in model.trainable_weights])
        norm = after.result["metrics"]["log_weight_norm"]["mean"]
        assert norm == pytest.approx(np.log(np.linalg.norm(weights)), rel=1e-6)
        (added,) = after.result["added_metrics"]
        assert added["git_revision"] == "abc"
        assert set(added["names"]) == set(DEFAULT_METRICS) - set(before.result["metrics"])
        others = {"metrics", "normalized_metrics", "added_metrics"}
        assert {k: v for k, v in after.result.items() if k not in others} == {
            k: v for k, v in before.result.items() if k not in others
        }


def test_a_run_with_a_directory_is_completed_there_too(executed, tmp_path, clean):
    shutil.copytree(executed.directory, tmp_path / "copy")
    store = ExperimentStore(tmp_path / "copy")
    complete(store)
    record = store.records()[0]
    assert "added_metrics" in record.result
    line = (store.begun(record.key) / "record.json").read_text()
    assert line in store.lines.read_text().splitlines(keepends=True)


def test_what_was_completed_elsewhere_goes_before_the_directory(executed, store, tmp_path):
    complete(store)
    shutil.copytree(executed.directory / "runs", store.directory / "runs")
    assert all("added_metrics" in record.result for record in store.records())
    completed = store.lines.read_bytes()
    store.write_lines()
    assert store.lines.read_bytes() == completed


def test_what_was_interrupted_goes_on(store, remembering, monkeypatch):
    evaluated = []

    def interrupted(*arguments, **options):
        if len(evaluated) == 3:  # Of the first network, both evaluations; of the second, one.
            raise KeyboardInterrupt
        evaluated.append(arguments)
        return remembering(*arguments, **options)

    monkeypatch.setattr(completion, "evaluate_local_minimum", interrupted)
    with pytest.raises(KeyboardInterrupt):
        complete(store)
    assert ["added_metrics" in record.result for record in store.records()] == [True, False]
    monkeypatch.setattr(completion, "evaluate_local_minimum", remembering)
    first = store.records()[0]
    complete(store)
    assert ["added_metrics" in record.result for record in store.records()] == [True, True]
    assert store.records()[0] == first
    whole = store.lines.read_bytes()
    monkeypatch.setattr(completion, "evaluate_local_minimum", interrupted)
    complete(store)  # There is nothing left that could be interrupted.
    assert store.lines.read_bytes() == whole


def test_another_network_is_refused_and_the_others_are_completed(store):
    first = store.directory / "networks" / f"{store.records()[0].key}.keras"
    model = keras.models.load_model(first, compile=False)
    kernel = model.trainable_weights[-2]
    kernel.assign(1.01 * kernel)
    model.save(first)
    with pytest.raises(ValueError, match=r"1 records were not completed: run \w+ has .* for the"):
        complete(store)
    assert ["added_metrics" in record.result for record in store.records()] == [False, True]


def test_a_network_that_was_not_kept_or_is_damaged_is_named(store, capsys):
    first, second = (
        store.directory / "networks" / f"{record.key}.keras" for record in store.records()
    )
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"the network of run {first.stem} was not kept"):
        complete(store)
    assert f"not completed: {second} is no .keras file, or only a part" in capsys.readouterr().out


def test_other_data_are_refused(store):
    lines = store.lines.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record["result"]["data"] = "f00"
    store.lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(ValueError, match="is of the data f00, and those in --data_dir are"):
        complete(store)
    assert not any("added_metrics" in record.result for record in store.records())


def test_a_tree_with_uncommitted_changes_is_refused(store, monkeypatch):
    monkeypatch.setattr(provenance, "git_revision", lambda: "abc-dirty")
    with pytest.raises(ValueError, match="complete_metrics is for results, and the checkout has"):
        complete(store)


def test_a_store_without_runs_is_refused(tmp_path, clean):
    with pytest.raises(ValueError, match="holds no finished runs"):
        complete(ExperimentStore(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
