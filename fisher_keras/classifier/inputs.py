"""Checks of models and inputs for the metrics."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier import stateless

_MAX_LISTED = 4
_DENSE = {"SparseTensor": "tf.sparse.to_dense(x)", "RaggedTensor": "x.to_tensor()"}
_TEXT = ("O", "S", "T", "U")  # Kinds of NumPy's strings.


def check_model(model: Any) -> None:
    """Raises a ValueError unless it is given a Keras model."""
    if not isinstance(model, keras.Model):
        kind = type(model)
        former = " This is the former Keras: save the model, and load it with Keras 3."
        raise ValueError(
            "The model must be a keras.Model (functional, Sequential or subclassed). Metrics also "
            "take a Classifier; for training, give the model inside, its .model. Given: "
            f"{kind.__module__}.{kind.__name__}."
            f"{former if kind.__module__.startswith('tf_keras') else ''}"
        )


def check_trainable(model: keras.Model) -> None:
    """Raises a ValueError if nothing of a built model is trainable."""
    if not stateless.weights(model):
        raise ValueError(
            f"The model {model.name!r} has no trainable variables, so that its losses have no "
            "gradient. Set layer.trainable = True for some layer."
        )


def count_examples(x: Any, *labels: Any) -> int:
    """Returns the number N of examples.

    Args:
        x: Inputs, an array or a structure of arrays.
        *labels: y, if there are labels.

    Returns:
        N.

    Raises:
        ValueError: If there are none, or x and y differ in length, or x holds no arrays.
    """
    check_dense(x)
    shapes = [tuple(np.shape(leaf)) for leaf in keras.tree.flatten(x)]
    if () in shapes:
        raise ValueError(
            "x must be an array with a row for each example, or a structure of such arrays: give "
            "np.asarray(x). Given: single numbers or strings, as in lists of lists."
        )
    counts = {shape[0] for shape in shapes}
    of_labels = [tuple(np.shape(y)) for y in labels]
    # A label without an axis is of no number of examples, so that it fits none.
    counts |= {shape[0] if shape else None for shape in of_labels}
    if len(counts) != 1 or counts == {0}:
        listed = [f"x of {', '.join(map(str, shapes[:_MAX_LISTED]))}"]
        listed += ["..."] * (len(shapes) > _MAX_LISTED) + [f"y of {s}" for s in of_labels]
        raise ValueError(
            "x and y must hold the same number of examples, at least one. Given: arrays of shapes "
            f"{', '.join(listed)}."
        )
    return counts.pop()


def check_dense(x: Any, name: str = "x") -> None:
    """Raises a ValueError if inputs are sparse or ragged.

    Args:
        x: A structure of anything.
        name: Name of the data.
    """
    for leaf in keras.tree.flatten(x):
        dense = _DENSE.get(type(leaf).__name__, "x.toarray()" if hasattr(leaf, "toarray") else "")
        if dense:
            raise ValueError(
                f"{name} holds a {type(leaf).__name__}, and the metrics take dense arrays: give "
                f"{dense}."
            )


@contextlib.contextmanager
def fitting(model: keras.Model) -> Iterator[None]:
    """The context in which a model's graph runs; values that it cannot take are an error of x."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        # Before it comes the trace of the call, after it names of operations and how many failed.
        lines = map(str.strip, reversed(error.message.split("\n")))
        reason = next(filter(re.compile(r"(?!\[\[|\d+ (successful|derived)).").match, lines), "-")
        raise ValueError(
            f"The model {model.name!r} cannot be evaluated at these x. Give inputs that its call "
            f"takes, as indices within the table of an Embedding. Given: {reason}."
        ) from error


def tensor(values: Any) -> tf.Tensor:
    """Returns an array as a tensor, also one of NumPy's strings of any length."""
    return tf.convert_to_tensor(values.astype(object) if _kind(values) == "T" else values)


def tensors(structure: Any) -> Any:
    """Returns a structure of arrays as tensors; a list of numbers is one array, None stays."""
    shapes = [getattr(leaf, "shape", ()) for leaf in keras.tree.flatten(structure)]
    if structure is not None and all(tf.TensorShape(shape).rank == 0 for shape in shapes):
        return tf.convert_to_tensor(structure)
    as_they_are = (type(None), tf.SparseTensor)
    return keras.tree.map_structure(
        lambda leaf: leaf if isinstance(leaf, as_they_are) else tensor(leaf), structure
    )


def leaves(structure: Any) -> list:
    """Returns the tensors of a structure, without optional inputs that are left out."""
    return [leaf for leaf in keras.tree.flatten(structure) if leaf is not None]


def with_text(x: Any) -> Any:
    """Returns inputs with tensors in place of NumPy's strings, for which Keras has no dtype.

    Args:
        x: An array, or a structure of arrays; anything else stays as it is.
    """
    return keras.tree.map_structure(lambda t: tensor(t) if _kind(t) in _TEXT else t, x)


def rows_of(x: Any, rows: np.ndarray) -> Any:
    """Returns some rows of each tensor of a structure."""
    return keras.tree.map_structure(lambda values: tf.gather(values, rows), x)


def part_of(x: Any, begin: int, end: int) -> Any:
    """Returns consecutive rows of each array of a structure."""
    return keras.tree.map_structure(lambda values: values[begin:end], x)


def _kind(values: Any) -> str:
    return getattr(getattr(values, "dtype", None), "kind", "none")


class ExamplesError(ValueError):
    """Error about some examples, identified by row.

    Attributes:
        rows: The rows.
    """

    def __init__(self, message: str, rows: np.ndarray, unit: str = "example") -> None:
        """Fills in the first rows.

        Args:
            message: What is wrong; {rows} stands for the first rows, and {units} for the examples.
            rows: The rows, shape (n,), integers.
            unit: What has the rows: "example", or "position".
        """
        text = message.replace("{rows}", str(np.asarray(rows[:5]).tolist()))
        super().__init__(text.replace("{units}", f"{unit}s"))
        self._message = message
        self.rows = rows

    def renamed(self, names: np.ndarray, unit: str) -> "ExamplesError":
        """Returns the error for units, see above, that have other names than their rows."""
        return ExamplesError(self._message, names[self.rows], unit)
