"""How well a classifier fits data: cross-entropy, errors and calibration, in float64."""

import dataclasses
from collections.abc import Iterator

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
    loss, label_entropy = 0.0, 0.0
    confidence, correct = [], []
    for begin, batch in _batches(data):
        log_p = tf.nn.log_softmax(classifier.logits(batch.x)).numpy()
        if np.isnan(log_p).any():
            rows = np.isnan(log_p).any(axis=1)
            raise ValueError(
                f"The model's outputs are NaN or infinite for {rows.sum()} of the {len(rows)} "
                f"examples of {name} from {begin} on; the first is {begin + np.argmax(rows)}. "
                "Check the inputs, and whether training has diverged."
            )
        target = label_distributions(batch.y, log_p.shape[1])
        # A probability of 0 costs nothing where the label gives it no weight.
        loss -= np.sum(np.where(target > 0, target * log_p, 0.0))
        label_entropy -= np.sum(target * np.log(np.where(target > 0, target, 1.0)))
        confidence.append(np.exp(log_p.max(axis=1)))
        correct.append(np.argmax(log_p, axis=1) == batch.hard_labels)
    correct = np.concatenate(correct)
    return Fit(
        float(loss / len(data)),
        float(label_entropy / len(data)),
        int(np.sum(~correct)),
        len(data),
        expected_calibration_error(np.concatenate(confidence), correct),
    )


def _batches(data: LabelledData) -> Iterator[tuple[int, LabelledData]]:
    for begin in range(0, len(data), _BATCH_SIZE):
        yield begin, data.take(slice(begin, begin + _BATCH_SIZE))
