"""Metrics during `fit`: in all logs, as evaluated by themselves, with no trace in the model."""

import copy
import csv
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import each_value, nightly

from fisher_keras import FisherRegularizedModel, callbacks
from fisher_keras.callbacks import FisherMetrics
from fisher_keras.classifier.wrapper import ClassifierWrapper
from fisher_keras.devices import Processes
from fisher_keras.fisher.gram_function import GramFunction
from fisher_keras.metrics import MetricSummary, evaluate_local_minimum

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data():
    generator = np.random.default_rng(0)
    return generator.normal(size=(40, 6)).astype(np.float32), np.arange(40) % 3


def classifier():
    keras.utils.set_random_seed(0)
    normalized = [keras.layers.Dense(5, "tanh"), keras.layers.BatchNormalization()]
    dropped = [keras.layers.Dropout(0.2), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((6,)), *normalized, *dropped])


def fit(model, callbacks, epochs=4):
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    keras.utils.set_random_seed(1)
    return model.fit(*data(), epochs=epochs, verbose=0, callbacks=callbacks).history


@pytest.mark.parametrize("regularized", [False, True])
def test_logs_have_what_the_evaluation_gives_and_training_is_the_same(regularized, tmp_path):
    def make():
        model = classifier()
        return FisherRegularizedModel(model, seed=0) if regularized else model

    fisher = FisherMetrics(
        data(), every=np.int64(2), num_samples=8, num_trials=2, log_dir=tmp_path / "tb"
    )
    observed, alone = make(), make()
    history = fit(observed, [fisher, keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))])
    expected = fit(alone, [])
    np.testing.assert_array_equal(history["loss"], expected["loss"])
    for a, b in zip(observed.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    report = evaluate_local_minimum(alone, data(), num_samples=8, num_trials=2, progress=False)
    for name in ("log_determinant", "trace", "spectral_radius"):
        values = history[name]
        assert [math.isnan(v) for v in values] == [False, False, True, False]
        assert values[-1] == pytest.approx(report.metrics[name].mean, rel=1e-6)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert float(rows[3]["log_determinant"]) == pytest.approx(history["log_determinant"][3])
    events = [
        value.tag
        for file in (tmp_path / "tb").iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
    ]
    assert events.count("fisher_log10_spectrum") == 3
    assert events.count("fisher_log_determinant") == 3  # Of no epoch between them.


class GivenValues(keras.callbacks.Callback):
    """Makes the evaluations of a callback give the values of a list, by epoch."""

    def __init__(self, monkeypatch, values):
        super().__init__()
        self.evaluate, self.values = callbacks.evaluate, values
        monkeypatch.setattr(callbacks, "evaluate", self.report)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def report(self, *args):
        report = self.evaluate(*args)
        report.metrics["trace"] = MetricSummary(self.values[self.epoch], math.nan, math.nan)
        return report


def test_callbacks_that_compare_epochs_see_those_that_were_evaluated(monkeypatch, tmp_path):
    """Keras' callbacks take the first value as the best: nothing is less than NaN."""
    given = GivenValues(monkeypatch, [5.0, 4.0, None, 2.0, None, 3.0, None, 2.5])
    fisher = FisherMetrics(data(), every=2, metrics=("trace",), num_samples=8)
    best = tmp_path / "{epoch}.keras"
    options = {"monitor": "trace", "mode": "min"}
    stopping = keras.callbacks.EarlyStopping(patience=4, **options)
    saving = keras.callbacks.ModelCheckpoint(best, save_best_only=True, **options)
    history = fit(classifier(), [given, fisher, saving, stopping], epochs=20)
    values = [5.0, 4.0, math.nan, 2.0, math.nan, 3.0, math.nan, 2.5]
    np.testing.assert_array_equal(history["trace"], values)
    assert sorted(file.stem for file in tmp_path.iterdir()) == ["1", "2", "4"]
    assert (stopping.best_epoch, stopping.stopped_epoch) == (3, 7)


@pytest.mark.parametrize("trained", ["not", nightly("to the end"), "to an error"])
def test_a_deep_copy_as_tuners_make(trained, tmp_path):
    fisher = FisherMetrics(
        data(), metrics=("trace",), num_samples=8, num_trials=2, log_dir=tmp_path
    )
    if trained == "to the end":
        fit(classifier(), [fisher], epochs=1)
    elif trained == "to an error":
        stopping = keras.callbacks.EarlyStopping("trace")  # It asks for a mode after an epoch.
        with pytest.raises(ValueError, match="mode"):
            fit(classifier(), [fisher, stopping], epochs=1)
    copied = copy.deepcopy(fisher)
    expected = fit(classifier(), [fisher], epochs=2)["trace"]
    assert fit(classifier(), [copied], epochs=2)["trace"] == expected


class Freezing(keras.callbacks.Callback):
    """Freezes the first layer after the second epoch."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            self.model.layers[0].trainable = False


def test_one_trace_for_all_epochs_but_none_that_is_stale(monkeypatch):
    """Metrics are of the weights that train at the moment."""
    made = []
    original = GramFunction.__init__

    def recording(self, *arguments):
        made.append(arguments)
        original(self, *arguments)

    monkeypatch.setattr(GramFunction, "__init__", recording)
    fisher = FisherMetrics(data(), metrics=("trace",), num_samples=8, num_trials=2)
    model = classifier()
    history = fit(model, [fisher])
    assert len(made) == 1
    frozen = fit(classifier(), [fisher, Freezing()])
    assert len(made) == 3
    assert frozen["trace"][:2] == history["trace"][:2]
    # `fit` goes on to train all weights: it has its own trace.
    assert frozen["loss"] == history["loss"]
    model.layers[0].trainable = False
    report = evaluate_local_minimum(
        model, data(), metrics=("trace",), num_samples=8, num_trials=2, progress=False
    )
    assert frozen["trace"][-1] == pytest.approx(report.metrics["trace"].mean, rel=1e-6)
    assert frozen["trace"][-1] < history["trace"][-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"every": 0}, "every must be"),
        ({"every": 1.5}, "every must be"),
        ({"num_samples": 41}, "num_samples=41 .* data of 40"),
        ({"chunk_size": 0}, "chunk_size must be"),
        ({"data": (data()[0], -data()[1])}, "labels of data"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        FisherMetrics(**{"data": data()} | change)


class Steps(keras.callbacks.Callback):
    """Counts steps."""

    taken = 0

    def on_train_batch_end(self, batch, logs=None):
        self.taken += 1


def no_change(model):
    return model


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (no_change, {"data": (data()[0], data()[1] + 1)}, "Given: label 3 for example 2"),
        (no_change, {"from_logits": "maybe"}, "from_logits must be"),
        (no_change, {"from_logits": False}, "no probabilities"),
        (no_change, {"normalize_logits": -1}, "normalize_logits must be"),
        (lambda m: setattr(m, "trainable", False), {}, "no trainable variables"),
        (lambda m: m.add(keras.layers.Activation("sigmoid")), {}, "sigmoid of 3 outputs"),
    ],
)
def test_what_does_not_fit_the_model_ends_fit_before_the_first_step(change, options, message):
    model, steps = classifier(), Steps()
    change(model)
    fisher = FisherMetrics(**{"data": data(), "num_samples": 8} | options)
    with pytest.raises(ValueError, match=message):
        fit(model, [fisher, steps], epochs=1)
    assert steps.taken == 0


def probabilities_by_hand(z):
    return keras.ops.exp(z) / keras.ops.sum(keras.ops.exp(z), axis=-1, keepdims=True)


BINARY = keras.losses.BinaryCrossentropy
SPARSE = keras.losses.SparseCategoricalCrossentropy


# Units and their activation, the loss that is compiled, and the option that says the same.
LOGITS_BY_LOSS = {
    "logits": (1, None, BINARY(from_logits=True), True),
    "loss": (1, keras.activations.hard_sigmoid, BINARY(), False),
    "name": (1, keras.activations.hard_sigmoid, "binary_crossentropy", False),
    "function": (1, "sigmoid", keras.losses.binary_crossentropy, "auto"),
    "sigmoid": (1, "sigmoid", BINARY(from_logits=True), "auto"),
    "list": (2, keras.activations.hard_sigmoid, [SPARSE(from_logits=True)], True),
    "by hand": (2, probabilities_by_hand, "sparse_categorical_crossentropy", False),
    "own": (2, probabilities_by_hand, lambda y, p: 0 * p[:, 0], "auto"),
}


@pytest.mark.parametrize(("case", "regularized"), each_value(LOGITS_BY_LOSS, [False, True]))
def test_the_compiled_loss_tells_logits(case, regularized):
    units, activation, loss, from_logits = case
    x, y = data()
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(units, activation)])
    fisher = FisherMetrics((x, y % 2), metrics=("trace",), num_samples=5)
    fitted = ClassifierWrapper(model) if regularized else model
    fitted.compile(keras.optimizers.SGD(0.0), loss)
    history = fitted.fit(x, y % 2, verbose=0, callbacks=[fisher]).history
    report = evaluate_local_minimum(
        model,
        (x, y % 2),
        5,
        1,
        metrics=("trace",),
        from_logits=from_logits,
        progress=False,
    )
    assert history["trace"] == [pytest.approx(report.metrics["trace"].mean, rel=1e-6)]


def test_options_are_those_of_the_evaluation():
    options = {"normalize_logits": 0.1, "stratified": True, "num_samples": 9, "num_trials": 2}
    model = classifier()
    fisher = FisherMetrics(data(), from_logits=True, chunk_size=4, **options)
    history = fit(model, [fisher], epochs=1)
    report = evaluate_local_minimum(model, data(), progress=False, **options)
    for name, summary in report.metrics.items():
        assert history[name] == [pytest.approx(summary.mean, rel=1e-4)]


def test_two_values_of_one_name_are_refused():
    callbacks = [FisherMetrics(data(), metrics=("trace",), num_samples=5) for _ in range(2)]
    with pytest.raises(ValueError, match=r"has it already.*Given: trace"):
        fit(classifier(), callbacks, epochs=1)


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_chief_of_several_processes_writes(tmp_path, monkeypatch, rank):
    processes = Processes(tf.distribute.get_strategy(), count=1, rank=rank)
    monkeypatch.setattr(Processes, "of", lambda strategy: processes)
    fisher = FisherMetrics(data(), metrics=("trace",), num_samples=5, log_dir=tmp_path / "log")
    fit(classifier(), [fisher], epochs=1)
    assert (tmp_path / "log").exists() == (rank == 0)
