"""The learning rate of the paper's Section 7.1: divided by 10 where the training loss plateaus."""

from collections.abc import Sequence

import keras

FACTOR = 0.1
# The paper does not say what its plateaus are. Half as many epochs took chance for a plateau in
# trainings of few steps an epoch, and the training losses of their ends were far apart.
_PATIENCE = 10


class PlateauSchedule(keras.callbacks.ReduceLROnPlateau):
    """Keras' `ReduceLROnPlateau` of the training loss, also in a training that goes on.

    The loss is on a plateau when it has not become lower by 1e-4 in 10 epochs.
    """

    def __init__(self, learning_rate: float, past_losses: Sequence[float] = ()) -> None:
        """Makes the callback.

        Args:
            learning_rate: the initial one.
            past_losses: training loss of each epoch that was finished before.
        """
        super().__init__(monitor="loss", factor=FACTOR, patience=_PATIENCE)
        self._learning_rate = learning_rate
        self._past_losses = past_losses

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Goes through the epochs that were finished before; a rate restored is the same."""
        super().on_train_begin(logs)
        self.model.optimizer.learning_rate = self._learning_rate
        for epoch, loss in enumerate(self._past_losses):
            self.on_epoch_end(epoch, {"loss": loss})
