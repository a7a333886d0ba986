"""Labelled examples in memory, read from any form of data."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier.inputs import count_examples

# More than any data set that fits into memory: one that gives more has no end.
_MAX_EXAMPLES = 20_000_000
_COMPARED_EXAMPLES = 1_000
_DENSE = {"SparseTensor": "tf.sparse.to_dense(x)", "RaggedTensor": "x.to_tensor()"}


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

    A data set that comes in another order at each reading, as a shuffled one does, is ordered by
    the content of its examples: samples by row are then the same each time.

    Args:
        data: A pair (x, y) of arrays or tensors, x possibly a structure of them; or a finite
            `tf.data.Dataset` or `keras.utils.PyDataset` of batches (x, y). Sample weights may
            follow y, and are ignored.
        name: Name of the data, for errors.

    Returns:
        The examples.

    Raises:
        ValueError: If it is anything else, or holds no examples, or x and y differ in length, or
            y is neither classes nor distributions, or the examples are others at each reading.
    """
    if isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)):
        x, y = _read(data, name)
    elif isinstance(data, (tuple, list)) and len(data) in (2, 3):
        x, y = _arrays(data, name)
    else:
        raise ValueError(
            f"{name} must be a pair (x, y) of arrays, or a tf.data.Dataset or a "
            "keras.utils.PyDataset of batches (x, y). Join the batches of a generator. "
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
        num_classes: Number of classes K.
        name: Name of the data, for errors.
    """
    _checked_labels(y, num_classes, f"The labels of {name}")


def label_distributions(y: Any, num_classes: int, label_smoothing: float = 0.0) -> np.ndarray:
    """Returns labels as distributions over the classes.

    Args:
        y: Classes, shape (N,) or (N, 1), or distributions, shape (N, K).
        num_classes: Number of classes K.
        label_smoothing: Share of each label that is spread evenly over the classes.

    Returns:
        Shape (N, K), float64.

    Raises:
        ValueError: If y does not fit K classes.
    """
    y = _checked_labels(y, num_classes)
    if y.ndim == 1:
        classes, y = y, np.zeros([len(y), num_classes])
        y[np.arange(len(y)), classes] = 1
    return (1.0 - label_smoothing) * y.astype(np.float64) + label_smoothing / num_classes


def hard_labels(y: Any, num_classes: int) -> np.ndarray:
    """Returns the most probable class of each label (the paper's y-bar).

    Args:
        y: Classes, shape (N,) or (N, 1), or distributions, shape (N, K).
        num_classes: Number of classes K.

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
            # The length tells where an item ends: else "ab", "c" would be the same as "a", "bc".
            digest.update(f"{len(text)}:".encode() + text)
    return digest.hexdigest()[:16]


def _read(data: tf.data.Dataset | keras.utils.PyDataset, name: str) -> tuple[Any, np.ndarray]:
    """Returns x and y of all batches, in an order that is the same at each reading."""
    read = list(_batches(data, name))
    if not read:
        raise ValueError(f"{name} gives no batches.")
    joined = keras.tree.map_structure(lambda *leaves: np.concatenate(leaves), *read)
    # Other examples at the start are the sign of a shuffled data set; most are read once only.
    num_compared = 1 + _COMPARED_EXAMPLES // len(read[0][1])
    again = itertools.islice(_batches(data, name), num_compared)
    if _row_fingerprints(again) == _row_fingerprints(read[:num_compared]):
        return joined
    here = _row_fingerprints([joined])
    # Sorted, since the same examples may come in any order.
    if sorted(here) != sorted(_row_fingerprints(_batches(data, name))):
        raise ValueError(
            f"{name} gives other examples each time that it is read. Leave out augmentation, and "
            "drop_remainder: the metrics are of a fixed set of examples."
        )
    # Nothing but the content of the examples stays the same when they are shuffled.
    order = np.argsort(np.array(here), kind="stable")
    return keras.tree.map_structure(lambda leaf: leaf[order], joined)


def _batches(
    data: tf.data.Dataset | keras.utils.PyDataset, name: str
) -> Iterator[tuple[Any, np.ndarray]]:
    """Reads x and y of a batch after the other."""
    if isinstance(data, tf.data.Dataset):
        count = int(data.cardinality())
        endless, batches = count == tf.data.INFINITE_CARDINALITY, data
    else:
        count = data.num_batches
        endless, batches = count is None, (data[index] for index in range(count or 0))
    if endless:
        raise ValueError(f"{name} has no end. Leave out repeat(), or take(...) one epoch.")
    num_read = 0
    for batch in batches:
        x, y = _arrays(keras.utils.unpack_x_y_sample_weight(batch), name)
        if y.ndim == 0:
            raise ValueError(f"{name} gives single examples; batch it: {name}.batch(100).")
        yield x, y
        num_read += len(y)
        if num_read > _MAX_EXAMPLES:
            raise ValueError(
                f"{name} has given {num_read} examples and has not ended. If it is endless, "
                "take(...) one epoch of it; else give a part of it."
            )


def _row_fingerprints(batches: Iterable[tuple[Any, np.ndarray]]) -> list[str]:
    """Returns the fingerprint of each example, batch by batch."""
    return [
        fingerprint([np.asarray(leaf[row]) for leaf in keras.tree.flatten(batch)])
        for batch in batches
        for row in range(len(batch[1]))
    ]


def _arrays(batch: Any, name: str) -> tuple[Any, np.ndarray]:
    """Returns x and y as arrays, or refuses with a line about the form that they have."""
    x, y = batch[:2]
    if y is None:
        raise ValueError(f"{name} has no labels; give (x, y), or batches (x, y).")
    if isinstance(y, dict):
        raise ValueError(
            f"The labels of {name} are a dict of {list(y)}: give those of the one output, as in "
            f"y[{next(iter(y), None)!r}]."
        )
    if isinstance(y, tuple) and any(np.ndim(labels) for labels in y):
        raise ValueError(
            f"The labels of {name} are a tuple of {len(y)} arrays: give those of the one output, "
            "as in y[0]."
        )
    for leaf in keras.tree.flatten(x):
        dense = _DENSE.get(type(leaf).__name__, "x.toarray()" if hasattr(leaf, "toarray") else "")
        if dense:
            raise ValueError(
                f"{name} holds a {type(leaf).__name__}, and the metrics take dense arrays: give "
                f"{dense}."
            )
    return keras.tree.map_structure(np.asarray, x), np.asarray(y)


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
        return f"dtype {y.dtype}; number the classes, as np.unique(y, return_inverse=True)[1] does"
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
