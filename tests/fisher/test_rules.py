"""Rules of operations that no model on this device reaches."""

import numpy as np
import pytest
import tensorflow as tf

from fisher_keras.fisher.rules import RULES, WeightUse


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_indices_outside_of_a_table_have_no_gradient(dtype):
    """A GPU looks up zeros there. A CPU refuses, so that the lookup itself is not evaluated."""
    indices = np.array([[0, 7, 4], [4, -1, 4], [2, 5, 2]])
    deltas = np.random.default_rng(0).normal(size=(3, 3, 2))
    coefficients = np.array([2.0, -1.0, 0.5])

    @tf.function
    def gradients():
        given = tf.constant(indices, dtype)
        use = WeightUse(tf.gather(tf.ones([5, 2]), given).op, 0, {given.ref()})
        found = RULES["GatherV2"](use, tf.constant(deltas), 3)
        return found.explicit(), found.weighted_sum(tf.constant(coefficients)), squares(found)

    def squares(found):
        return tf.add_n([tf.reduce_sum(block() ** 2, axis=1) for block in found.blocks()])

    expected = np.zeros((3, 5, 2))
    for example, place in np.argwhere((indices >= 0) & (indices < 5)):
        expected[example, indices[example, place]] += deltas[example, place]
    explicit, total, norms = gradients()
    np.testing.assert_allclose(explicit, expected, rtol=1e-12)
    np.testing.assert_allclose(total, np.tensordot(coefficients, expected, 1), rtol=1e-12)
    np.testing.assert_allclose(norms, (expected**2).sum(axis=(1, 2)), rtol=1e-12)
