"""The random split of a mini-batch into sub-batches of Algorithm 1 (line 2)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

# How many sub-batches may be under way at once: with two, the small kernels of one fill the gaps
# that the other leaves between its own; more only costs memory.
_PARALLEL_SUB_BATCHES = 2


@dataclasses.dataclass(frozen=True)
class SubBatches:
    """A mini-batch B, shuffled and split into M sub-batches B_i as evenly as it can be.

    The first `remainder` sub-batches hold one example more than the others.

    Attributes:
        permutation: The order of the examples, shape (B,), int32: sub-batches are runs of it.
        count: M, the number of sub-batches, at most B; int32 scalar.
        size: The size of the smaller sub-batches, int32 scalar.
        remainder: How many sub-batches hold size + 1, int32 scalar.
    """

    permutation: tf.Tensor
    count: tf.Tensor
    size: tf.Tensor
    remainder: tf.Tensor

    def sum_over(
        self,
        terms: Callable[[tf.Tensor, tf.Tensor], Any],
        zeros: Any,
        equal_sizes: bool,
    ) -> Any:
        """Sums a function over the sub-batches, one after another in one loop.

        Args:
            terms: Takes the index i of a sub-batch, and the positions of its examples in the
                mini-batch (int32, shape (|B_i|,)); returns a structure of tensors.
            zeros: The structure to start from.
            equal_sizes: Whether |B_i| must not depend on the loop's index, as XLA asks: then
                the larger and the smaller sub-batches have a loop each.

        Returns:
            The sums, in the structure of `zeros`.
        """
        larger = self.remainder
        loops = [(0, self.count, lambda index: self.size + tf.cast(index < larger, tf.int32))]
        if equal_sizes:
            # XLA compiles a loop's body even if it never runs: no size may be above |B|.
            above = tf.minimum(self.size + 1, tf.size(self.permutation))
            loops = [
                (0, larger, lambda index: above),
                (larger, self.count, lambda index: self.size),
            ]
        sums = zeros
        for first, end, size_of in loops:
            sums = self._sum_range(terms, sums, first, end, size_of)
        return sums

    def weight(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns M |B_i| / |B|, by which `mean` becomes one over examples; float64."""
        # Sizes may differ by one: then a mean of means is not a mean over examples.
        weight = tf.cast(self.count * tf.size(rows), tf.float64)
        return weight / tf.cast(tf.size(self.permutation), tf.float64)

    def mean(self, sums: Any) -> Any:
        """Returns a structure of sums over the sub-batches divided by M."""
        return tf.nest.map_structure(lambda total: _divide(total, self.count), sums)

    def _sum_range(
        self, terms: Callable, sums: Any, first: Any, end: Any, size_of: Callable
    ) -> Any:
        def body(index: tf.Tensor, sums: Any) -> tuple[tf.Tensor, Any]:
            # Of the sub-batches before this one, the first `remainder` have one example more.
            begin = index * self.size + tf.minimum(index, self.remainder)
            rows = tf.slice(self.permutation, [begin], [size_of(index)])
            return index + 1, tf.nest.map_structure(_add, sums, terms(index, rows))

        _, sums = tf.while_loop(
            lambda index, _: index < end,
            body,
            (tf.convert_to_tensor(first), sums),
            parallel_iterations=_PARALLEL_SUB_BATCHES,
        )
        return sums


def split_batch(batch_size: tf.Tensor, num_sub_batches: int, seed: tf.Tensor | None) -> SubBatches:
    """Splits a mini-batch, at random if there is a seed.

    Args:
        batch_size: |B|, int32 scalar.
        num_sub_batches: M; a batch smaller than that is split into single examples.
        seed: Shape (2,), integers: the same seed gives the same split. None keeps the order.

    Returns:
        The split.
    """
    count = tf.minimum(num_sub_batches, batch_size)
    size, remainder = batch_size // count, batch_size % count
    if seed is None:
        return SubBatches(tf.range(batch_size), count, size, remainder)
    # XLA knows no shuffle, but sorting random keys is one; and its random integers, unlike its
    # random floats, are those of TensorFlow without XLA.
    keys = tf.random.stateless_uniform(
        [batch_size], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    permutation = tf.argsort(keys)
    return SubBatches(permutation, count, size, remainder)


def _add(total: tf.Tensor, term: tf.Tensor) -> tf.Tensor:
    """Adds tensors of one shape; where that has a 1, TensorFlow would think of broadcasting."""
    added = total + term
    added.set_shape(total.shape)
    return added


def _divide(total: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Divides a sum by M; counters, which all move alike, stay whole."""
    if total.dtype.is_floating:
        return total / tf.cast(count, total.dtype)
    return total // tf.cast(count, total.dtype)
