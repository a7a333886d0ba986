"""Tables of which a sub-batch moves few rows, moved in a copy that all sub-batches share.

To copy a large table for each sub-batch would take longer than all else in a step.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.graph import keras_private
from fisher_keras.regularizer.arithmetic import add, is_sparse
from fisher_keras.regularizer.losses import BatchLosses
from fisher_keras.regularizer.step_types import LossAndGradient
from fisher_keras.regularizer.sub_batches import SubBatches


@dataclasses.dataclass
class Tables:
    """Weights, and copies of some of them that nothing else uses.

    Attributes:
        weights: w.
        copies: Tensors equal to weights, by their positions among these.
    """

    weights: list[tf.Tensor]
    copies: dict[int, tf.Tensor] = dataclasses.field(default_factory=dict)

    def loss_at(self, loss: Callable, move: Callable, steps: list) -> LossAndGradient:
        """Returns a loss and its gradient at other weights; the copies are as before afterwards.

        Args:
            loss: Gives the loss and its gradient at any weights.
            move: `arithmetic.add` or `arithmetic.subtract`.
            steps: The distance from w, in the order of the weights.
        """
        moved = {i: c for i, c in self.copies.items() if is_sparse(steps[i])}
        there = [moved.get(i, weight) for i, weight in enumerate(self.weights)]
        there = list(map(move, there, steps))
        found = loss(there)
        # TensorFlow changes a tensor in place only once all that use it are done.
        with tf.control_dependencies(tf.nest.flatten(found, expand_composites=True)):
            for i in moved:
                self.copies[i] = _put_back(there[i], self.weights[i], steps[i].indices)
        return found


def sum_over(
    sub_batches: SubBatches,
    terms: Callable[[tf.Tensor, tf.Tensor, Tables], Any],
    weights: list[tf.Tensor],
    positions: Sequence[int],
    equal_sizes: bool = False,
) -> Any:
    """Returns `SubBatches.sum_over` of a function that also takes tables.

    Args:
        sub_batches: The sub-batches.
        terms: Takes the index of a sub-batch, the positions of its examples, and the tables.
        weights: w.
        positions: Those of the weights that are copied.
        equal_sizes: See `SubBatches.sum_over`.
    """

    def with_copies(index: tf.Tensor, rows: tf.Tensor, copies: list) -> tuple[Any, list]:
        tables = Tables(weights, dict(zip(positions, copies, strict=True)))
        found = terms(index, rows, tables)
        return found, list(tables.copies.values())

    return sub_batches.sum_over(with_copies, equal_sizes, [weights[i] for i in positions])


def embeddings(losses: BatchLosses) -> list[int]:
    """Returns the positions in w of embeddings, of which sub-batches look up few rows.

    The list is empty in eager mode, which has no loop, and where gradients of tables are dense.

    Args:
        losses: L and L~ on a mini-batch.
    """
    if tf.executing_eagerly() or losses.dense_parts:
        return []
    layers = keras_private.all_layers(losses.model.model)
    tables = [layer for layer in layers if isinstance(layer, keras.layers.Embedding)]
    found = {id(v) for layer in tables for v in layer.trainable_variables}
    return [i for i, v in enumerate(stateless.weights(losses.model)) if id(v) in found]


def _put_back(moved: tf.Tensor, table: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Returns a table of which some rows were moved, with these rows as they were."""
    # Adding the step again would round. TensorFlow can only add to rows in place, not set them.
    for values in (-tf.gather(moved, rows), tf.gather(table, rows)):
        moved = add(moved, tf.IndexedSlices(values, rows))
    return moved
