"""The random split of a mini-batch into sub-batches of Algorithm 1 (line 2)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from fisher_keras.regularizer.arithmetic import add, is_sparse, map_values, once_a_dtype

# How many sub-batches may be under way at once: with two, the small kernels of one fill the gaps
# that the other leaves between its own; more only costs memory.
_PARALLEL_SUB_BATCHES = 2


@dataclasses.dataclass(frozen=True)
class SubBatches:
    """A mini-batch B, shuffled and split into M sub-batches B_i as evenly as it can be.

    The first `remainder` sub-batches hold one example more than the others.

    Attributes:
        permutation: The order of the examples, shape (B,), int32. A sub-batch is a range of it.
        count: M, the number of sub-batches, at most B; int32 scalar.
        size: The size of the smaller sub-batches, int32 scalar.
        remainder: The number of sub-batches that hold size + 1 examples, int32 scalar.
    """

    permutation: tf.Tensor
    count: tf.Tensor
    size: tf.Tensor
    remainder: tf.Tensor

    def sum_over(
        self, terms: Callable, equal_sizes: bool = False, scratch: Sequence[tf.Tensor] = ()
    ) -> Any:
        """Sums a function over the sub-batches, one after another in one loop.

        Args:
            terms: Takes the index i of a sub-batch, the positions of its examples in the
                mini-batch (int32, shape (|B_i|,)), and the list `scratch`. Returns a structure of
                tensors, maybe sparse (`tf.IndexedSlices` as `arithmetic.add` returns them), and
                the list for the next sub-batch. An unknown dimension is the number of examples in
                the mini-batch. The function is traced once.
            equal_sizes: Whether |B_i| must not depend on the loop's index, as XLA needs it. Then
                there is one loop for the larger and one for the smaller sub-batches.
            scratch: Tensors that the loop keeps for the function to change in place; only without
                `equal_sizes`.

        Returns:
            The sums, in the structure of a term.
        """
        if tf.executing_eagerly():
            each = ((i, self._rows(i, i < self.remainder)) for i in tf.range(self.count))
            add_up = functools.partial(tf.nest.map_structure, _add)
            return functools.reduce(add_up, (terms(*one, list(scratch))[0] for one in each))
        # One trace for sub-batches of every size; and what it returns is known before the loop.
        arguments = [tf.TensorSpec(shape, tf.int32) for shape in ([], [None])]
        arguments.append([tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in scratch])
        terms = tf.function(terms, autograph=False).get_concrete_function(*arguments)
        sums = tf.nest.map_structure(self._zeros, terms.structured_outputs[0])
        if not equal_sizes:
            return self._sum_range(terms, sums, 0, self.count, None, scratch)
        sums = self._sum_range(terms, sums, 0, self.remainder, True)
        return self._sum_range(terms, sums, self.remainder, self.count, False)

    def weight(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns M |B_i| / |B|, which turns `mean` into a mean over examples; float64."""
        # Sizes may differ by one: then a mean of means is not a mean over examples.
        weight = tf.cast(self.count * tf.size(rows), tf.float64)
        return weight / tf.cast(tf.size(self.permutation), tf.float64)

    def mean(self, sums: Any) -> Any:
        """Returns a structure of sums over the sub-batches divided by M."""
        count = once_a_dtype(self.count)
        return tf.nest.map_structure(lambda total: _divide(total, count(total.dtype)), sums)

    def _sum_range(
        self,
        terms: Callable,
        sums: Any,
        first: Any,
        end: Any,
        larger: bool | None,
        scratch: Sequence[tf.Tensor] = (),
    ) -> Any:
        """Adds the terms of a range of sub-batches; `larger` selects the size, None both sizes."""

        def body(index: tf.Tensor, sums: list, scratch: list) -> tuple[tf.Tensor, list, list]:
            rows = self._rows(index, index < self.remainder if larger is None else larger)
            term, scratch = terms(index, rows, scratch)
            return index + 1, list(map(_add, sums, tf.nest.flatten(term))), scratch

        flat, scratch = tf.nest.flatten(sums), list(scratch)
        _, flat, _ = tf.while_loop(
            lambda index, *_: index < end,
            body,
            (tf.convert_to_tensor(first), flat, scratch),
            (tf.TensorShape([]), list(map(_invariant, flat)), [t.shape for t in scratch]),
            parallel_iterations=_PARALLEL_SUB_BATCHES,
        )
        return tf.nest.pack_sequence_as(sums, flat)

    def _rows(self, index: Any, larger: Any) -> tf.Tensor:
        """Returns the positions of the examples of a sub-batch."""
        # Of the sub-batches before this one, the first `remainder` have one example more.
        begin = index * self.size + tf.minimum(index, self.remainder)
        # XLA compiles a loop's body even if it never runs: no size may be above |B|.
        size = tf.minimum(self.size + tf.cast(larger, tf.int32), tf.size(self.permutation))
        return tf.slice(self.permutation, [begin], [size])

    def _zeros(self, term: Any) -> Any:
        """Returns the sum of no terms."""
        if is_sparse(term):
            of_row = term.values.shape[1:]
            # How many rows the whole has, a function does not tell before it is called.
            shape = tf.constant([-1, *of_row], tf.int64)
            values = tf.zeros([0, *of_row], term.dtype)
            return tf.IndexedSlices(values, tf.zeros([0], tf.int64), shape)
        shape = term.shape.as_list()
        if None in shape:  # Outputs have a row for each example of B.
            shape = tf.stack([tf.size(self.permutation), *shape[1:]])
        return tf.zeros(shape, term.dtype)


def split_batch(batch_size: tf.Tensor, num_sub_batches: int, seed: tf.Tensor | None) -> SubBatches:
    """Splits a mini-batch, at random if a seed is given.

    Args:
        batch_size: |B|, int32 scalar.
        num_sub_batches: M; a batch smaller than that is split into single examples.
        seed: Shape (2,), integers: the same seed gives the same split. None keeps the order.

    Returns:
        The split.
    """
    message = "A mini-batch without examples cannot be split: filter before .batch(), not after"
    with tf.control_dependencies([tf.debugging.assert_positive(batch_size, message)]):
        count = tf.minimum(num_sub_batches, batch_size)
    size, remainder = batch_size // count, batch_size % count
    if seed is None:
        return SubBatches(tf.range(batch_size), count, size, remainder)
    # XLA knows no shuffle, but sorting random keys is one; and its random integers, unlike its
    # random floats, are those of TensorFlow without XLA. If the algorithm had no name, that would
    # be so for seeds below 2**32 alone, and those of replicas are larger.
    keys = tf.random.stateless_uniform([batch_size], seed, None, None, tf.int32, alg="philox")
    permutation = tf.argsort(keys)
    return SubBatches(permutation, count, size, remainder)


def _add(total: Any, term: Any) -> Any:
    """Adds tensors of one shape; with a 1 in the shape, TensorFlow would expect broadcasting."""
    added = add(total, term)
    if not is_sparse(added):
        added.set_shape(total.shape)
    return added


def _invariant(term: Any) -> tf.TensorShape:
    """Returns the shape common to all iterations, in which a sparse part gains rows."""
    return tf.TensorShape([None, *term.values.shape[1:]]) if is_sparse(term) else term.shape


def _divide(total: Any, count: tf.Tensor) -> Any:
    """Divides a sum by M; seeds, which all change equally, stay integers."""
    if total.dtype.is_floating:
        return map_values(lambda values: values / count, total)
    return total // count
