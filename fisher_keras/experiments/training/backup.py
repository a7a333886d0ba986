"""The state after each epoch, from which a killed run goes on as if nothing had happened."""

import errno
import os
import pathlib
import re
import shutil

import keras
import numpy as np

_SEEDS = "seeds.npz"


def finished_epochs(directory: pathlib.Path) -> int:
    """Returns how many epochs the backup in `directory` stands after; 0 if there is none."""
    matches = [re.fullmatch(r"epoch_(\d+)", path.name) for path in directory.glob("epoch_*")]
    return max((int(match[1]) for match in matches if match), default=0)


class AtomicBackup(keras.callbacks.Callback):
    """Keras' `BackupAndRestore`, safe against a kill at any moment and with random states.

    Keras overwrites its backup in place, the weights first and the epoch's number after them, and
    its weights files leave out the states of seed generators (dropout). Here each backup goes to
    a draft, the seed generators' states beside it, and the draft is renamed to `epoch_<n>` once
    it is whole. Only then is the older one removed.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        """Makes the callback.

        Args:
            directory: for the backups alone.
        """
        super().__init__()
        self._directory = directory

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Restores the last whole backup, if there is one."""
        epochs = finished_epochs(self._directory)
        if epochs:
            backup = self._backup(epochs)
            self._keras_backup(backup).on_train_begin(logs)
            with np.load(backup / _SEEDS) as states:
                for index, variable in enumerate(_seed_variables(self.model)):
                    variable.assign(states[str(index)])

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Backs up the state after the epoch."""
        draft = self._directory / "draft"
        if draft.exists():
            shutil.rmtree(draft)
        draft.mkdir(parents=True)
        _require_space(draft, self.model)
        self._keras_backup(draft).on_epoch_end(epoch, logs)
        states = enumerate(_seed_variables(self.model))
        np.savez(draft / _SEEDS, **{str(index): state.numpy() for index, state in states})
        whole = self._backup(epoch + 1)
        os.rename(draft, whole)
        for older in self._directory.glob("epoch_*"):
            if older != whole:
                shutil.rmtree(older)

    def _backup(self, epochs: int) -> pathlib.Path:
        return self._directory / f"epoch_{epochs}"

    def _keras_backup(self, directory: pathlib.Path) -> keras.callbacks.BackupAndRestore:
        backup = keras.callbacks.BackupAndRestore(str(directory), delete_checkpoint=False)
        backup.set_model(self.model)
        return backup


def _seed_variables(model: keras.Model) -> list[keras.Variable]:
    """Returns the states of the model's seed generators."""
    others = {id(variable) for variable in [*model.weights, *model.metrics_variables]}
    return [variable for variable in model.variables if id(variable) not in others]


def _require_space(directory: pathlib.Path, model: keras.Model) -> None:
    """Raises an `OSError` unless a backup fits: h5py can crash the process on a full disk."""
    variables = [*model.variables, *model.optimizer.variables]
    # A variable's own bytes, and what HDF5 adds for each.
    needed = sum(variable.numpy().nbytes + 4096 for variable in variables)
    if shutil.disk_usage(directory).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
