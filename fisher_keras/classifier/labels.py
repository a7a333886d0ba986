"""Labelled examples, in memory or read by their rows, from any form of data."""

import abc
import dataclasses
import functools
import hashlib
import itertools
import mmap
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier.inputs import check_dense, count_examples
from fisher_keras.classifier.likelihood import label_problem

# More than any data set that fits into memory: one that gives more has no end.
_MAX_EXAMPLES = 20_000_000
_COMPARED_EXAMPLES = 1_000
# Of arrays in a file, so many rows stand for all in the fingerprint.
_HASHED_ROWS = 1_000
_MAPPED_ROWS = 20  # Read at a time from such arrays.


class Examples(abc.ABC):
    """N labelled examples that are read by their rows: what the metrics need of data.

    A subclass makes a data set of any size usable: it has `labels` in memory, and reads in `take`
    only what it is asked for.

    Attributes:
        in_memory: Whether all examples are at hand. If not, an evaluation reads no others than
            its trials sample, and its training loss is of these.
        weights: Sample weights of positions, see `Likelihood.counted`; None if there are none.
    """

    in_memory = False
    weights: np.ndarray | None = None

    @property
    @abc.abstractmethod
    def labels(self) -> np.ndarray:
        """Integer classes, shape (N,) or (N, *P), or distributions, shape (N, K) or (N, *P, K)."""

    @abc.abstractmethod
    def take(self, rows: np.ndarray | slice) -> "LabelledData":
        """Reads some of the examples, by their rows."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A text that is another one for other examples, and the same at each reading."""

    def __len__(self) -> int:
        """Returns N."""
        return len(self.labels)

    @property
    def hard_labels(self) -> np.ndarray:
        """The most probable class of each example (the paper's y-bar), shape (N,).

        It is for one prediction an example; for others, see `Likelihood.hard_labels`.
        """
        return self.labels if self.labels.ndim == 1 else np.argmax(self.labels, axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledData(Examples):
    """N labelled examples as arrays, in memory or mapped from a file (`np.memmap`).

    Attributes:
        x: An array with N rows, or a structure of such arrays.
        y: Integer classes, shape (N,), or distributions over the classes, shape (N, K); of
            several predictions an example, classes (N, *P) or distributions (N, *P, K).
        weights: Sample weights of the positions, see `Likelihood.counted`; None if there are none.
    """

    x: Any
    y: np.ndarray
    weights: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        """The labels y."""
        return self.y

    @property
    def in_memory(self) -> bool:
        """False if an array of x is mapped from a file."""
        return not any(map(_is_mapped, keras.tree.flatten(self.x)))

    def take(self, rows: np.ndarray | slice) -> "LabelledData":
        """Returns some of the examples, by their rows; what is mapped is read."""
        weights = None if self.weights is None else self.weights[rows]
        x = keras.tree.map_structure(lambda leaf: _read_rows(leaf, rows), self.x)
        return LabelledData(x, self.y[rows], weights)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of all arrays.

        Of arrays that are mapped from a file, it has the shapes and 1,000 rows, evenly spread.
        """
        leaves = keras.tree.flatten(self.x)
        labels = [self.y] if self.weights is None else [self.y, self.weights]
        if self.in_memory:
            return fingerprint([*leaves, *labels])
        rows = np.linspace(0, len(self) - 1, min(len(self), _HASHED_ROWS)).astype(int)
        shapes = [np.array(leaf.shape) for leaf in leaves]
        return fingerprint([*shapes, *(_read_rows(leaf, rows) for leaf in leaves), *labels])


def labelled_data(data: Any, name: str = "data") -> Examples:
    """Reads labelled data into memory unless it is read by rows, and checks it.

    A data set that comes in another order at each reading, as a shuffled one does, is ordered by
    the content of its examples: samples by row are then the same each time.

    Args:
        data: A pair (x, y) of arrays or tensors, x possibly a structure of them; or a finite
            `tf.data.Dataset` or `keras.utils.PyDataset` of batches (x, y). Sample weights may
            follow y: those of positions, shape (N, ...), tell which of them count; those of
            examples, shape (N,), are ignored. Arrays that are mapped from a file (`np.memmap`)
            stay there, and so do other `Examples`.
        name: Name of the data, for errors.

    Returns:
        The examples.

    Raises:
        ValueError: If it is anything else, or holds no examples, or x and y differ in length, or
            y is neither classes nor distributions, or the examples are others at each reading.
    """
    if isinstance(data, LabelledData):
        data = data.x, data.y, data.weights
    if isinstance(data, Examples):
        return _checked_examples(data, name)
    if isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)):
        x, y, *weights = _read(data, name)
    elif isinstance(data, (tuple, list)) and len(data) in (2, 3):
        x, y, *weights = _arrays(data, name)
    else:
        raise ValueError(
            f"{name} must be a pair (x, y) of arrays, or a tf.data.Dataset or a "
            "keras.utils.PyDataset of batches (x, y). Join the batches of a generator. "
            f"Given: {type(data).__name__}."
        )
    try:
        count_examples(x, y, *weights)
    except ValueError as error:
        raise ValueError(f"{name} must be a pair (x, y) of arrays. {error}") from error
    return LabelledData(x, _checked_labels(y, name, *weights), *weights)


def _checked_examples(examples: Examples, name: str) -> Examples:
    labels = examples.labels
    is_array = isinstance(labels, np.ndarray) and labels.ndim > 0 and len(labels) > 0
    # They are used as they are: a column of classes would be taken for distributions.
    weights = () if examples.weights is None else (examples.weights,)
    fits = is_array and _checked_labels(labels, name, *weights).shape == labels.shape
    if not fits or (labels.ndim == 1 and labels.dtype.kind not in "iu"):
        raise ValueError(
            f"The labels of {name} must be an array of classes, integers of shape (N,), or of "
            "distributions, shape (N, K), of at least one example. Given: shape "
            f"{np.shape(labels)}, dtype {np.asarray(labels).dtype}."
        )
    count_examples(labels, *weights)
    return examples


def _is_mapped(leaf: Any) -> bool:
    """Returns whether an array is mapped from a file, and not computed from one that is."""
    return isinstance(leaf, np.memmap) and leaf.filename is not None


def _read_rows(leaf: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
    """Returns rows of an array; of one that is mapped, copies."""
    if not _is_mapped(leaf):
        return leaf[rows]
    file = leaf
    while isinstance(file, np.ndarray):
        file = file.base
    rows = np.arange(len(leaf))[rows]
    read = np.empty((len(rows), *leaf.shape[1:]), leaf.dtype)
    for begin in range(0, len(rows), _MAPPED_ROWS):
        part = slice(begin, begin + _MAPPED_ROWS)
        read[part] = leaf[rows[part]]
        # Each access maps much of the file around a row, too, which would add up to all of it.
        # What a private map ("c") has changed is nowhere else, so that it has to stay.
        if leaf.mode in ("r", "r+") and hasattr(file, "madvise"):
            file.madvise(mmap.MADV_DONTNEED)
    return read


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


def _read(data: tf.data.Dataset | keras.utils.PyDataset, name: str) -> tuple:
    """Returns x, y and weights of all batches, in an order that is the same at each reading."""
    read = list(_batches(data, name))
    if not read:
        raise ValueError(f"{name} gives no batches.")
    joined = keras.tree.map_structure(lambda *leaves: _joined(leaves, name), *read)
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


def _joined(batches: tuple[np.ndarray, ...], name: str) -> np.ndarray:
    """Returns the rows of an array of each batch, one under the other."""
    shapes = list(dict.fromkeys(batch.shape[1:] for batch in batches))
    if len(shapes) > 1:
        raise ValueError(
            f"The examples of {name} must be of one shape in all batches: pad them to one length, "
            "as padded_batch(..., padded_shapes) does for lengths other than None. Given: "
            f"examples of shapes {shapes[0]} and {shapes[1]}."
        )
    return np.concatenate(batches)


def _batches(data: tf.data.Dataset | keras.utils.PyDataset, name: str) -> Iterator[tuple]:
    """Reads x, y and weights of a batch after the other."""
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
        x, y, *weights = _arrays(keras.utils.unpack_x_y_sample_weight(batch), name)
        if y.ndim == 0:
            raise ValueError(f"{name} gives single examples; batch it: {name}.batch(100).")
        yield x, y, *weights
        num_read += len(y)
        if num_read > _MAX_EXAMPLES:
            raise ValueError(
                f"{name} has given {num_read} examples and has not ended. If it is endless, "
                "take(...) one epoch of it; else give a part of it."
            )


def _row_fingerprints(batches: Iterable[tuple]) -> list[str]:
    """Returns the fingerprint of each example, batch by batch."""
    return [
        fingerprint([np.asarray(leaf[row]) for leaf in keras.tree.flatten(batch)])
        for batch in batches
        for row in range(len(batch[1]))
    ]


def _arrays(batch: Any, name: str) -> tuple:
    """Returns x, y and any weights of positions as arrays, or refuses their form."""
    x, y, *others = batch
    if y is None:
        raise ValueError(f"{name} has no labels; give (x, y), or batches (x, y).")
    if isinstance(y, dict) or (isinstance(y, tuple) and any(map(np.ndim, y))):
        is_dict = isinstance(y, dict)
        parts, first = (list(y), next(iter(y), None)) if is_dict else (f"{len(y)} arrays", 0)
        raise ValueError(
            f"The labels of {name} are a {type(y).__name__} of {parts}: give those of the one "
            f"output, as in y[{first!r}]."
        )
    check_dense(x, name)
    x = keras.tree.map_structure(lambda leaf: leaf if _is_mapped(leaf) else np.asarray(leaf), x)
    weights = [np.asarray(leaf) for leaf in keras.tree.flatten(others) if leaf is not None]
    # Those of whole examples are ignored.
    weights = [array for array in weights if array.ndim > 1]
    return x, np.asarray(y), *weights


def _checked_labels(y: np.ndarray, name: str, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns labels whose form is that of some classifier, classes (N,) as integers."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    # Classes at each position, or distributions there. One number of classes is as good as another
    # here; whether labels are the model's is checked once its outputs are known.
    problems = []
    for shape in (y.shape, y.shape[:-1])[: y.ndim]:
        counted = np.ones(shape, bool)
        if weights is not None and weights.shape == shape[: weights.ndim]:
            counted &= (weights != 0).reshape(weights.shape + (1,) * (len(shape) - weights.ndim))
        problems.append(label_problem(y, shape, None, counted))
    if all(problems):
        raise ValueError(
            f"The labels of {name} must be classes 0, 1, ..., shape (N,), or distributions over "
            "them, shape (N, K), or either for each position, shape (N, ...) or (N, ..., K). "
            f"Given: {problems[-1 if y.dtype.kind == 'f' else 0]}."
        )
    return y.astype(np.int64) if y.ndim == 1 else y
