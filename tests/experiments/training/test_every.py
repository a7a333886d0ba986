"""Backups and saved models at some epochs only."""

import keras
import numpy as np
import pytest
from test_training import assert_same_weights

from fisher_keras.experiments.training.train import TrainingConfig, train
from fisher_keras.experiments.training.training_callbacks import EveryNEpochs


class Recorded(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.calls = []

    def on_train_begin(self, logs=None):
        self.calls.append("begin")

    def on_epoch_end(self, epoch, logs=None):
        assert "loss" in logs
        self.calls.append(epoch)

    def on_train_end(self, logs=None):
        self.calls.append("end")


@pytest.mark.parametrize(
    ("epochs", "interval", "due"), [(7, 3, [2, 5, 6]), (4, 2, [1, 3]), (2, 5, [1]), (2, 1, [0, 1])]
)
def test_the_epochs_that_are_due_and_the_last(epochs, interval, due):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callback = Recorded()
    every = EveryNEpochs(interval, callback)
    model.fit(np.ones((4, 2)), np.ones(4), epochs=epochs, callbacks=[every], verbose=0)
    assert callback.calls == ["begin", *due, "end"]
    assert callback.model is model


class StopAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def test_a_stopped_run_goes_on_at_the_last_backup_to_the_same_end(tmp_path, capsys):
    def config(name, **changes):
        values = {"dataset": "digits", "width": 0.125, "train_size": 40, "batch_size": 20}
        values |= {"epochs": 5, "output_dir": str(tmp_path / name)}
        return TrainingConfig(**(values | changes))

    straight = train(config("straight"), quiet=True, save_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(config("stopped"), [StopAt(3)], quiet=True, save_every=2)
    assert [path.name for path in (tmp_path / "stopped" / "backup").iterdir()] == ["epoch_2"]
    resumed = train(config("stopped", resume=True), quiet=True, save_every=2)

    assert capsys.readouterr() == ("", "")
    assert resumed["resumed"][0]["after_epochs"] == 2
    assert resumed["test"] == straight["test"]
    for name in ("last.keras", "best.keras"):
        assert_same_weights(tmp_path / "stopped" / name, tmp_path / "straight" / name)
    # Finished, it is not trained again, and says nothing of it.
    assert train(config("stopped", resume=True), quiet=True) == resumed
    assert capsys.readouterr().out == ""
