"""Tests that need two devices; test_distribution.py runs them where a process has two CPUs."""

import math
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from fisher_keras.callbacks import FisherMetrics
from fisher_keras.classifier import Classifier
from fisher_keras.fisher.gram_function import GramFunction
from fisher_keras.metrics import METRICS, evaluate_local_minimum, evaluation
from fisher_keras.metrics import evaluation_options as options

DEVICES = ("CPU:0", "CPU:1")
X = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
Y = np.arange(40) % 3


def classifier():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3),
        ]
    )


def evaluate(model, **kwargs):
    kwargs = {"num_samples": 8, "num_trials": 5, "metrics": METRICS, "progress": False} | kwargs
    return evaluate_local_minimum(model, (X, Y), **kwargs)


def assert_equal_trials(report, expected):
    assert report.evaluation == expected.evaluation
    for trial, other in zip(report.trials, expected.trials, strict=True):
        assert trial.index == other.index
        np.testing.assert_allclose(
            [trial.metrics[name] for name in METRICS],
            [other.metrics[name] for name in METRICS],
            rtol=1e-4,
        )
        np.testing.assert_allclose(trial.log_spectrum, other.log_spectrum, atol=1e-4)


@pytest.fixture
def strategy():
    return tf.distribute.MirroredStrategy(DEVICES)


@pytest.fixture
def mirrored(strategy):
    with strategy.scope():
        return classifier()


@pytest.fixture(scope="module")
def expected():
    """The report without any strategy."""
    return evaluate(classifier())


@pytest.fixture
def calls(monkeypatch):
    """Returns the devices on which Gram matrices were computed so far."""
    devices = []
    original = evaluation.loss_gradient_gram

    def recording(*args, **kwargs):
        gram = original(*args, **kwargs)
        devices.append(gram.matrix.device[-5:])
        return gram

    monkeypatch.setattr(evaluation, "loss_gradient_gram", recording)
    return devices


def test_a_strategy_in_scope_changes_no_result(strategy, expected, calls, tmp_path):
    with strategy.scope():
        report = evaluate(classifier(), trials_path=tmp_path / "trials.jsonl")
    assert_equal_trials(report, expected)
    assert sorted(calls) == ["CPU:0", "CPU:0", "CPU:0", "CPU:1", "CPU:1"]
    # The file of two replicas is that of one device.
    again = evaluate(classifier(), trials_path=tmp_path / "trials.jsonl")
    assert_equal_trials(again, report)
    assert len(calls) == 5


def test_a_model_made_in_a_scope_is_evaluated_on_its_replicas(
    mirrored, expected, calls, monkeypatch
):
    """Each of them traces once for a classifier."""
    made = []
    original = GramFunction.__init__

    def recording(self, *arguments):
        made.append(arguments)
        original(self, *arguments)

    monkeypatch.setattr(GramFunction, "__init__", recording)
    traced = Classifier(mirrored)
    for _ in range(2):
        assert_equal_trials(evaluate(traced), expected)
    assert set(calls) == set(DEVICES)
    assert len(made) == len(DEVICES)


@pytest.mark.nightly
def test_a_model_made_outside_of_the_scope_it_is_evaluated_in(strategy, expected, calls):
    model = classifier()
    with strategy.scope():
        assert_equal_trials(evaluate(model), expected)
    assert set(calls) == set(DEVICES)


def test_where_copies_differ_the_first_one_is_evaluated(mirrored, expected, calls):
    """It is the one that is saved; Keras' own fit leaves each replica its moving statistics."""
    mean = mirrored.layers[1].moving_mean.value
    mean.values[1].assign(mean.values[0] + 1)
    assert_equal_trials(evaluate(mirrored), expected)
    assert set(calls) == {"CPU:0"}


def test_replicas_use_their_own_copies_of_the_weights(mirrored, expected, monkeypatch):
    monkeypatch.setattr(evaluation, "replica_devices", lambda *_: DEVICES)
    kernel = mirrored.layers[-1].kernel.value
    kernel.values[1].assign(3 * kernel.values[0])
    differs = [
        trial.metrics["trace"] != pytest.approx(other.metrics["trace"], rel=1e-3)
        for trial, other in zip(evaluate(mirrored).trials, expected.trials, strict=True)
    ]
    assert differs == [False, True, False, True, False]


@pytest.mark.nightly
def test_trials_run_at_the_same_time(mirrored, monkeypatch):
    both_are_there = threading.Barrier(2, timeout=60)
    original = evaluation.loss_gradient_gram

    def waiting(*args, **kwargs):
        both_are_there.wait()
        return original(*args, **kwargs)

    monkeypatch.setattr(evaluation, "loss_gradient_gram", waiting)
    assert len(evaluate(mirrored, num_trials=4).trials) == 4


def test_a_stopped_evaluation_goes_on_with_or_without_replicas(
    mirrored, expected, calls, tmp_path, monkeypatch
):
    path = tmp_path / "trials.jsonl"
    original = options.draw_sample

    def stopping(labels, num_samples, seed, trial, stratified):
        if trial == 3 and threading.current_thread() is not threading.main_thread():
            raise KeyboardInterrupt
        return original(labels, num_samples, seed, trial, stratified)

    with monkeypatch.context() as patch:
        patch.setattr(options, "draw_sample", stopping)
        with pytest.raises(KeyboardInterrupt):
            evaluate(mirrored, trials_path=path, num_trials=4)
    assert len(path.read_text().splitlines()) == 1 + 3

    evaluate(classifier(), trials_path=path, num_trials=4)
    assert len(calls) == 4
    assert_equal_trials(evaluate(mirrored, trials_path=path), expected)
    assert len(calls) == 5


def test_an_error_on_a_replica_is_raised(mirrored):
    mirrored.layers[0].kernel.assign(np.full((6, 5), np.nan))
    with pytest.raises(ValueError, match="outputs are NaN"):
        evaluate(mirrored)
    with pytest.raises(ValueError, match="examples have no finite gradient"):
        evaluate(mirrored, num_samples=len(X))  # All are on a replica.


def test_metrics_during_fit(strategy):
    with strategy.scope():
        model = classifier()
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    fisher = FisherMetrics((X, Y), num_samples=8, num_trials=2, metrics=("trace",))
    history = model.fit(X, Y, batch_size=20, epochs=2, callbacks=[fisher], verbose=0).history
    assert all(math.isfinite(trace) for trace in history["trace"])
    report = evaluate(model, num_trials=2, metrics=("trace",))
    assert history["trace"][-1] == pytest.approx(report.metrics["trace"].mean)


def test_other_strategies_of_several_replicas_are_refused():
    with tf.distribute.experimental.CentralStorageStrategy(DEVICES).scope():
        model = classifier()
        with pytest.raises(ValueError, match=r"Given: a CentralStorageStrategy\w* of 2 replicas"):
            evaluate(model)


@pytest.mark.nightly
def test_a_strategy_of_one_replica_needs_no_thread(expected):
    with tf.distribute.MirroredStrategy(DEVICES[1:]).scope():
        model = classifier()
        threads = threading.active_count()
        assert_equal_trials(evaluate(model), expected)
    assert threading.active_count() == threads
