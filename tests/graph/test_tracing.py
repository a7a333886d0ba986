"""Traced functions of batches."""

import numpy as np
import pytest
import tensorflow as tf

from fisher_keras.graph.tracing import trace_for_any_batch_size, traced_once


def test_batches_of_any_size_are_traced_once():
    traces = []

    def total(x):
        traces.append(x)
        return tf.reduce_sum(x["a"]) + tf.cast(tf.shape(x["a"])[0], tf.float32)

    function = trace_for_any_batch_size(total)
    for size in (3, 1, 8):
        assert function({"a": np.ones((size, 2), "float32")}) == 3 * size
    assert len(traces) == 1


@pytest.mark.parametrize("in_loop", [False, True])
def test_a_function_is_traced_once_and_its_shapes_are_inferred_once(in_loop):
    traces, calls = [], []

    def products(x):
        traces.append(x)
        return [x @ x, tf.reduce_sum(x)]

    @tf.function
    def twice(x):
        once = traced_once(products)
        first, total = once(x)
        second, _ = once(first + total)
        calls.extend([first.op, second.op])
        assert first.shape == second.shape == (2, 2)
        return second

    @tf.function(autograph=False)
    def step(x):
        # Shapes that are not known here would not be those of the loop's variables.
        return tf.while_loop(lambda _: True, twice, [x], maximum_iterations=1)[0]

    x = np.arange(4, dtype="float32").reshape(2, 2)
    there = x @ x + x.sum()
    np.testing.assert_array_equal((step if in_loop else twice)(x), there @ there)
    assert len(traces) == 1
    assert all(op.get_attr("_disable_call_shape_inference") for op in calls)


def test_eager_functions_are_not_traced():
    assert traced_once(abs) is abs
