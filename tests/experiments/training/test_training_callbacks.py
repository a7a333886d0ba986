"""The callbacks of a training: the plateaus against the rule worked out by hand, the backup."""

import keras
import numpy as np
import pytest

from fisher_keras.experiments.training import training_callbacks
from fisher_keras.experiments.training.training_callbacks import (
    AtomicBackup,
    PlateauSchedule,
    finished_epochs,
)


def learning_rates(losses, past_losses=()):
    """The rate after each epoch, of a model whose losses are given."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    schedule = PlateauSchedule(0.1, past_losses)
    schedule.set_model(model)
    schedule.on_train_begin()
    rates = []
    for epoch, loss in enumerate(losses, start=len(past_losses)):
        schedule.on_epoch_end(epoch, {"loss": loss})
        rates.append(float(model.optimizer.learning_rate))
    return rates


# 9 epochs without progress (0.89995 is too little of it), then 10, then 20.
LOSSES = [1.0, 0.9, *[0.89995] * 9, 0.8, *[0.85] * 10, *[0.81] * 10]
RATES = [*[0.1] * 21, *[0.01] * 10, 0.001]


def test_divides_by_10_after_10_epochs_without_progress():
    np.testing.assert_allclose(learning_rates(LOSSES), RATES, rtol=1e-5)


@pytest.mark.parametrize("done", [1, 12, 20, 23])
def test_goes_on_where_it_was(done):
    rest = learning_rates(LOSSES[done:], past_losses=LOSSES[:done])
    assert rest == learning_rates(LOSSES)[done:]


def test_the_backup_holds_the_states_of_seed_generators(tmp_path):
    def dropout_model():
        keras.utils.set_random_seed(3)
        model = keras.Sequential(
            [keras.Input((5,)), keras.layers.Dropout(0.5), keras.layers.Dense(4)]
        )
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", metrics=["mae"])
        return model

    x, y = np.random.default_rng(0).normal(size=(2, 32, 5)).astype(np.float32)
    fit = {"x": x, "y": y[:, :4], "shuffle": False, "verbose": 0}
    straight, first, second = dropout_model(), dropout_model(), dropout_model()
    straight.fit(**fit, epochs=4)
    first.fit(**fit, epochs=2, callbacks=[AtomicBackup(tmp_path)])
    assert finished_epochs(tmp_path) == 2
    second.fit(**fit, epochs=4, callbacks=[AtomicBackup(tmp_path)])
    for value, expected in zip(second.get_weights(), straight.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_backups_are_some_seconds_apart_and_the_last_epoch_has_one(tmp_path, monkeypatch):
    now, backups = [0.0], []
    monkeypatch.setattr(training_callbacks.time, "monotonic", lambda: now[0])

    def pass_time(epoch, logs):
        now[0] += 4.0

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callbacks = [
        keras.callbacks.LambdaCallback(on_epoch_end=pass_time),
        AtomicBackup(tmp_path, interval_s=10.0),
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: backups.append(finished_epochs(tmp_path))
        ),
    ]
    model.fit(np.ones((4, 2)), np.ones(4), epochs=7, callbacks=callbacks, verbose=0)
    assert backups == [0, 0, 3, 3, 3, 6, 7]
