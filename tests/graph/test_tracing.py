"""Traced functions of batches."""

import numpy as np
import tensorflow as tf

from fisher_keras.graph.tracing import trace_for_any_batch_size


def test_batches_of_any_size_are_traced_once():
    traces = []

    def total(x):
        traces.append(x)
        return tf.reduce_sum(x["a"]) + tf.cast(tf.shape(x["a"])[0], tf.float32)

    function = trace_for_any_batch_size(total)
    for size in (3, 1, 8):
        assert function({"a": np.ones((size, 2), "float32")}) == 3 * size
    assert len(traces) == 1
