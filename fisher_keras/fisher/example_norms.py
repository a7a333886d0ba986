"""The norm of each example's loss gradient, over a whole data set."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.arguments import whole_number
from fisher_keras.classifier.classifier import Classifier, as_classifier
from fisher_keras.classifier.inputs import check_trainable
from fisher_keras.classifier.labels import LabelledData, labelled_data
from fisher_keras.classifier.logits import FromLogits
from fisher_keras.fisher.gradients import Gradients
from fisher_keras.fisher.gram_function import GramFunction, check_finite
from fisher_keras.fisher.gram_product import squared_norms


def example_gradient_norms(
    model: keras.Model | Classifier,
    data: Any,
    from_logits: FromLogits = "auto",
    *,
    normalize_logits: float | None = None,
    chunk_size: int = 100,
) -> np.ndarray:
    r"""Computes the norm $\|g_i\|$ of the loss gradient of each example of a data set.

    $g_i$ is the gradient of the hard-label loss $-\ln f_w(x_i)_{c_i}$ by all trainable weights, in
    inference mode. It is row i of J in `loss_gradient_gram`. The network fits the examples with
    the largest norms least. Wrong labels and outliers are often among them, as long as the network
    has not completely fitted the training data. The norms take one pass over the data, which costs
    about one and a half gradients of it, and no matrix of pairs.

    Args:
        model: A Keras classifier, or a `Classifier` of one.
        data: Examples with labels, as `evaluate_local_minimum` takes them. For soft labels, the
            most probable class is used, so that label smoothing changes nothing. If an example has
            several predictions, its loss is the sum over the positions that count. Sample weights
            of examples are ignored. If you want to include them, multiply the norms by them.
        from_logits: As for `loss_gradient_gram`.
        normalize_logits: As for `loss_gradient_gram`.
        chunk_size: The number of examples to evaluate at a time.

    Returns:
        The norms, shape (N,), float64; 0.0 below 5e-324. They are in the order of the data. If a
        data set has another order at each reading, give arrays instead.

    Raises:
        ValueError: If inputs, labels and outputs do not fit each other, or outputs or gradients
            are not finite. The message names the examples.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, y = np.random.normal(size=(50, 4)), np.arange(50) % 3
        >>> norms = example_gradient_norms(model, (x, y))
        >>> suspicious = np.argsort(-norms)[:10]
    """
    classifier, data = as_classifier(model, from_logits, normalize_logits), labelled_data(data)
    size = min(whole_number("chunk_size", chunk_size, least=1), len(data))
    inputs = classifier.inputs(data.take(slice(1)).x)
    check_trainable(classifier.model)
    classifier.predictions(inputs)  # A layer's activation may have changed since the last call.
    classifier.likelihood(inputs).hard_labels(data.labels, data.weights, "The labels of data")
    function = classifier.cached(_NormFunction, False)
    log_norms = np.empty(len(data))
    for first in range(0, len(data), size):
        # The last chunk is filled up with the first examples: another size would be traced anew.
        rows = np.arange(first, first + size) % len(data)
        chunk = data.take(rows)
        chunk = dataclasses.replace(chunk, x=classifier.inputs(chunk.x))
        squares, log_scale = function(chunk)
        with np.errstate(divide="ignore"):
            values = log_scale + np.log(squares) / 2
        log_norms[rows] = values
    check_finite(log_norms < np.inf, np.arange(len(data)))
    with np.errstate(over="ignore"):
        return np.exp(log_norms)


class _NormFunction(GramFunction):
    """Squared norms of the per-example loss gradients, verified in the same way as products."""

    def __call__(self, data: LabelledData) -> tuple[np.ndarray, np.ndarray]:
        """Returns squared norms without the gradients' scale, and its logarithms, shape (N,)."""
        squares, log_scale, *_ = self._pair(data, [np.arange(len(data))], self.needed_float64)
        return squares.numpy(), log_scale.numpy()

    def _reduced(self, gradients: list[Gradients], float64: tf.Tensor) -> tf.Tensor:
        return squared_norms(gradients)
