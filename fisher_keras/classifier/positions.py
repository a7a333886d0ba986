"""The positions of examples as units of their own."""

import functools
from typing import Any, Literal, get_args

import numpy as np

from fisher_keras.classifier.classifier import Classifier
from fisher_keras.classifier.labels import Examples, LabelledData
from fisher_keras.classifier.likelihood import Likelihood, check_some_count

Unit = Literal["example", "position"]
UNITS = get_args(Unit)
_BATCH_SIZE = 256  # Of the forward passes that find Keras' mask.


class Positions:
    """All positions of labelled examples that count, as units that are sampled like examples.

    A unit is its example with all other positions left out, so that its loss is that of the
    position; what is computed for examples holds for units as it is.

    Attributes:
        rows: The positions that count among all N |P| of the data, ascending, integers.
    """

    def __init__(self, classifier: Classifier, data: Examples) -> None:
        """Finds the positions that count.

        Args:
            classifier: The classifier, for Keras' mask of its outputs.
            data: The examples.

        Raises:
            ValueError: If labels or weights do not fit the model, or nothing counts.
        """
        masks = []
        for begin in range(0, len(data), _BATCH_SIZE):
            x = data.take(slice(begin, begin + _BATCH_SIZE)).x
            inputs = classifier.inputs(x)
            masks.append(classifier.predictions(inputs)[1].numpy())
        likelihood = classifier.likelihood(inputs)
        labels = likelihood.hard_labels(data.labels, data.weights)
        counted = likelihood.counted(len(data), data.weights, np.concatenate(masks))
        check_some_count(counted)
        self._data, self._shape = data, counted.shape
        self.rows = np.flatnonzero(counted)
        self._labels = labels

    def __len__(self) -> int:
        """Returns their number."""
        return len(self.rows)

    @functools.cached_property
    def hard_labels(self) -> np.ndarray:
        """The most probable class at each position, shape (n,)."""
        return self._labels.ravel()[self.rows]

    def take(self, units: np.ndarray | slice) -> LabelledData:
        """Returns some of the units, as examples with one position that counts."""
        rows = self.rows[units]
        examples = self._data.take(rows // int(np.prod(self._shape[1:])))
        weights = np.zeros([len(rows), *self._shape[1:]])
        weights[(np.arange(len(rows)), *np.unravel_index(rows, self._shape)[1:])] = 1
        return LabelledData(examples.x, examples.y, weights)


def check_single(classifier: Classifier, inputs: Any, what: str) -> Likelihood:
    """Returns the likelihood of a classifier with one prediction an example.

    Args:
        classifier: The classifier.
        inputs: The result of `Classifier.inputs` for examples.
        what: What is for such classifiers alone, the beginning of the message.

    Raises:
        ValueError: If it has several.
    """
    likelihood = classifier.likelihood(inputs)
    if likelihood.positions:
        raise ValueError(
            f"{what} is for classifiers with one prediction an example, and the model gives "
            f"predictions of shape {likelihood.positions} for each. Leave it out for this model."
        )
    return likelihood
