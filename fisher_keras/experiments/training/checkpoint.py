"""Saved models of the best and the last epoch."""

import pathlib
from typing import Any

import keras

from fisher_keras.atomic import replacing


class PlainModelCheckpoint(keras.callbacks.ModelCheckpoint):
    """Keras' `ModelCheckpoint` of another model than the one that is trained, written in one go.

    What is saved is the plain classifier inside a `FisherRegularizedModel`, so that it is used and
    evaluated without this package.
    """

    def __init__(self, plain_model: keras.Model, path: pathlib.Path, **options: Any) -> None:
        """Makes the callback.

        Args:
            plain_model: the model to save.
            path: the file, `*.keras`.
            **options: of `keras.callbacks.ModelCheckpoint`.
        """
        super().__init__(str(path), **options)
        self._atomic = _AtomicallySaved(plain_model)

    def set_model(self, model: keras.Model) -> None:
        """Takes the plain model, whichever model is trained."""
        super().set_model(self._atomic)


class _AtomicallySaved:
    """A model whose `save` leaves the old file alone until the new one is whole."""

    def __init__(self, model: keras.Model) -> None:
        self._model = model

    def save(self, path: str, overwrite: bool) -> None:
        with replacing(pathlib.Path(path)) as part:
            self._model.save(part, overwrite=overwrite)
