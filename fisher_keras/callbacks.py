"""Metrics of local minima during `model.fit`."""

import math
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.arguments import whole_number
from fisher_keras.classifier import Classifier
from fisher_keras.classifier.hard_label_loss import from_logits_of, labels_of
from fisher_keras.classifier.labels import labelled_data
from fisher_keras.classifier.logits import FromLogits, gives_probabilities
from fisher_keras.classifier.positions import Unit
from fisher_keras.classifier.wrapper import unwrap
from fisher_keras.devices import Processes
from fisher_keras.metrics.evaluation import evaluate
from fisher_keras.metrics.evaluation_options import EvaluationOptions
from fisher_keras.metrics.metric import DEFAULT_METRICS
from fisher_keras.metrics.report import LocalMinimumReport


class FisherMetrics(keras.callbacks.Callback):
    """Adds metrics of the current weights to the logs at the end of epochs.

    Works for plain and for regularized models, and leaves the model as it is. History shows the
    metrics, and so do callbacks that come after this one in the list, such as CSVLogger and
    TensorBoard. In epochs between two evaluations they are NaN, through which TensorBoard draws no
    line (see `log_dir`), and which no callback takes for an improvement. The patience of
    EarlyStopping counts these epochs.

    Examples:
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
        metrics: Sequence[str] = DEFAULT_METRICS,
        *,
        num_samples: int = 100,
        num_trials: int = 1,
        seed: int = 0,
        from_logits: FromLogits = "auto",
        normalize_logits: float | None = None,
        stratified: bool = False,
        chunk_size: int | None = None,
        log_dir: str | os.PathLike | None = None,
        unit: Unit = "example",
    ) -> None:
        """Prepares the evaluations.

        Args:
            data: Training data without augmentation, as `evaluate_local_minimum` takes it; what
                does not stay in files is read into memory once. Each evaluation also computes its
                loss and error, for which a part of the data will do.
            every: Epochs from one evaluation to the next. The first epoch of a `fit` is evaluated,
                too: callbacks take the value of the first epoch for the best until then.
            metrics: Names out of `fisher_keras.metrics.METRICS`.
            num_samples: N', examples a trial.
            num_trials: Number of samples T of an evaluation, the same in all evaluations.
            seed: Seed of the samples.
            from_logits: Whether the model's outputs are logits, True or False. "auto" finds out:
                by the softmax or sigmoid that it ends in, else by the loss it is compiled with.
            normalize_logits: As for `evaluate_local_minimum`.
            stratified: As for `evaluate_local_minimum`.
            chunk_size: As for `evaluate_local_minimum`.
            unit: As for `evaluate_local_minimum`.
            log_dir: Folder of a TensorBoard log: the metrics as `fisher_` and their name, of
                the epochs with an evaluation alone, and histograms of the spectrum's decimal
                logarithms, `fisher_log10_spectrum`. None does not write.

        Raises:
            ValueError: If an argument is out of range, or the data are too few or have labels of
                no kind. `fit` raises it before the first step if the model does not fit them.
        """
        super().__init__()
        self._every = whole_number("every", every, least=1)
        self._options = EvaluationOptions(
            num_samples, num_trials, seed, metrics, stratified, chunk_size, unit=unit
        )
        self._from_logits = from_logits
        self._normalize_logits = normalize_logits
        self._data = labelled_data(data)
        if unit == "example":
            self._options.check_count(self._data)
        self._classifier: Classifier | None = None
        self._log_dir = log_dir
        # Made for each training: a callback without one can be copied, as tuners do.
        self._writer: tf.summary.SummaryWriter | None = None
        self._is_first = True

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy has: all but what belongs to a training, which may have failed."""
        return vars(self) | {"_classifier": None, "_writer": None}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Takes the model, for all evaluations of this training, and checks that it can."""
        from_logits = self._from_logits
        # A softmax or sigmoid of the model is found anyway; without it, the loss knows best.
        labels = labels_of(self.model)
        if from_logits == "auto" and not gives_probabilities(unwrap(self.model), labels):
            known = from_logits_of(self.model.loss)
            from_logits = from_logits if known is None else known
        self._classifier = Classifier(self.model, from_logits, self._normalize_logits)
        self._options.check(self._classifier, self._data)
        self._is_first = True
        if self._log_dir is not None and Processes.of(self.model.distribute_strategy).is_chief:
            self._writer = tf.summary.create_file_writer(str(self._log_dir))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Evaluates the model if it is its turn."""
        logs = {} if logs is None else logs
        taken = [name for name in self._options.metrics if name in logs]
        if taken:
            raise ValueError(
                "A name in the logs of fit is that of one value, and another FisherMetrics or a "
                "metric of the model has it already. Give each FisherMetrics other metrics. "
                f"Given: {', '.join(taken)}."
            )
        # Keras counts epochs from 0.
        if (epoch + 1) % self._every and not self._is_first:
            # History and CSVLogger need the same names in each epoch.
            logs.update(dict.fromkeys(self._options.metrics, math.nan))
            return
        self._is_first = False
        report = evaluate(self._classifier, self._data, self._options)
        means = np.array([report.metrics[name].mean for name in self._options.metrics])
        # Processes that round differently must not decide differently whether training goes on.
        means = Processes.of(self.model.distribute_strategy).from_chief(means)
        logs.update(zip(self._options.metrics, means.tolist(), strict=True))
        if self._writer is not None:
            self._write(report, epoch)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Drops what was traced, and completes the histograms."""
        self._classifier = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, report: LocalMinimumReport, epoch: int) -> None:
        log_spectrum = np.concatenate([trial.log_spectrum for trial in report.trials])
        with self._writer.as_default():
            # TensorBoard draws no line between points that have NaN between them.
            for name, summary in report.metrics.items():
                tf.summary.scalar(f"fisher_{name}", summary.mean, step=epoch)
            finite = log_spectrum[np.isfinite(log_spectrum)] / math.log(10)
            tf.summary.histogram("fisher_log10_spectrum", finite, step=epoch)
