"""Callbacks of a training: divergence, learning rate, progress, files."""

import datetime
import errno
import math
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tqdm

from fisher_keras.files import replacing

_PLATEAU_FACTOR = 0.1
# The paper does not say what its plateaus are. Half as many epochs took chance for a plateau in
# trainings of few steps an epoch, and the training losses of their ends were far apart.
_PLATEAU_PATIENCE = 10
# Times the target of `StopAtLoss`: from one epoch to the next, a loss rarely falls so far.
_NEAR = 10
_CHECKS_PER_EPOCH = 10
_PROGRESS_VALUES = (
    *("loss", "accuracy", "val_loss", "val_accuracy", "fisher_trace"),
    *("excess_loss", "error_percent"),
)
_SEEDS = "seeds.npz"


class TrainingDivergedError(ArithmeticError):
    """The training loss is no longer a finite number."""


class StopWhenDiverged(keras.callbacks.Callback):
    """Raises `TrainingDivergedError` at the first loss that is not finite."""

    def __init__(
        self,
        remedy: str = "start again with a lower --learning_rate (or --beta, with --regularize) "
        "and another --output_dir",
    ) -> None:
        """Makes the callback.

        Args:
            remedy: What to do then, for the error.
        """
        super().__init__()
        self._remedy = remedy

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Remembers the epoch, for the message."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Looks at the loss of the epoch so far."""
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise TrainingDivergedError(
                f"the training loss became {loss} in epoch {self._epoch + 1}, step {batch + 1}: "
                f"{self._remedy}"
            )


class PlateauSchedule(keras.callbacks.ReduceLROnPlateau):
    """Section 7.1's learning rate: divided by 10 whenever the training loss plateaus.

    Keras' `ReduceLROnPlateau`, which also goes on where a resumed training was. The loss is on a
    plateau when it has not become lower by 1e-4 in 10 epochs.
    """

    def __init__(self, learning_rate: float, past_losses: Sequence[float] = ()) -> None:
        """Makes the callback.

        Args:
            learning_rate: The initial learning rate.
            past_losses: The training loss of each epoch that was finished before.
        """
        super().__init__(monitor="loss", factor=_PLATEAU_FACTOR, patience=_PLATEAU_PATIENCE)
        self._learning_rate = learning_rate
        self._past_losses = past_losses

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Repeats the decisions of the epochs that were finished before."""
        super().on_train_begin(logs)
        # From the initial one: the decisions are repeated from the start, and each divides it.
        self.model.optimizer.learning_rate = self._learning_rate
        for epoch, loss in enumerate(self._past_losses):
            self.on_epoch_end(epoch, {"loss": loss})


class StopAtLoss(keras.callbacks.Callback):
    """Ends the training as soon as a loss that is measured beside it is low enough.

    It is measured after each epoch and, once it is near, several times within: what an epoch
    near the target changes is then small. Epochs' logs get it by its name, and the number of
    `steps`: it must come before the callbacks that write them.
    """

    def __init__(
        self,
        target: float,
        measure: Callable[[], float],
        steps_per_epoch: int,
        past_losses: Sequence[float] = (),
        name: str = "excess_loss",
    ) -> None:
        """Makes the callback.

        Args:
            target: The loss to end at.
            measure: Returns the loss at the weights of the moment.
            steps_per_epoch: Training steps an epoch.
            past_losses: The loss of each epoch that was finished before.
            name: Name of the loss, or of what else is measured, in the logs.
        """
        super().__init__()
        self._target, self._name = target, name
        self._measure = measure
        self._interval = math.ceil(steps_per_epoch / _CHECKS_PER_EPOCH)
        self._loss = past_losses[-1] if past_losses else math.inf

    @property
    def reached(self) -> bool:
        """True if the loss measured last was low enough."""
        return self._loss <= self._target

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Decides whether this epoch is near the target."""
        self._near = self._loss <= _NEAR * self._target

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Measures the loss if it is near the target."""
        self._steps = batch + 1
        if self._near and self._steps % self._interval == 0:
            self._check()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Measures the loss, unless it was low enough."""
        if not self.reached:
            self._check()
        # In place, as the callbacks after this one get the same dict.
        logs |= {self._name: self._loss, "steps": self._steps}

    def _check(self) -> None:
        self._loss = self._measure()
        self.model.stop_training = self.reached


class Progress(keras.callbacks.Callback):
    """Prints a line an epoch with the time left and, on a terminal, a bar of the whole run.

    It also adds the epoch's `seconds`, validation included, to the logs: it must come before the
    callbacks that write them, and after those that measure.
    """

    def __init__(self, first_epoch: int, quiet: bool) -> None:
        """Makes the callback.

        Args:
            first_epoch: Epochs that were finished before.
            quiet: Whether it prints nothing.
        """
        super().__init__()
        self._first_epoch = first_epoch
        self._quiet = quiet

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Starts the bar."""
        self._start = time.monotonic()
        self._bar = tqdm.tqdm(
            total=self.params["epochs"] * self.params["steps"],
            initial=self._first_epoch * self.params["steps"],
            unit="step",
            smoothing=0,  # The mean speed: validation makes the present one jump.
            leave=False,
            dynamic_ncols=True,
            disable=self._quiet or None,  # None: where there is no terminal.
        )

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Starts the epoch's clock."""
        self._epoch_start = time.monotonic()
        self._bar.set_description(f"epoch {epoch + 1}/{self.params['epochs']}")

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Moves the bar."""
        self._bar.update()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Adds the seconds to the logs and prints the epoch's line."""
        now = time.monotonic()
        logs["seconds"] = now - self._epoch_start
        if self._quiet:
            return
        epochs, done = self.params["epochs"], epoch + 1 - self._first_epoch
        left = (now - self._start) / done * (epochs - epoch - 1)
        values = "  ".join(f"{name} {logs[name]:.4f}" for name in _PROGRESS_VALUES if name in logs)
        tqdm.tqdm.write(
            f"epoch {epoch + 1:>{len(str(epochs))}}/{epochs}  {values}  "
            f"{logs['seconds']:.1f} s, {datetime.timedelta(seconds=round(left))} left"
        )

    def on_train_end(self, logs: dict | None = None) -> None:
        """Removes the bar."""
        self._bar.close()


class PlainModelCheckpoint(keras.callbacks.ModelCheckpoint):
    """Keras' `ModelCheckpoint` of the plain classifier inside a `FisherRegularizedModel`.

    The file loads without this package. It is replaced in one go: a kill leaves the old one whole.
    """

    def __init__(self, plain_model: keras.Model, path: pathlib.Path, **options: Any) -> None:
        """Makes the callback.

        Args:
            plain_model: The model to save.
            path: The file, `*.keras`.
            **options: Arguments of `keras.callbacks.ModelCheckpoint`.
        """
        super().__init__(str(path), **options)
        self._atomic = _AtomicallySaved(plain_model)

    def set_model(self, model: keras.Model) -> None:
        """Saves the plain model, whichever model is trained."""
        super().set_model(self._atomic)


class _AtomicallySaved:
    """A model whose `save` leaves the old file alone until the new one is whole."""

    def __init__(self, model: keras.Model) -> None:
        self._model = model

    def save(self, path: str, overwrite: bool) -> None:
        with replacing(pathlib.Path(path)) as part:
            self._model.save(part, overwrite=overwrite)


def finished_epochs(directory: pathlib.Path) -> int:
    """Returns how many epochs the backup in `directory` stands after; 0 if there is none."""
    matches = [re.fullmatch(r"epoch_(\d+)", path.name) for path in directory.glob("epoch_*")]
    return max((int(match[1]) for match in matches if match), default=0)


class AtomicBackup(keras.callbacks.Callback):
    """Keras' `BackupAndRestore`, with the states of seed generators and safe against kills.

    Keras overwrites its backup in place, the weights first and the epoch's number after them, and
    its weights files leave out the states of seed generators (dropout). Here each backup goes to
    a draft, the seed generators' states beside it, and the draft is renamed to `epoch_<n>` once
    it is whole. Only then is the older one removed.
    """

    def __init__(
        self, directory: pathlib.Path, read_only: bool = False, interval_s: float = 0.0
    ) -> None:
        """Makes the callback.

        Args:
            directory: A folder for the backups alone.
            read_only: Whether it only restores, as another process writes.
            interval_s: Seconds that pass at least from one backup to the next, where a backup may
                take longer than an epoch. The last epoch is always backed up.
        """
        super().__init__()
        self._directory = directory
        self._read_only = read_only
        self._interval_s = interval_s

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Restores the last whole backup, if there is one."""
        self._last = time.monotonic()
        epochs = finished_epochs(self._directory)
        if epochs:
            backup = self._backup(epochs)
            self._keras_backup(backup).on_train_begin(logs)
            with np.load(backup / _SEEDS) as states:
                for index, variable in enumerate(_seed_variables(self.model)):
                    variable.assign(states[str(index)])

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Backs up the state after the epoch, if it is time to."""
        is_due = time.monotonic() >= self._last + self._interval_s
        if self._read_only or not (is_due or epoch + 1 == self.params["epochs"]):
            return
        draft = self._directory / "draft"
        # It is what a killed process has left, and nobody knows how much of it is there.
        if draft.exists():
            shutil.rmtree(draft)
        draft.mkdir(parents=True)
        _require_space(draft, self.model)
        self._keras_backup(draft).on_epoch_end(epoch, logs)
        states = enumerate(_seed_variables(self.model))
        np.savez(draft / _SEEDS, **{str(index): state.numpy() for index, state in states})
        whole = self._backup(epoch + 1)
        os.rename(draft, whole)
        # A kill before this is done leaves two, of which `finished_epochs` takes the later one.
        for older in self._directory.glob("epoch_*"):
            if older != whole:
                shutil.rmtree(older)
        self._last = time.monotonic()

    def _backup(self, epochs: int) -> pathlib.Path:
        return self._directory / f"epoch_{epochs}"

    def _keras_backup(self, directory: pathlib.Path) -> keras.callbacks.BackupAndRestore:
        backup = keras.callbacks.BackupAndRestore(str(directory), delete_checkpoint=False)
        backup.set_model(self.model)
        return backup


def _seed_variables(model: keras.Model) -> list[keras.Variable]:
    """Returns the states of the model's seed generators."""
    # By identity: variables compare by their values, element by element.
    others = {id(variable) for variable in [*model.weights, *model.metrics_variables]}
    return [variable for variable in model.variables if id(variable) not in others]


def _require_space(directory: pathlib.Path, model: keras.Model) -> None:
    """Raises an `OSError` unless a backup fits: h5py can crash the process on a full disk."""
    variables = [*model.variables, *model.optimizer.variables]
    # A variable's own bytes, and what HDF5 adds for each.
    needed = sum(variable.numpy().nbytes + 4096 for variable in variables)
    if shutil.disk_usage(directory).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
