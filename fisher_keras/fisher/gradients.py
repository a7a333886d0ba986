"""Per-example gradients of one weight: explicit, or factored as a layer's structure gives them."""

import dataclasses
import functools
import math
from collections.abc import Callable

import tensorflow as tf

# Entries of a block of per-example gradients: 64 MiB in float32, 128 MiB in float64.
_BLOCK_ENTRIES = 2**24


@dataclasses.dataclass(frozen=True)
class Explicit:
    """Gradients of N examples that are there as a tensor.

    Attributes:
        gradients: Shape (N, *weight.shape).
    """

    gradients: tf.Tensor

    def explicit(self) -> tf.Tensor:
        """Returns the gradients, shape (N, *weight.shape)."""
        return self.gradients

    def weighted_sum(self, coefficients: tf.Tensor) -> tf.Tensor:
        """Returns the sum of the gradients, each times its coefficient, of the weight's shape."""
        return tf.tensordot(tf.cast(coefficients, self.gradients.dtype), self.gradients, 1)

    def blocks(self) -> list[Callable[[], tf.Tensor]]:
        """Returns a function that gives the gradients as a matrix of shape (N, P)."""
        return [lambda: _flat(self.gradients)]


@dataclasses.dataclass(frozen=True)
class Factored:
    r"""Gradients of N examples that are $\sum_l X_{nla} \Delta_{nlb}$, over positions l.

    Attributes:
        size: N, L, A and B.
        make_factors: Returns X, shape (N, L, A), and Delta, shape (N, L, B). Both may be several
            times as large as what they are made of: they are made when they are asked for.
        restore: Takes gradients of shape (n, A, B), for any n, to (n, *weight.shape).
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
        x, delta = (tf.reshape(t, [-1, t.shape[-1]]) for t in (x, delta))
        return self.restore(tf.matmul(x, delta, transpose_a=True)[tf.newaxis])[0]

    def blocks(self) -> list[Callable[[], tf.Tensor]]:
        """Returns functions that give columns of the matrix of gradients, in any order."""
        count, _, rows, columns = self.size
        step = max(1, _BLOCK_ENTRIES // (count * rows))
        return [
            lambda first=first: _flat(self._columns(first, first + step))
            for first in range(0, columns, step)
        ]

    def _columns(self, first: int, last: int) -> tf.Tensor:
        x, delta = self.factors
        return tf.matmul(x, delta[..., first:last], transpose_a=True)


Gradients = Explicit | Factored


def _flat(gradients: tf.Tensor) -> tf.Tensor:
    count, *shape = gradients.shape
    return tf.reshape(gradients, [count, math.prod(shape)])
