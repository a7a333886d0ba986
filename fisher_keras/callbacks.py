"""The metrics of local minima during `model.fit`."""

import math
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.arguments import whole_number
from fisher_keras.classifier import Classifier
from fisher_keras.metrics.local_minimum import GRAM_METRICS, METRICS, evaluate_local_minimum


class FisherMetrics(keras.callbacks.Callback):
    """Adds metrics of the current weights to the logs at the end of epochs.

    Works for plain and for regularized models, and leaves the model as it is. History shows the
    metrics, and so do callbacks that come after this one in the list, such as CSVLogger and
    TensorBoard. In epochs between two evaluations they are NaN.

    Example:
    >>> classifier = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    >>> classifier.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> x, y = np.random.normal(size=(60, 8)), np.arange(60) % 3
    >>> fisher = FisherMetrics((x, y), every=2, num_samples=10, num_trials=2)
    >>> history = classifier.fit(x, y, epochs=4, callbacks=[fisher], verbose=0)
    >>> len(history.history["log_determinant"])
    4
    """

    def __init__(
        self,
        data: Any,
        every: int = 1,
        metrics: Sequence[str] = tuple(GRAM_METRICS),
        *,
        num_samples: int = 100,
        num_trials: int = 1,
        seed: int = 0,
        log_dir: str | os.PathLike | None = None,
    ) -> None:
        """Prepares the evaluations.

        Args:
            data: Training data without augmentation, as `evaluate_local_minimum` takes it. Each
                evaluation also computes its loss and error, for which a part of the data will do.
            every: Epochs from one evaluation to the next.
            metrics: Names out of `fisher_keras.metrics.METRICS`.
            num_samples: N', examples a trial.
            num_trials: T, trials an evaluation; all evaluations sample the same examples.
            seed: Seed of the samples.
            log_dir: Where to write histograms of the spectrum's decimal logarithms for
                TensorBoard; None for none.

        Raises:
            ValueError: If `every` is not a positive whole number, or a metric is not known.
        """
        super().__init__()
        unknown = [name for name in metrics if name not in METRICS]
        if unknown:
            raise ValueError(f"metrics must be some of {METRICS}. Given: {unknown}.")
        self._data = data
        self._every = whole_number("every", every, least=1)
        self._metrics = tuple(metrics)
        self._classifier: Classifier | None = None
        self._options = {"num_samples": num_samples, "num_trials": num_trials, "seed": seed}
        self._writer = None if log_dir is None else tf.summary.create_file_writer(str(log_dir))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Takes the model, for all evaluations of this training."""
        self._classifier = Classifier(self.model)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Evaluates the model if it is its turn."""
        logs = {} if logs is None else logs
        if (epoch + 1) % self._every:
            logs.update(dict.fromkeys(self._metrics, math.nan))
            return
        report = evaluate_local_minimum(
            self._classifier, self._data, metrics=self._metrics, progress=False, **self._options
        )
        logs.update({name: report.metrics[name].mean for name in self._metrics})
        if self._writer is not None:
            self._write_spectrum(np.concatenate([t.log_spectrum for t in report.trials]), epoch)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Drops what was traced, and completes the histograms."""
        self._classifier = None
        if self._writer is not None:
            self._writer.flush()

    def _write_spectrum(self, log_spectrum: np.ndarray, epoch: int) -> None:
        with self._writer.as_default():
            finite = log_spectrum[np.isfinite(log_spectrum)] / math.log(10)
            tf.summary.histogram("fisher_log10_spectrum", finite, step=epoch)
