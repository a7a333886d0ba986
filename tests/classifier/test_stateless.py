"""Models at other weights, without a trace in them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fisher_keras import FisherRegularizedModel
from fisher_keras.classifier import stateless
from fisher_keras.fisher import loss_gradient_gram


class Untold(keras.Model):
    """Its call does not take the mode, and does not pass it on."""

    def __init__(self):
        super().__init__()
        self.dropout = keras.layers.Dropout(0.5)

    def call(self, inputs):
        return self.dropout(inputs)


def test_call_tells_the_mode_to_all_layers():
    """Keras hands the mode of an outer `__call__` on to layers that are not told."""
    x = np.ones((8, 50), np.float32)
    for inner in (Untold(), keras.Sequential([keras.layers.Dropout(0.5)])):
        model = FisherRegularizedModel(keras.Sequential([keras.Input((50,)), inner]))
        assert np.any(model(x, training=True) != x)
        np.testing.assert_array_equal(model(x, training=False), x)
    # Keras' own steps do not tell a model whose call does not ask.
    np.testing.assert_array_equal(FisherRegularizedModel(Untold())(x, training=True), x)
    np.testing.assert_array_equal(stateless.call(Untold(), x, None), x)


def test_scope_has_other_values_and_drops_what_is_assigned():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.5)),
            keras.layers.BatchNormalization(),
        ]
    )
    before = [v.numpy() for v in model.variables]
    weights = [2 * tf.ones_like(v) for v in stateless.values(model.trainable_variables)]
    state = stateless.values(model.non_trainable_variables)
    with stateless.scope(model, weights, state) as scope:
        outputs = model(np.ones((5, 4), np.float32), training=True)
        (penalty,) = model.losses
    np.testing.assert_allclose(penalty, 0.5 * 4 * 12)
    np.testing.assert_allclose(outputs, 2 * np.ones((5, 3)))  # All examples are alike: beta.
    mean = model.non_trainable_variables[0]
    np.testing.assert_allclose(scope.get_current_value(mean), 0.01 * np.full(3, 4 * 2 + 2))
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_scope_casts_to_the_compute_dtype():
    """As `stateless_call`, which calls `call`, would not."""
    dense = keras.layers.Dense(2, dtype="mixed_bfloat16")
    model = keras.Sequential([keras.Input((3,)), dense], name="mixed")
    weights = stateless.values(model.trainable_variables)
    with stateless.scope(model, weights, []):
        assert model(np.ones((1, 3), np.float32)).dtype == tf.bfloat16


class Weighted(keras.layers.Layer):
    def __init__(self, dtype):
        super().__init__()
        self.w = self.add_weight(shape=(2,), dtype=dtype, name="w")

    def call(self, x):
        return x


@pytest.mark.parametrize("dtype", ["complex64", "int32"])
def test_weights_that_are_no_real_numbers_are_refused(dtype):
    """Products of complex gradients are no inner products, and integers have no gradient."""
    layer = Weighted(dtype)
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=f"real numbers.*w' of dtype {dtype}"):
        loss_gradient_gram(model, np.ones((2, 4), "float32"), [0, 1])
    layer.trainable = False
    assert loss_gradient_gram(model, np.ones((2, 4), "float32"), [0, 1]).matrix.shape == (2, 2)
