"""The learning rate of the paper's Section 7.1: divided by 10 where the training loss plateaus."""

import math
from collections.abc import Sequence

import keras

FACTOR = 0.1


class PlateauSchedule(keras.callbacks.ReduceLROnPlateau):
    """Keras' `ReduceLROnPlateau` of the training loss, also in a training that goes on.

    The loss is on a plateau when it has not become lower by 1e-4 in a twentieth of all epochs: in
    10 of the paper's 200. The paper does not say what its plateaus are.
    """

    def __init__(
        self, learning_rate: float, epochs: int, past_losses: Sequence[float] = ()
    ) -> None:
        """Makes the callback.

        Args:
            learning_rate: the initial one.
            epochs: of the whole training.
            past_losses: training loss of each epoch that was finished before.
        """
        super().__init__(monitor="loss", factor=FACTOR, patience=math.ceil(epochs / 20))
        self._learning_rate = learning_rate
        self._past_losses = past_losses

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Goes through the epochs that were finished before; a rate restored is the same."""
        super().on_train_begin(logs)
        self.model.optimizer.learning_rate = self._learning_rate
        for epoch, loss in enumerate(self._past_losses):
            self.on_epoch_end(epoch, {"loss": loss})
