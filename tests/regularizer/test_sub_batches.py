"""The random split of a mini-batch."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from small_models import assert_equal

from fisher_keras.regularizer.sub_batches import split_batch


@pytest.mark.parametrize(("size", "count"), [(12, 4), (11, 4), (128, 8), (3, 8), (1, 1)])
def test_the_split_is_even_random_and_complete(size, count):
    def parts(seed):
        split = split_batch(tf.constant(size), count, tf.constant([seed, 0]))
        collected = []

        def terms(index, where, scratch):
            collected.append(where.numpy())
            return tf.constant(0), scratch

        split.sum_over(terms)
        return collected

    first = parts(1)
    sizes = sorted(len(part) for part in first)
    assert len(first) == min(size, count)
    assert sizes[-1] - sizes[0] <= 1
    assert sorted(np.concatenate(first)) == list(range(size))
    assert_equal(first, parts(1))
    if size > 3:
        assert np.any(np.concatenate(first) != np.concatenate(parts(2)))


@pytest.mark.parametrize("count", [1, 3])
def test_xla_sums_the_same_over_batches_of_every_size(count):
    """Also those that fit in no sub-batch but one, and those that are split evenly."""

    def sums(size, equal_sizes):
        split = split_batch(tf.constant(size), count, tf.constant([5, 0]))
        rows = tf.cast(tf.range(size), tf.float32)

        def terms(index, where, scratch):
            values = tf.gather(rows, where)
            placed = tf.scatter_nd(where[:, None], values[:, None], [size, 1])
            return (placed, tf.reduce_mean(values) * tf.cast(index + 1, tf.float32)), scratch

        return split.sum_over(terms, equal_sizes)

    traced = [
        functools.partial(tf.function(sums, jit_compile=xla, autograph=False), equal_sizes=xla)
        for xla in (False, True)
    ]
    for size in range(1, 2 * count + 2):
        for function in traced:
            placed, weighted = function(size)
            np.testing.assert_array_equal(placed[:, 0], np.arange(size))
            np.testing.assert_allclose(weighted, sums(size, False)[1], rtol=1e-6)


@pytest.mark.parametrize("seed", [5, 2**31 + 5, 2**32 + 5])
def test_xla_splits_in_the_same_way(seed):
    def permutation(compiled):
        seeds = tf.constant([seed, 3], tf.int64)
        split = functools.partial(split_batch, tf.constant(50), 4, seeds)
        return tf.function(lambda: split().permutation, jit_compile=compiled)().numpy()

    np.testing.assert_array_equal(permutation(True), permutation(False))
