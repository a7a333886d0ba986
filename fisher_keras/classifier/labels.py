"""Labelled examples in memory, read from any form of data."""

import dataclasses
import functools
import hashlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier.inputs import count_examples


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledData:
    """N labelled examples.

    Attributes:
        x: An array with N rows, or a structure of such arrays.
        y: Integer classes, shape (N,), or distributions over the classes, shape (N, K).
    """

    x: Any
    y: np.ndarray

    def __len__(self) -> int:
        """Returns N."""
        return len(self.y)

    def take(self, rows: np.ndarray | slice) -> "LabelledData":
        """Returns some of the examples, by their rows."""
        return LabelledData(
            keras.tree.map_structure(lambda leaf: leaf[rows], self.x), self.y[rows]
        )

    @property
    def hard_labels(self) -> np.ndarray:
        """The most probable class of each example (the paper's y-bar), shape (N,)."""
        return most_probable(self.y)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of all arrays."""
        return fingerprint([*keras.tree.flatten(self.x), self.y])


def labelled_data(data: Any, name: str = "data") -> LabelledData:
    """Reads labelled data into memory, and checks it.

    Args:
        data: A pair (x, y) of arrays or tensors, x possibly a structure of them; or a finite
            `tf.data.Dataset` of batches (x, y).
        name: Name of the data, for errors.

    Returns:
        The examples.

    Raises:
        ValueError: If it is anything else, or holds no examples, or x and y differ in length, or
            y is neither classes nor distributions.
    """
    if isinstance(data, tf.data.Dataset):
        x, y = _read(data, name)
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        x, y = keras.tree.map_structure(np.asarray, data[0]), np.asarray(data[1])
    else:
        raise ValueError(
            f"{name} must be a pair (x, y) of arrays or a tf.data.Dataset of batches (x, y). "
            f"Given: {type(data).__name__}."
        )
    try:
        count_examples(x, y)
    except ValueError as error:
        raise ValueError(f"{name} must be a pair (x, y) of arrays. {error}") from error
    return LabelledData(x, _checked_labels(y, what=f"The labels of {name}"))


def check_labels(y: Any, num_classes: int, name: str = "data") -> None:
    """Raises a ValueError unless labels fit K classes.

    Args:
        y: Classes, shape (N,) or (N, 1), or distributions, shape (N, K).
        num_classes: K.
        name: Name of the data, for errors.
    """
    _checked_labels(y, num_classes, f"The labels of {name}")


def label_distributions(y: Any, num_classes: int, label_smoothing: float = 0.0) -> np.ndarray:
    """Returns labels as distributions over the classes.

    Args:
        y: Classes, shape (N,) or (N, 1), or distributions, shape (N, K).
        num_classes: K.
        label_smoothing: Share of each label that is spread evenly over the classes.

    Returns:
        Shape (N, K), float64.

    Raises:
        ValueError: If y does not fit K classes.
    """
    y = _checked_labels(y, num_classes)
    if y.ndim == 1:
        hard = np.zeros([len(y), num_classes])
        hard[np.arange(len(y)), y] = 1
        y = hard
    return (1.0 - label_smoothing) * y.astype(np.float64) + label_smoothing / num_classes


def hard_labels(y: Any, num_classes: int) -> np.ndarray:
    """Returns the most probable class of each label (the paper's y-bar).

    Args:
        y: Classes, shape (N,) or (N, 1), or distributions, shape (N, K).
        num_classes: K.

    Returns:
        Shape (N,), int32.

    Raises:
        ValueError: If y does not fit K classes.
    """
    return most_probable(_checked_labels(y, num_classes)).astype(np.int32)


def fingerprint(arrays: list[np.ndarray]) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of arrays, dtypes and shapes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        # The bytes of numbers and of strings of one length tell all.
        if array.dtype.kind not in "OT":
            digest.update(np.ascontiguousarray(array))
            continue
        # Such an array holds pointers, to strings mostly.
        for item in array.astype(object).ravel():
            text = item if isinstance(item, bytes) else str(item).encode()
            digest.update(f"{len(text)}:".encode() + text)
    return digest.hexdigest()[:16]


def _read(dataset: tf.data.Dataset, name: str) -> tuple[Any, np.ndarray]:
    """Returns x and y of all batches."""
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ValueError(f"{name} must give batches (x, y). Given: elements {spec}.")
    if spec[1].shape.rank == 0:
        raise ValueError(f"{name} gives single examples; batch it: {name}.batch(100).")
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{name} has no end. Leave out repeat(), or take(...) one epoch.")
    batches = list(dataset.as_numpy_iterator())
    if not batches:
        raise ValueError(f"{name} gives no batches.")
    return keras.tree.map_structure(lambda *leaves: np.concatenate(leaves), *batches)


def most_probable(y: np.ndarray) -> np.ndarray:
    """Returns the most probable class (N,) of labels that are classes (N,) or distributions."""
    return y if y.ndim == 1 else np.argmax(y, axis=1)


def _checked_labels(y: Any, num_classes: int | None = None, what: str = "Labels") -> np.ndarray:
    """Returns labels as classes (N,), integers, or as distributions (N, K)."""
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    problem = _label_problem(y, num_classes)
    if problem:
        classes, count = "0, 1, ...", "K"
        if num_classes is not None:
            classes, count = f"0..{num_classes - 1} of the model", str(num_classes)
        raise ValueError(
            f"{what} must be classes {classes}, shape (N,), or distributions over them, shape "
            f"(N, {count}). Given: {problem}."
        )
    return y.astype(np.int64) if y.ndim == 1 else y


def _label_problem(y: np.ndarray, num_classes: int | None) -> str | None:
    """Describes the first invalid label; None if all are valid."""
    if y.dtype.kind not in "biuf":
        return f"dtype {y.dtype}"
    values = y.astype(np.float64)
    if y.ndim == 1:
        limit = np.inf if num_classes is None else num_classes
        right = (values >= 0) & (values < limit) & (values == np.floor(values))
    elif y.ndim == 2 and num_classes in (None, y.shape[1]):
        right = (values >= 0).all(axis=1) & (np.abs(values.sum(axis=1) - 1) < 1e-3)
    else:
        return f"shape {y.shape}"
    if right.all():
        return None
    first = np.argmin(right)
    return f"label {y[first]} for example {first}"
