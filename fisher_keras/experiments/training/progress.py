"""How far a training run is, and how long it will still take."""

import datetime
import time

import keras
import tqdm

_SHOWN = ("loss", "accuracy", "val_loss", "val_accuracy", "fisher_trace")


class Progress(keras.callbacks.Callback):
    """Prints a line an epoch with the time left and, on a terminal, a bar of the whole run.

    It also adds the epoch's `seconds`, validation included, to the logs: it must come before the
    callbacks that write them.
    """

    def __init__(self, epochs: int, steps_per_epoch: int, first_epoch: int = 0) -> None:
        """Makes the callback.

        Args:
            epochs: of the whole run.
            steps_per_epoch: training steps an epoch.
            first_epoch: epochs that were finished before.
        """
        super().__init__()
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._first_epoch = first_epoch

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Starts the bar."""
        self._start = time.monotonic()
        self._bar = tqdm.tqdm(
            total=self._epochs * self._steps_per_epoch,
            initial=self._first_epoch * self._steps_per_epoch,
            unit="step",
            smoothing=0,  # The mean speed: validation makes the present one jump.
            leave=False,
            dynamic_ncols=True,
            disable=None,  # Where there is no terminal.
        )

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Starts the epoch's clock."""
        self._epoch_start = time.monotonic()
        self._bar.set_description(f"epoch {epoch + 1}/{self._epochs}")

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Moves the bar."""
        self._bar.update()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Adds the seconds to the logs and prints the epoch's line."""
        now = time.monotonic()
        logs["seconds"] = now - self._epoch_start
        done = epoch + 1 - self._first_epoch
        left = (now - self._start) / done * (self._epochs - epoch - 1)
        values = "  ".join(f"{name} {logs[name]:.4f}" for name in _SHOWN if name in logs)
        width = len(str(self._epochs))
        tqdm.tqdm.write(
            f"epoch {epoch + 1:>{width}}/{self._epochs}  {values}  "
            f"{logs['seconds']:.1f} s, {datetime.timedelta(seconds=round(left))} left"
        )

    def on_train_end(self, logs: dict | None = None) -> None:
        """Removes the bar."""
        self._bar.close()
