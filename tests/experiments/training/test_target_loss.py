"""Training until a loss is reached, against the loss worked out by hand."""

import keras
import numpy as np
import pytest
from keras.callbacks import LambdaCallback
from marks import nightly
from test_training import assert_same_weights

from fisher_keras.experiments.training import train as training
from fisher_keras.experiments.training.data import load_training_data
from fisher_keras.experiments.training.train import TrainingConfig, train
from fisher_keras.experiments.training.training_callbacks import StopAtLoss

SMOOTHED = {"label_smoothing": 0.2, "confusion_size": 20, "target_loss": 1.3}


def config(output_dir, **changes):
    values = {"dataset": "digits", "width": 0.25, "train_size": 60, "batch_size": 7}
    values |= {"epochs": 20, "learning_rate": 0.02, "augmentation": "no-aug", "target_loss": 2.15}
    return TrainingConfig(**(values | changes), output_dir=str(output_dir))


def excess_loss(output_dir, settings):
    """Of the images trained on, as they are, in inference mode."""
    data = load_training_data(training.resolve(settings))
    data = data.examples("train", "confusion")
    model = keras.saving.load_model(output_dir / "last.keras", compile=False)
    z = model.predict(data.x, verbose=0).astype(float)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    smoothing = settings.label_smoothing
    labels = (1 - smoothing) * np.eye(10)[data.y] + smoothing / 10
    # The Kullback-Leibler divergence, 0 where the network gives the labels themselves.
    return np.mean(np.sum(labels * (np.log(np.where(labels > 0, labels, 1)) - log_p), axis=1))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a training without changes, and its record."""
    output_dir = tmp_path_factory.mktemp("straight")
    return output_dir, train(config(output_dir), quiet=True)


@pytest.mark.parametrize(
    "changes", [{}, SMOOTHED, nightly({"regularize": True, "num_sub_batches": 4})]
)
def test_training_ends_where_the_loss_is_reached(tmp_path, straight, changes):
    output_dir, record = straight
    if changes:
        output_dir = tmp_path
        record = train(config(output_dir, **changes), quiet=True)
    settings = config(output_dir, **changes)
    losses, steps = record["history"]["excess_loss"], record["history"]["steps"]
    assert excess_loss(output_dir, settings) == pytest.approx(losses[-1], rel=1e-4)
    assert losses[-1] <= settings.target_loss < min(losses[:-1])
    assert len(losses) < 20
    assert set(steps[:-1]) == {np.ceil((60 + changes.get("confusion_size", 0)) / 7)}
    assert steps[-1] <= steps[0]


def test_training_ends_where_the_error_is_reached(tmp_path):
    settings = config(tmp_path, target_loss=None, target_error=40.0)
    record = train(settings, quiet=True)
    errors = record["history"]["error_percent"]
    assert record["train"]["error_percent"] == pytest.approx(errors[-1], abs=1e-3)
    assert errors[-1] <= 40 < min(errors[:-1])
    with pytest.raises(ValueError, match="both end a training"):
        config(tmp_path, target_error=1.0)


@pytest.mark.parametrize("killed_at", ["an epoch", nightly("the evaluation")])
def test_killed_and_resumed_it_ends_at_the_same_step(tmp_path, monkeypatch, straight, killed_at):
    output_dir, expected = straight
    last = len(expected["history"]["loss"]) - 1

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    callbacks = []
    if killed_at == "an epoch":
        callbacks = [LambdaCallback(on_epoch_begin=lambda e, _: kill() if e == last else None)]
    with monkeypatch.context() as patch:
        if killed_at == "the evaluation":
            patch.setattr(training, "_evaluate", kill)
        with pytest.raises(Killed):
            train(config(tmp_path), callbacks, quiet=True)
    resumed = train(config(tmp_path, resume=True), quiet=True)
    for name in ("excess_loss", "steps"):
        assert resumed["history"][name] == expected["history"][name]
    assert resumed["test"] == expected["test"]
    assert_same_weights(tmp_path / "last.keras", output_dir / "last.keras")


def test_the_loss_is_measured_within_epochs_near_the_target_only():
    # At the end of the 1st and the 2nd epoch, then at every 3rd of the 30 steps.
    losses = iter([5.0, 0.9, 0.5, 0.4, 0.3, 0.09, 0.0])
    callback = StopAtLoss(0.1, lambda: next(losses), steps_per_epoch=30)
    callback.set_model(keras.Sequential([keras.layers.Dense(1)]))
    measured = []
    for epoch in range(3):
        callback.on_epoch_begin(epoch)
        for step in range(30):
            callback.on_train_batch_end(step)
            if callback.reached:
                break
        logs = {}
        callback.on_epoch_end(epoch, logs)
        measured.append(logs)
    assert [found["excess_loss"] for found in measured] == [5.0, 0.9, 0.09]
    assert [found["steps"] for found in measured] == [30, 30, 12]
    assert callback.model.stop_training
