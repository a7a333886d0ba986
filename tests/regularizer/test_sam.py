"""SharpnessAwareModel against plain Keras gradients at w + epsilon, and a closed form."""

import doctest

import keras
import numpy as np
import pytest
import tensorflow as tf
from closed_forms import examples, softmax_regression
from marks import each_value
from small_models import (
    L2,
    NUM_CLASSES,
    assert_close,
    assert_equal,
    conv_net,
    images,
    smoothed_loss,
    softmax_regression_model,
    sparse_loss,
    state_of,
    weights_of,
)

from fisher_keras import SharpnessAwareModel
from fisher_keras.metrics import evaluate_local_minimum
from fisher_keras.regularizer import sam


def compiled(model, loss=None, optimizer=None, compile_kwargs=None, **kwargs):
    wrapped = SharpnessAwareModel(model, **kwargs)
    optimizer = optimizer or keras.optimizers.SGD(1.0)
    # Keras' "auto" is XLA on a GPU, which draws other masks of dropout than the references here.
    options = {"jit_compile": False, **(compile_kwargs or {})}
    wrapped.compile(optimizer, loss or sparse_loss(), **options)
    return wrapped


def epsilon(weights, gradient, rho, adaptive):
    units = [np.abs(w) + 0.01 if adaptive else np.ones_like(w) for w in weights]
    norm = np.sqrt(sum(np.sum((t * g) ** 2) for g, t in zip(gradient, units, strict=True)))
    return [rho * t**2 * g / norm for g, t in zip(gradient, units, strict=True)]


def keras_gradient(model, loss, x, y, sample_weight, weights, state):
    """That of the whole loss with its penalties, the model's state being what it was before."""
    for variable, value in zip(model.trainable_variables, weights, strict=True):
        variable.assign(value)
    for variable, value in zip(model.non_trainable_variables, state, strict=True):
        variable.assign(value)
    with tf.GradientTape() as tape:
        total = loss(y, model(x, training=True), sample_weight=sample_weight) + sum(model.losses)
    gradient = tape.gradient(total, [v.value for v in model.trainable_variables])
    return float(total), [g.numpy() for g in gradient]


def one_hot(y):
    return np.eye(NUM_CLASSES)[y]


CASES = {
    "dropout and batch norm": (lambda: conv_net(dropout=0.4), sparse_loss, False),
    "penalties": (lambda: conv_net(dropout=0.4, l2=L2), sparse_loss, False),
    "sample weights": (lambda: conv_net(dropout=0.4), sparse_loss, True),
    "smoothed labels": (conv_net, smoothed_loss, False),
}


@pytest.mark.exactness
@pytest.mark.parametrize("exponent", [-30, -20, 0, 20, 30])
def test_gradients_whose_squares_leave_float32(exponent):
    random = np.random.default_rng(0)
    weights = [random.normal(size=shape).astype("float32") for shape in ((4, 3), (3,))]
    gradient = [(random.normal(size=w.shape) * 10.0**exponent).astype("float32") for w in weights]
    gradient[1][0] = 0
    expected = epsilon(weights, [g.astype("float64") for g in gradient], 0.5, False)
    found = sam.perturbed_weights(weights, [*map(tf.constant, gradient)], 0.5, adaptive=False)
    for there, w, e in zip(found, weights, expected, strict=True):
        np.testing.assert_allclose(there, w + e, rtol=1e-6)


@pytest.mark.parametrize(("case", "adaptive"), each_value(CASES, [False, True]))
def test_a_step_is_the_gradient_at_the_other_weights(float64, case, adaptive):
    network, loss, weighted = case
    x, y = images()
    y = one_hot(y) if loss is smoothed_loss else y
    sample_weight = np.random.RandomState(2).rand(12) if weighted else None
    model, reference = compiled(network(), loss(), rho=0.3, adaptive=adaptive), network()
    before, state = weights_of(reference), state_of(reference)
    here, g = keras_gradient(reference, loss(), x, y, sample_weight, before, state)
    moved = [w + e for w, e in zip(before, epsilon(before, g, 0.3, adaptive), strict=True)]
    there, expected = keras_gradient(reference, loss(), x, y, sample_weight, moved, state)
    logs = model.train_on_batch(x, y, sample_weight=sample_weight, return_dict=True)
    assert_close(weights_of(model), [w - d for w, d in zip(before, expected, strict=True)])
    assert logs["loss"] == pytest.approx(here)
    assert logs["sharpness"] == pytest.approx(there - here)
    assert there > here


@pytest.mark.exactness
def test_equals_the_closed_form(float64):
    x, y = examples(12)
    model = compiled(softmax_regression_model())
    before = weights_of(model)
    _, g = softmax_regression(x, y, before)
    norm = np.sqrt(sum(np.sum(d**2) for d in g))
    moved = [w + 0.05 * d / norm for w, d in zip(before, g, strict=True)]
    _, expected = softmax_regression(x, y, moved)
    model.train_on_batch(x, y)
    assert_close(weights_of(model), [w - d for w, d in zip(before, expected, strict=True)])


@pytest.mark.nightly
def test_a_tiny_rho_is_plain_training(float64):
    x, y = images(40)
    plain = conv_net(dropout=0.4)
    plain.compile(keras.optimizers.SGD(0.1, momentum=0.9), sparse_loss())
    sgd = keras.optimizers.SGD(0.1, momentum=0.9)
    model = compiled(conv_net(dropout=0.4), optimizer=sgd, rho=1e-12)
    for m in (plain, model):
        m.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    assert_close(weights_of(model), weights_of(plain), rtol=1e-7)


def test_weights_without_a_gradient_stay(float64):
    """And a gradient of zero moves nothing, to no NaN."""
    weights = [tf.constant([1.0, -2.0], tf.float64), tf.constant([3.0], tf.float64)]
    zero = tf.zeros(2, tf.float64)
    for gradient in ([zero, None], [zero, tf.zeros(1, tf.float64)]):
        assert_equal(sam.perturbed_weights(weights, gradient, 0.1, False), weights)
    moved = sam.perturbed_weights(weights, [tf.constant([3.0, 4.0], tf.float64), None], 0.1, False)
    assert_close(moved, [[1.06, -1.92], [3.0]])


def test_half_precision(set_policy):
    x, y = images(32)
    full = compiled(conv_net())
    before = full.get_weights()
    full.train_on_batch(x, y)
    set_policy("mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=64.0)
    model = compiled(conv_net(), optimizer=optimizer)
    model.set_weights(before)
    model.train_on_batch(x, y)
    steps = [[a - b for a, b in zip(m.get_weights(), before, strict=True)] for m in (full, model)]
    error = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(*steps, strict=True)))
    assert error < 0.05 * np.sqrt(sum(np.sum(a**2) for a in steps[0]))
    # Overflowing, a step is left out and the scale lowered, as Keras does it.
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1), initial_scale=2.0**30
    )
    model = compiled(conv_net(), optimizer=optimizer)
    history = model.fit(x, y, batch_size=2, epochs=6, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert np.isfinite(history["sharpness"][-1])
    assert history["loss"][-1] < history["loss"][0]


def test_logs_evaluation_and_metrics():
    x, y = images(20)
    model = compiled(conv_net(), compile_kwargs={"metrics": ["accuracy"]})
    history = model.fit(x, y, batch_size=8, validation_data=(x, y), verbose=0).history
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy", "sharpness"}
    report = evaluate_local_minimum(model, (x, y), 5, 2, progress=False)
    expected = evaluate_local_minimum(model.model, (x, y), 5, 2, progress=False)
    assert report.metrics == expected.metrics


def test_any_loss_of_keras():
    x = np.random.RandomState(0).randn(20, 4).astype("float32")
    model = SharpnessAwareModel(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]))
    model.compile("adam", "mse")
    history = model.fit(x, x.sum(axis=1), epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


def test_a_loss_without_a_reduction_is_descended_as_keras_does():
    x, y = np.ones((6, 4)), np.arange(6) % 3
    models = []
    for wrap in (lambda model: model, lambda model: SharpnessAwareModel(model, rho=0.3)):
        keras.utils.set_random_seed(1)
        model = wrap(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
        model.compile(keras.optimizers.SGD(0.0), loss, jit_compile=False)
        models.append(model.train_on_batch(x, y, return_dict=True))
    assert models[1]["loss"] == pytest.approx(models[0]["loss"])
    assert models[1]["sharpness"] > 0


def test_defaults_are_the_papers():
    net = conv_net()
    assert SharpnessAwareModel(net).rho == 0.05
    assert SharpnessAwareModel(net, adaptive=True).rho == 0.5
    assert SharpnessAwareModel(net, rho=0.1, adaptive=True).rho == 0.1


# ---------------------------------------------------------------- schedules of rho, sub-batches


def schedule(*values):
    return keras.optimizers.schedules.PiecewiseConstantDecay([*range(len(values) - 1)], values)


@pytest.mark.parametrize(("scheduled", "adaptive"), each_value([False, True], [False, True]))
def test_a_rho_of_zero_is_a_plain_step(scheduled, adaptive):
    x, y = images(40)
    plain = conv_net(dropout=0.4, l2=L2)
    rho = schedule(*[0.0] * 9, 0.5) if scheduled else 0.0
    sgd = keras.optimizers.SGD(0.1, momentum=0.9)
    model = compiled(conv_net(dropout=0.4, l2=L2), optimizer=sgd, rho=rho, adaptive=adaptive)
    plain.compile(keras.optimizers.SGD(0.1, momentum=0.9), sparse_loss())
    for m in (plain, model):
        history = m.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
    # Under a schedule the step is a branch of a graph, where some processors fuse operations in
    # another way: rounding may differ then. Without one, every bit is the same.
    state = state_of(model.model)
    for mine, right in [
        (weights_of(model), weights_of(plain)),
        (state, state_of(plain)[: len(state)]),
    ]:
        if scheduled:
            assert_close(mine, right, rtol=1e-5, atol=1e-6)
        else:
            assert_equal(mine, right)
    assert history["sharpness"] == [0.0, 0.0]


def test_a_schedule_of_rho_is_of_each_step(tmp_path):
    x, y = images(12)
    models = [compiled(conv_net(), rho=rho) for rho in (schedule(0.0, 0.3), 0.0, 0.3)]
    for step in range(2):
        for m in models:
            m.train_on_batch(x, y)
        assert_equal(weights_of(models[0]), weights_of(models[1 + step]))
        for m in models:
            m.set_weights(models[0].get_weights())
    models[0].save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert float(loaded.rho(1)) == pytest.approx(0.3)


ASCENTS = {"plain": (0.3, False), "adaptive": (0.3, True), "no ascent": (0.0, False)}
ASCENTS |= {"scheduled": (schedule(0.3, 0.0), False)}


@pytest.mark.parametrize(("ascent", "way"), each_value(ASCENTS, ["graph", "eager", "xla"]))
def test_sub_batches_ascend_each_by_itself(float64, ascent, way):
    """Sub-batches of 4, 4 and 3 examples: means over the examples, with moments of their own."""
    rho, adaptive = ascent
    x, y = images(11)
    options = {"eager": {"run_eagerly": True, "jit_compile": None}, "xla": {"jit_compile": True}}
    network = conv_net(l2=L2)
    model = compiled(
        network, rho=rho, adaptive=adaptive, sub_batches=3, compile_kwargs=options.get(way)
    )
    length = float(rho(0)) if callable(rho) else rho
    reference = conv_net(l2=L2)
    before, state = weights_of(reference), state_of(reference)
    mean, here_mean, there_mean, moved = [np.zeros_like(w) for w in before], 0.0, 0.0, []
    for rows in np.split(np.arange(11), [4, 8]):
        batch = (reference, sparse_loss(), x[rows], y[rows], None)
        here, g = keras_gradient(*batch, before, state)
        moved.append(state_of(reference))
        ascent = epsilon(before, g, length, adaptive)
        there, gradient = keras_gradient(
            *batch, [w + e for w, e in zip(before, ascent, strict=True)], state
        )
        mean = [m + len(rows) / 11 * d for m, d in zip(mean, gradient, strict=True)]
        here_mean, there_mean = (
            total + len(rows) / 11 * value
            for total, value in ((here_mean, here), (there_mean, there))
        )
    logs = model.train_on_batch(x, y, return_dict=True)
    assert_close(weights_of(model), [w - d for w, d in zip(before, mean, strict=True)])
    assert logs["loss"] == pytest.approx(here_mean)
    assert logs["sharpness"] == pytest.approx(there_mean - here_mean)
    statistics = [np.mean(values, axis=0) for values in zip(*moved, strict=True)][:2]
    assert_close(state_of(model.model)[:2], statistics)


def test_sub_batches_train_and_have_outputs_in_order():
    """As many as there are examples at most; the metrics are those of the whole batch at w."""
    x, y = images(22)
    model = compiled(
        conv_net(batch_norm=False),
        optimizer=keras.optimizers.SGD(0.1),
        sub_batches=8,
        compile_kwargs={"metrics": ["accuracy"]},
    )
    expected = np.mean(model.model.predict(x, verbose=0).argmax(axis=1) == y)
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["accuracy"] == pytest.approx(expected)
    history = model.fit(x, y, batch_size=5, epochs=8, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert np.isfinite(history["sharpness"]).all()


def test_sub_batches_refuse_a_state_that_is_of_the_whole_batch():
    layers = [keras.Input(batch_shape=(4, 3, 2)), keras.layers.LSTM(2, stateful=True)]
    model = compiled(keras.Sequential([*layers, keras.layers.Dense(3)]), sub_batches=2)
    with pytest.raises(ValueError, match="stateful=False"):
        model.train_on_batch(np.zeros((4, 3, 2)), np.zeros(4, int))


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # It saves a model.
    assert doctest.testmod(sam, extraglobs={"np": np}).failed == 0


def test_a_schedule_of_rho_beside_weights_of_another_dtype():
    found = []
    for rho in (0.5, keras.optimizers.schedules.PiecewiseConstantDecay([9], [0.5, 1.0])):
        keras.utils.set_random_seed(0)
        dense = keras.layers.Dense(3, dtype="float64")
        classifier = keras.Sequential([keras.Input((4,), dtype="float64"), dense])
        model = SharpnessAwareModel(classifier, rho=rho)
        model.compile(keras.optimizers.SGD(0.5), sparse_loss())
        model.train_on_batch(np.eye(4), np.arange(4) % 3)
        found.append(dense.kernel.numpy())
    np.testing.assert_allclose(*found, rtol=1e-6)
