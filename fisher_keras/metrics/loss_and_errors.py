"""How well a classifier fits data: cross-entropy, errors and calibration, in float64."""

import dataclasses

import numpy as np
import tensorflow as tf

from fisher_keras.classifier.classifier import Classifier
from fisher_keras.classifier.labels import LabelledData, label_distributions
from fisher_keras.metrics.calibration import expected_calibration_error

_BATCH_SIZE = 256  # Of the forward passes.


@dataclasses.dataclass(frozen=True)
class Fit:
    """How well a model fits some data.

    Attributes:
        loss: Mean cross-entropy against the labels as given, in nats.
        label_entropy: The least value that it can have: 0 for hard labels, more for soft ones.
        num_errors: How many examples have another most probable class than their label.
        num_examples: N.
        calibration_error: See `expected_calibration_error`.
    """

    loss: float
    label_entropy: float
    num_errors: int
    num_examples: int
    calibration_error: float

    @property
    def error(self) -> float:
        """The share of examples that are classified wrongly, from 0 to 1."""
        return self.num_errors / self.num_examples

    @property
    def excess_loss(self) -> float:
        """The loss over the least that the labels allow, in nats."""
        return self.loss - self.label_entropy


class GrowingFit:
    """A fit in the making: examples are added as their logits are found, in any order."""

    def __init__(self, data: LabelledData, name: str = "data") -> None:
        """Starts without any example.

        Args:
            data: All examples.
            name: What to call them in errors.
        """
        self._data, self._name = data, name
        self._loss, self._entropy, self._confidence = np.zeros([3, len(data)])
        self._correct = np.zeros(len(data), bool)

    def add(self, rows: np.ndarray, logits: tf.Tensor) -> None:
        """Adds some of the examples, or replaces them.

        Args:
            rows: Rows of n examples in the data.
            logits: What the model gives for them, shape (n, K).

        Raises:
            ValueError: If logits are not finite.
        """
        log_p = tf.nn.log_softmax(logits).numpy()
        bad = np.isnan(log_p).any(axis=1)
        if bad.any():
            raise ValueError(
                f"The model's outputs are NaN or infinite for {bad.sum()} of the {len(rows)} "
                f"examples of {self._name} that it was given at once; the first is "
                f"{rows[np.argmax(bad)]}. Check the inputs, and whether training has diverged."
            )
        examples = self._data.take(rows)
        target = label_distributions(examples.y, log_p.shape[1])
        # A probability of 0 costs nothing where the label gives it no weight.
        self._loss[rows] = -np.sum(np.where(target > 0, target * log_p, 0.0), axis=1)
        logarithms = np.log(np.where(target > 0, target, 1.0))
        self._entropy[rows] = -np.sum(target * logarithms, axis=1)
        self._confidence[rows] = np.exp(log_p.max(axis=1))
        self._correct[rows] = np.argmax(log_p, axis=1) == examples.hard_labels

    def evaluate(self, classifier: Classifier, rows: np.ndarray) -> None:
        """Adds what a classifier gives for some of the examples, in inference mode.

        Args:
            classifier: The classifier.
            rows: Rows of the examples in the data.

        Raises:
            ValueError: If outputs are not finite.
        """
        for begin in range(0, len(rows), _BATCH_SIZE):
            batch = rows[begin : begin + _BATCH_SIZE]
            self.add(batch, classifier.logits(self._data.take(batch).x))

    def result(self) -> Fit:
        """Returns the fit, once all examples were added."""
        return Fit(
            float(np.mean(self._loss)),
            float(np.mean(self._entropy)),
            int(np.sum(~self._correct)),
            len(self._data),
            expected_calibration_error(self._confidence, self._correct),
        )


def evaluate_fit(classifier: Classifier, data: LabelledData, name: str = "data") -> Fit:
    """Computes how a classifier fits data in inference mode, batch by batch.

    Args:
        classifier: The classifier.
        data: Labelled examples.
        name: What to call them in errors.

    Returns:
        The fit.

    Raises:
        ValueError: If outputs are not finite.
    """
    fit = GrowingFit(data, name)
    fit.evaluate(classifier, np.arange(len(data)))
    return fit.result()
