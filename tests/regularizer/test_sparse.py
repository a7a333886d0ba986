"""Tables of which few rows are looked up: steps are those of dense gradients, to float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import each_value, nightly
from small_models import assert_close, compiled, weights_of

from fisher_keras import SharpnessAwareModel
from fisher_keras.regularizer import arithmetic
from fisher_keras.regularizer.arithmetic import subtract
from fisher_keras.regularizer.step_types import LossAndGradient
from fisher_keras.regularizer.sub_batches import split_batch
from fisher_keras.regularizer.tables import sum_over

ROWS, WORDS = 40, 5
SGD, schedules = keras.optimizers.SGD, keras.optimizers.schedules


class OneHotLookup(keras.layers.Embedding):
    """The same table, looked up by a product: its gradient is dense."""

    def call(self, inputs):
        return keras.ops.one_hot(inputs, ROWS, dtype=self.compute_dtype) @ self._embeddings


def network(lookup, penalty=None):
    keras.utils.set_random_seed(5)
    table = lookup(ROWS, 3, embeddings_regularizer=penalty)
    pooled = [keras.layers.Flatten(), keras.layers.Dense(4, "tanh")]
    return keras.Sequential(
        [keras.Input((WORDS,), dtype="int32"), table, *pooled, keras.layers.Dense(3)]
    )


def texts(count=22):
    """Words of which some come several times, in one text and in several."""
    random = np.random.default_rng(2)
    x = random.integers(0, ROWS, (count, WORDS))
    x[::3, 1] = x[::3, 0]
    x[:, 4] = 7
    return x, random.integers(0, 3, count)


def test_the_norm_counts_a_row_once():
    """Rows that a gradient names twice are summed before they are squared."""
    random = np.random.default_rng(0)
    rows, values = [4, 1, 4, 0, 1, 4], random.normal(size=(6, 2))
    dense = np.zeros((5, 2))
    np.add.at(dense, rows, values)
    part = tf.IndexedSlices(tf.constant(values), tf.constant(rows), tf.constant([5, 2]))
    assert float(arithmetic.global_norm([part, None])) == pytest.approx(np.linalg.norm(dense))


def test_a_table_is_put_back_to_the_bit():
    """Each sub-batch moves rows of w itself, also by steps that rounding cannot undo."""
    w = np.random.default_rng(0).normal(size=(6, 2)).astype("float32")
    moved_rows, step = np.array([[0, 3], [3, 5], [1, 3]]), np.float32(1e6)

    def terms(index, _, tables):
        copy = tables.copies[0]
        moved = tf.gather(tf.constant(moved_rows), index)
        steps = [tf.IndexedSlices(tf.fill([2, 2], step), moved, tf.constant([6, 2], tf.int64))]
        found = tables.loss_at(
            lambda there: LossAndGradient(there[0][0, 0], there), subtract, steps
        )
        return found.gradient[0], tf.math.count_nonzero(copy != w)

    @tf.function(autograph=False)
    def sums():
        split = split_batch(tf.constant(6), len(moved_rows), None)
        return sum_over(split, terms, [tf.constant(w)], [0])

    total, changed = sums()
    there = np.stack([w] * 3)
    for one, rows in zip(there, moved_rows, strict=True):
        one[rows] -= step
    np.testing.assert_array_equal(total, there[0] + there[1] + there[2])
    assert changed == 0


OPTIONS = {
    "separate": {"share_gradients": False},
    "auto": {},
    "shared": {"share_gradients": True},
    "central": {"share_gradients": True, "step_length": 0.3, "direction": "central"},
    "ascent": {"step_length": 0.3, "direction": "ascent"},
    "product": {"gradient": "hessian_vector_product"},
    "interval": {"interval": 2},
    "strength": {"beta": None, "strength": 2.0, "share_gradients": False},
    "plain": {"beta": 0.0},
    "ghost": {"beta": 0.0, "share_gradients": True},
    "schedule": {"beta": lambda: schedules.PiecewiseConstantDecay([1], [0.0, 3.0])},
    "interval, shared": {"interval": 2, "share_gradients": True, "step_length": 0.3},
    "interval, product": {"interval": 2, "gradient": "hessian_vector_product"},
}


def assert_trains_alike(make):
    """Trains with both kinds of lookup and compares weights and logs."""
    x, y = texts()
    weights, logs = [], []
    for lookup in (keras.layers.Embedding, OneHotLookup):
        model = make(lookup)
        history = model.fit(x, y, batch_size=9, epochs=2, shuffle=False, verbose=0).history
        weights.append(weights_of(model))
        logs.append(history)
    assert_close(*weights, rtol=1e-7, atol=1e-10)
    for name, values in logs[1].items():
        np.testing.assert_allclose(logs[0][name], values, rtol=1e-7)


# Others have what these have.
IN_OTHERS = ("separate", "ascent", "interval", "strength", "shared", "plain", "product")


@pytest.mark.parametrize(
    ("name", "penalty"),
    [
        *((name, None) for name in OPTIONS if name not in IN_OTHERS),
        *(nightly(name, None) for name in IN_OTHERS),
        ("shared", "l2"),
        nightly("interval", "l2"),
    ],
)
def test_training_is_that_of_dense_gradients(float64, name, penalty):
    options = {k: v() if callable(v) else v for k, v in OPTIONS[name].items()}
    options = {"alpha": 0.3, "beta": 3.0, "num_sub_batches": 4, "clip_norm": 0.4} | options
    assert_trains_alike(
        lambda lookup: compiled(
            network(lookup, penalty), optimizer=SGD(0.5, momentum=0.9), **options
        )
    )


@pytest.mark.parametrize(("way", "interval"), each_value(["run_eagerly", "jit_compile"], [1, 2]))
def test_every_way_to_run_a_step(float64, interval, way):
    """Dense gradients are those of a graph each time."""

    def make(lookup):
        kwargs = {} if lookup is OneHotLookup else {way: True}
        return compiled(network(lookup), alpha=0.3, interval=interval, compile_kwargs=kwargs)

    assert_trains_alike(make)


NIGHTLY_OPTIMIZERS = ("Adam", "AdamW", "Adafactor", "RMSprop", "Lamb", "Ftrl")


@pytest.mark.parametrize(
    ("optimizer", "scaled"),
    [
        (keras.optimizers.Adam, True),
        *(nightly(getattr(keras.optimizers, name), False) for name in NIGHTLY_OPTIMIZERS),
    ],
)
def test_other_optimizers(float64, optimizer, scaled):
    def make(lookup):
        rule = optimizer(0.05, clipnorm=0.3)
        if scaled:
            rule = keras.optimizers.LossScaleOptimizer(rule, initial_scale=64.0)
        options = {"alpha": 0.3, "beta": 3.0, "clip_norm": 0.5, "interval": 1 + scaled}
        return compiled(network(lookup), optimizer=rule, **options)

    assert_trains_alike(make)


@pytest.mark.parametrize(
    "options", [{"gradient_accumulation_steps": 2}, nightly({"use_ema": True, "clipvalue": 0.01})]
)
def test_options_of_the_optimizer(float64, options):
    assert_trains_alike(
        lambda lookup: compiled(network(lookup), optimizer=SGD(0.5, **options), alpha=0.3)
    )


@pytest.mark.parametrize("sub_batches", [nightly(1), 3])
def test_sharpness_aware_training(float64, sub_batches):
    def make(lookup):
        model = SharpnessAwareModel(network(lookup), rho=0.2, sub_batches=sub_batches)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(SGD(0.5), loss, jit_compile=False)
        return model

    assert_trains_alike(make)


def test_the_public_gradients_are_dense():
    x, y = texts()
    model = compiled(network(keras.layers.Embedding))
    for gradient, weight in zip(
        model.regularized_gradients(x, y)[0], weights_of(model), strict=True
    ):
        assert isinstance(gradient, tf.Tensor)
        assert gradient.shape == weight.shape
