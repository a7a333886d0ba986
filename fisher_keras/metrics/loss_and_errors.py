"""Loss, errors and calibration of a classifier on a data set, in float64."""

import dataclasses

import numpy as np
import tensorflow as tf

from fisher_keras.classifier.classifier import Classifier
from fisher_keras.classifier.labels import Examples
from fisher_keras.classifier.likelihood import Likelihood, check_some_count

_BATCH_SIZE = 256  # Of the forward passes.
_NUM_BINS = 15  # Of the calibration error, as its authors take.


@dataclasses.dataclass(frozen=True)
class DataLoss:
    """Loss, errors and calibration of a classifier on a data set. Its old name is `Fit`.

    If an example has several predictions, all means and numbers are over the positions that count,
    each with the same weight, as in Keras' own mean of masked outputs.

    Attributes:
        loss: Mean cross-entropy against the labels as given, in nats.
        label_entropy: The smallest possible loss: 0 for hard labels, more for soft labels.
        num_errors: The number of examples whose most probable class is not that of the label.
        num_examples: Number of examples, or of positions that count.
        calibration_error: See `expected_calibration_error`.
        hard_label_loss: Mean cross-entropy against the most probable classes of the labels.
    """

    loss: float
    label_entropy: float
    num_errors: int
    num_examples: int
    calibration_error: float
    hard_label_loss: float

    @property
    def error(self) -> float:
        """The share of examples that are classified wrongly, from 0 to 1."""
        return self.num_errors / self.num_examples

    @property
    def excess_loss(self) -> float:
        """The loss above the smallest loss that the labels allow, in nats."""
        return self.loss - self.label_entropy


class RunningDataLoss:
    """A `DataLoss` to which examples are added when their logits are known, in any order.

    Attributes:
        rows: Rows in the data of its examples.
    """

    def __init__(
        self,
        data: Examples,
        name: str = "data",
        label_smoothing: float = 0.0,
        rows: np.ndarray | None = None,
    ) -> None:
        """Starts without any example.

        Args:
            data: All examples.
            name: Name of the data, for errors.
            label_smoothing: Share of each label that is spread evenly over the classes.
            rows: Rows of the examples of this loss, ascending; None for all.
        """
        self._data, self._name, self._label_smoothing = data, name, label_smoothing
        self.rows = np.arange(len(data)) if rows is None else rows
        self._loss, self._hard_loss, self._entropy = np.zeros([3, len(self.rows)])
        # Once the positions are known: the confidence, and whether they are correct, and count.
        self._predictions: list[np.ndarray] = []

    def add(self, rows: np.ndarray, logits: tf.Tensor, mask: tf.Tensor) -> None:
        """Adds some examples, or replaces them.

        Args:
            rows: Rows of n examples in the data.
            logits: Their logits, shape (n, K) or (n, *P, K).
            mask: Keras' mask of them, shape (n,) or (n, *P), booleans.

        Raises:
            ValueError: If logits are not finite.
        """
        log_p = tf.nn.log_softmax(logits).numpy()
        likelihood = Likelihood(log_p.shape[1:-1], log_p.shape[-1])
        y, weights = self._data.labels[rows], self._data.weights
        weights = None if weights is None else weights[rows]
        counted = likelihood.counted(len(rows), weights, mask)
        bad = (np.isnan(log_p).any(axis=-1) & counted).any(axis=likelihood.axes)
        if bad.any():
            raise ValueError(
                f"The model's outputs are NaN or infinite for {bad.sum()} of the {len(rows)} "
                f"examples of {self._name} that it was given at once; the first is "
                f"{rows[np.argmax(bad)]}. Check the inputs, and whether training has diverged."
            )
        what = f"The labels of {self._name}"
        classes = likelihood.hard_labels(y, weights, what)
        rows = np.searchsorted(self.rows, rows)

        def sums(values: np.ndarray) -> np.ndarray:
            return np.sum(np.where(counted, values, 0.0), axis=likelihood.axes)

        # For hard labels without smoothing the two losses are one, and the entropy stays 0.
        losses = -np.take_along_axis(log_p, classes[..., np.newaxis], axis=-1)[..., 0]
        self._hard_loss[rows] = self._loss[rows] = sums(losses)
        soft = y.ndim == log_p.ndim and y.shape[-1] > 1
        if soft or self._label_smoothing:
            y = likelihood.distributions(y, self._label_smoothing, weights)
            # A probability of 0 costs nothing where the label gives it no weight.
            self._loss[rows] = sums(-np.sum(np.where(y > 0, y * log_p, 0.0), axis=-1))
            self._entropy[rows] = sums(-np.sum(y * np.log(np.where(y > 0, y, 1.0)), axis=-1))
        found = np.exp(log_p.max(axis=-1)), np.argmax(log_p, axis=-1) == classes, counted
        if not self._predictions:
            shape = [len(self.rows), *likelihood.positions]
            self._predictions = [np.zeros(shape, values.dtype) for values in found]
        for all_of_them, values in zip(self._predictions, found, strict=True):
            all_of_them[rows] = values

    def evaluate(self, classifier: Classifier, rows: np.ndarray) -> None:
        """Evaluates some examples in inference mode, and adds them.

        Args:
            classifier: The classifier.
            rows: Rows of the examples in the data.

        Raises:
            ValueError: If outputs are not finite.
        """
        for begin in range(0, len(rows), _BATCH_SIZE):
            batch = rows[begin : begin + _BATCH_SIZE]
            self.add(batch, *classifier.predictions(classifier.inputs(self._data.take(batch).x)))

    def result(self) -> DataLoss:
        """Returns the `DataLoss`, after all examples were added.

        Raises:
            ValueError: If no position counts.
        """
        confidence, correct, counted = self._predictions
        check_some_count(counted, self._name)
        count = int(np.sum(counted))
        return DataLoss(
            loss=float(np.sum(self._loss) / count),
            label_entropy=float(np.sum(self._entropy) / count),
            num_errors=int(np.sum(~correct & counted)),
            num_examples=count,
            calibration_error=expected_calibration_error(confidence[counted], correct[counted]),
            hard_label_loss=float(np.sum(self._hard_loss) / count),
        )


def evaluate_data_loss(
    classifier: Classifier, data: Examples, name: str = "data", label_smoothing: float = 0.0
) -> DataLoss:
    """Evaluates a classifier on a data set in inference mode, batch by batch.

    Args:
        classifier: The classifier.
        data: Labelled examples.
        name: Name of the data, for errors.
        label_smoothing: Share of each label that is spread evenly over the classes.

    Returns:
        Loss, errors and calibration.

    Raises:
        ValueError: If outputs are not finite.
    """
    running = RunningDataLoss(data, name, label_smoothing)
    running.evaluate(classifier, running.rows)
    return running.result()


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, num_bins: int = _NUM_BINS
) -> float:
    r"""Returns the expected calibration error.

    $$\mathrm{ECE} = \sum_m \frac{|B_m|}{N} \left|\mathrm{acc}(B_m) - \mathrm{conf}(B_m)\right|,$$

    where $B_m$ are the examples with a confidence in $(\frac{m - 1}{M}, \frac{m}{M}]$. C. Guo,
    G. Pleiss, Y. Sun and K. Q. Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
    Equation 3, with their M = 15.

    Args:
        confidence: The probability of each example's most probable class, shape (N,).
        correct: Whether this class is right, shape (N,).
        num_bins: M, the number of bins, which have equal widths.

    Returns:
        Between 0 and 1.
    """
    # Rounding up makes the bins open below and closed above, as they are defined.
    bins = np.ceil(confidence * num_bins).astype(int)
    # |B_m| (acc - conf) is the sum of the differences of the examples in it.
    differences = np.bincount(bins, weights=correct - confidence)
    return float(np.abs(differences).sum() / len(confidence))
