"""Per-example gradients of one weight: explicit, or factored by the structure of a layer."""

import dataclasses
import functools
import math
from collections.abc import Callable

import tensorflow as tf

# Entries of a block of per-example gradients: 64 MiB in float32, 128 MiB in float64.
_BLOCK_ENTRIES = 2**24


@dataclasses.dataclass(frozen=True)
class Explicit:
    """N per-example gradients, stored as a tensor.

    Attributes:
        gradients: Shape (N, *weight.shape).
    """

    gradients: tf.Tensor

    def explicit(self) -> tf.Tensor:
        """Returns the gradients, shape (N, *weight.shape)."""
        return self.gradients

    def weighted_sum(self, coefficients: tf.Tensor) -> tf.Tensor:
        """Returns the sum of the gradients, each times its coefficient, of the weight's shape."""
        coefficients = tf.cast(coefficients, self.gradients.dtype)[tf.newaxis]
        return tf.reshape(tf.matmul(coefficients, _flat(self.gradients)), self.gradients.shape[1:])

    def blocks(self) -> list[Callable[[], tf.Tensor]]:
        """Returns a function that gives the gradients as a matrix of shape (N, P)."""
        return [lambda: _flat(self.gradients)]


@dataclasses.dataclass(frozen=True)
class Factored:
    r"""N per-example gradients of the form $\sum_l X_{nla} \Delta_{nlb}$, over positions l.

    Attributes:
        size: N, L, A and B.
        make_factors: Returns X, shape (N, L, A), and Delta, shape (N, L, B). Both may be several
            times as large as the tensors that they are made from. Therefore they are only made
            when they are needed.
        restore: Reshapes gradients of shape (n, A, B), for any n, to (n, *weight.shape).
    """

    size: tuple[int, int, int, int]
    make_factors: Callable[[], tuple[tf.Tensor, tf.Tensor]]
    restore: Callable[[tf.Tensor], tf.Tensor]

    @functools.cached_property
    def factors(self) -> tuple[tf.Tensor, tf.Tensor]:
        """X and Delta."""
        return self.make_factors()

    def explicit(self) -> tf.Tensor:
        """Returns the gradients, shape (N, *weight.shape)."""
        return self.restore(self._columns(0, self.size[-1]))

    def weighted_sum(self, coefficients: tf.Tensor) -> tf.Tensor:
        """Returns the sum of the gradients, each times its coefficient, of the weight's shape."""
        x, delta = self.factors
        delta *= tf.cast(coefficients, delta.dtype)[:, tf.newaxis, tf.newaxis]
        # With the coefficients in Delta, examples and positions are one axis to sum over.
        x, delta = (tf.reshape(t, [-1, t.shape[-1]]) for t in (x, delta))
        return self.restore(tf.matmul(x, delta, transpose_a=True)[tf.newaxis])[0]

    def blocks(self) -> list[Callable[[], tf.Tensor]]:
        """Returns functions that give columns of the matrix of gradients, in any order."""
        count, _, rows, columns = self.size
        # Columns of Delta give whole columns of the matrix, so that no block is made twice.
        step = max(1, _BLOCK_ENTRIES // (count * rows))
        return [
            lambda first=first: _flat(self._columns(first, first + step))
            for first in range(0, columns, step)
        ]

    def _columns(self, first: int, last: int) -> tf.Tensor:
        x, delta = self.factors
        return tf.matmul(x, delta[..., first:last], transpose_a=True)


@dataclasses.dataclass(frozen=True)
class SparseRows:
    """Row-sparse gradients of an embedding table: N examples look up L rows each.

    Attributes:
        shape: Shape of the table, (rows, ...).
        indices: The rows that are looked up, int, shape (N, L).
        deltas: The gradients at the values of these rows, shape (N, L, B), B entries per row.
    """

    shape: tuple[int, ...]
    indices: tf.Tensor
    deltas: tf.Tensor

    def explicit(self) -> tf.Tensor:
        """Returns the gradients, shape (N, *weight.shape)."""
        table = self._tables(self.indices, self.shape[0], self.deltas)
        return tf.reshape(table, [-1, *self.shape])

    def weighted_sum(self, coefficients: tf.Tensor) -> tf.Tensor:
        """Returns the sum of the gradients, each times its coefficient, of the weight's shape."""
        deltas = self.deltas * tf.cast(coefficients, self.deltas.dtype)[:, tf.newaxis, tf.newaxis]
        rows = tf.reshape(deltas, [-1, deltas.shape[-1]])
        table = tf.math.unsorted_segment_sum(rows, tf.reshape(self.indices, [-1]), self.shape[0])
        return tf.reshape(table, self.shape)

    def blocks(self) -> list[Callable[[], tf.Tensor]]:
        """Returns functions that give the nonzero columns of the gradient matrix.

        The columns have at most as many rows of the table as the examples look up, in any order.
        """
        count, length, entries = self.deltas.shape
        # Rows that no example looks up are left out: the others get new indices from 0 on.
        rows = min(self.shape[0], count * length)
        step = max(1, _BLOCK_ENTRIES // (count * rows))
        # The new indices are below `rows`, which is known without the values: shapes stay static.
        _, indices = tf.unique(tf.reshape(self.indices, [-1]))
        indices = tf.reshape(indices, [count, length])
        return [
            lambda first=first: _flat(
                self._tables(indices, rows, self.deltas[..., first : first + step])
            )
            for first in range(0, entries, step)
        ]

    def _tables(self, indices: tf.Tensor, rows: int, deltas: tf.Tensor) -> tf.Tensor:
        """Adds up each example's deltas in a table of its own, shape (N, rows, b)."""
        count, length, entries = deltas.shape
        # One table under the other, so that a single sum over segments fills all of them.
        places = tf.cast(indices, tf.int32) + rows * tf.range(count)[:, tf.newaxis]
        tables = tf.math.unsorted_segment_sum(
            tf.reshape(deltas, [count * length, entries]),
            tf.reshape(places, [-1]),
            count * rows,
        )
        return tf.reshape(tables, [count, rows, entries])


def together(parts: list[Factored]) -> Factored:
    """Returns the sum of gradients that are factored in the same way, over all their positions.

    A sum of explicit gradients would take the memory of all of them.
    """
    count, _, rows, columns = parts[0].size

    def make_factors() -> tuple[tf.Tensor, tf.Tensor]:
        factors = zip(*(part.make_factors() for part in parts), strict=True)
        x, delta = (tf.concat(factor, axis=1) for factor in factors)
        return x, delta

    length = sum(part.size[1] for part in parts)
    return Factored((count, length, rows, columns), make_factors, parts[0].restore)


Gradients = Explicit | Factored | SparseRows


def for_new_graph(gradients: list[Gradients]) -> list[Gradients]:
    """Returns gradients for use in a graph inside of theirs, without their made factors."""
    return [dataclasses.replace(part) for part in gradients]


def _flat(gradients: tf.Tensor) -> tf.Tensor:
    count, *shape = gradients.shape
    return tf.reshape(gradients, [count, math.prod(shape)])
