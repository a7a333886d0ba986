"""Mini-batches and sub-batches of labelled examples."""

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.classifier.inputs import leaves
from fisher_keras.regularizer.step_types import Structure


@dataclasses.dataclass(frozen=True)
class Batch(Structure):
    """Labelled examples as Keras gives them.

    Attributes:
        x: Inputs, a tensor with a row for each example or a structure of such tensors.
        y: Labels, as the compiled loss takes them.
        sample_weight: Weights of the examples, shape (B,), or None.
    """

    x: Any
    y: Any
    sample_weight: Any = None

    def size(self) -> tf.Tensor:
        """Returns the number of examples, int32 scalar."""
        return tf.shape(leaves(self.x)[0])[0]

    def is_of_any_size(self) -> bool:
        """Returns whether the inputs are symbolic, and tell no number of examples."""
        return all(leaf.shape[0] is None for leaf in leaves(self.x))

    def size_by_shapes(self) -> tf.Tensor:
        """Returns `size` so that XLA, which leaves assertions out, compiles only what is right."""
        with tf.name_scope("as_many_labels_as_inputs_and_one_at_least"):  # The error has it.
            rows = [tf.zeros([tf.shape(leaf)[0] - 1]) for leaf in leaves(self._fields())]
            return tf.shape(tf.stack(rows))[1] + 1

    def check(self) -> None:
        """Raises a ValueError if labels are missing, or numbers of examples differ."""
        labels = keras.tree.flatten(self.y)
        strings = [y for y in labels if y is not None and y.dtype == tf.string]
        if strings or any(y is None for y in labels):
            raise ValueError(
                "Labels must be numbers, classes or distributions: give (x, y), and number the "
                "classes, as np.unique(y, return_inverse=True)[1] does. Given: "
                f"{'labels that are strings' if strings else 'no labels'}."
            )
        tensors = leaves(self._fields())
        shapes = [tf.TensorShape(t.shape) for t in tensors]
        if any(shape.rank is None for shape in shapes):
            raise ValueError(
                "Data must have a known rank. After tf.numpy_function or tf.py_function, set it "
                "in the pipeline: x = tf.ensure_shape(x, (None, ...)). Given: a tensor of unknown "
                "shape."
            )
        if any(shape.rank == 0 for shape in shapes):
            raise ValueError(
                "Data must come in batches: call .batch() on a tf.data.Dataset. Given: a tensor "
                "without an axis of examples."
            )
        sizes = {shape[0] for shape in shapes}
        if len(sizes - {None}) > 1:
            raise ValueError(
                "All inputs and labels must hold the same number of examples. Given: "
                f"{', '.join(map(str, sorted(sizes - {None})))} rows."
            )
        # Rows are taken from all alike: more of them would be left out without a word.
        first, *others = tensors
        if others and None in sizes:
            tf.debugging.assert_equal(
                tf.stack([tf.shape(other)[0] for other in others]),
                tf.shape(first)[0],
                "All inputs, labels and weights must hold the same number of examples.",
            )

    def rows(self, index: tf.Tensor) -> "Batch":
        """Returns the examples in some rows.

        Args:
            index: The rows, int32, shape (R,).
        """
        return Batch(*keras.tree.map_structure(lambda t: _gather(t, index), self._fields()))

    def signature(self) -> tuple:
        """Returns the shapes and dtypes of all tensors, without the number of examples."""
        leaves = keras.tree.flatten(self._fields())
        return tuple(None if t is None else (*t.shape[1:], t.dtype) for t in leaves)

    def padded_to_one(self) -> "Batch":
        """Returns the batch; if it is empty, one example of zeros."""
        missing = tf.maximum(1 - self.size(), 0)
        return Batch(*keras.tree.map_structure(lambda t: _padded(t, missing), self._fields()))

    def _fields(self) -> tuple:
        return self.x, self.y, self.sample_weight


@dataclasses.dataclass(frozen=True)
class SubBatch(Structure):
    """A sub-batch B_i.

    Attributes:
        batch: Its examples.
        rows: Their positions in the mini-batch, int32, shape (|B_i|,).
        state: Values of the model's non-trainable variables, with the sub-batch's own seeds.
    """

    batch: Batch
    rows: tf.Tensor
    state: list[tf.Tensor]

    def in_mini_batch(self, outputs: tf.Tensor, batch_size: tf.Tensor) -> tf.Tensor:
        """Returns outputs in the rows of their examples in the mini-batch, 0 in the others."""
        if None in outputs.shape[1:]:
            raise ValueError(
                "The outputs of sub-batches are put together in one tensor, for which the number "
                "of positions must be known: set it in the data pipeline, or use share_gradients="
                f"False (sub_batches=1 for SAM). Given: outputs of shape {outputs.shape}."
            )
        shape = [batch_size, *outputs.shape[1:]]
        return tf.scatter_nd(self.rows[:, tf.newaxis], outputs, shape)


def only_tensor(structure: Any) -> tf.Tensor:
    """Returns the only tensor of a structure, as of named labels; several are a ValueError."""
    first, *others = keras.tree.flatten(structure)
    if others:
        raise ValueError(
            "The labels are one tensor, and so are the sample weights: which of several the "
            "classifier's loss takes cannot be told. Give these alone, and the others among the "
            f"inputs. Given: {keras.tree.map_structure(lambda t: tuple(t.shape), structure)}."
        )
    return first


def _gather(values: Any, rows: tf.Tensor) -> Any:
    """Returns rows of a tensor, which may be sparse."""
    if not isinstance(values, tf.SparseTensor):
        return None if values is None else tf.gather(values, rows)
    size = tf.size(rows)
    # For each old row its new one, counted from 1; 0 for a row that is left out.
    new_row = tf.scatter_nd(
        tf.cast(rows, tf.int64)[:, None], tf.range(1, size + 1), values.dense_shape[:1]
    )
    new_row = tf.gather(new_row, values.indices[:, 0])
    kept = new_row > 0
    indices = tf.concat([tf.cast(new_row, tf.int64)[:, None] - 1, values.indices[:, 1:]], axis=1)
    shape = tf.concat([tf.cast(size, tf.int64)[None], values.dense_shape[1:]], axis=0)
    found = tf.SparseTensor(
        tf.boolean_mask(indices, kept), tf.boolean_mask(values.values, kept), shape
    )
    return tf.sparse.reorder(found)


def _padded(values: Any, missing: tf.Tensor) -> Any:
    """Returns a tensor, which may be sparse, with rows of zeros added."""
    if values is None:
        return None
    if isinstance(values, tf.SparseTensor):
        rows = values.dense_shape[:1] + tf.cast(missing, tf.int64)
        shape = tf.concat([rows, values.dense_shape[1:]], axis=0)
        return tf.SparseTensor(values.indices, values.values, shape)
    rows = [[0, missing], *([[0, 0]] * (len(values.shape) - 1))]
    return tf.pad(values, rows)
