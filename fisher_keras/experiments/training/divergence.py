"""The end of a training that has diverged."""

import math

import keras


class TrainingDivergedError(ArithmeticError):
    """The training loss is no longer a finite number."""


class StopWhenDiverged(keras.callbacks.Callback):
    """Raises `TrainingDivergedError` at the first loss that is not finite."""

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Remembers the epoch, for the message."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Looks at the loss of the epoch so far."""
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise TrainingDivergedError(
                f"the training loss became {loss} in epoch {self._epoch + 1}, step {batch + 1}: "
                "start again with a lower --learning_rate (or --beta, with --regularize) and "
                "another --output_dir"
            )
