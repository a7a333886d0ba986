"""beta by its ratio to SGD's own regularization, in each k-th step, and its logs and warnings."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from closed_forms import algorithm_1, examples
from marks import each_value, nightly
from small_models import (
    assert_close,
    compiled,
    conv_net,
    images,
    softmax_regression_model,
    sparse_loss,
    sub_batches_of,
    weights_of,
)

from fisher_keras import FisherRegularizedModel
from fisher_keras.regularizer.sub_batches import split_batch

SGD, schedules = keras.optimizers.SGD, keras.optimizers.schedules


def regression(**options):
    return compiled(softmax_regression_model(), **{"alpha": 0.3, "num_sub_batches": 4, **options})


def linear():
    keras.utils.set_random_seed(7)
    layers = [keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((6, 6, 2)), *layers])


def steps_in_numpy(model, x, y, betas, rates, momentum=0.0, clip_norm=None):
    """Trains softmax regression by Algorithm 1 with a beta and a learning rate for each step."""
    weights, velocity = weights_of(model), None
    for step, (beta, rate) in enumerate(zip(betas, rates, strict=True)):
        model.optimizer.iterations.assign(step)
        parts = sub_batches_of(model, len(x))
        gradient = algorithm_1(x, y, weights, parts, model.alpha, beta)[2]
        norm = np.sqrt(sum(np.sum(g**2) for g in gradient))
        scale = 1.0 if clip_norm is None else min(1.0, clip_norm / norm)
        moves = [-rate * scale * g for g in gradient]
        if velocity is not None:
            moves = [momentum * v + m for v, m in zip(velocity, moves, strict=True)]
        velocity = moves
        weights = [w + m for w, m in zip(weights, moves, strict=True)]
    model.optimizer.iterations.assign(0)
    return weights


def beta_of(strength, rate, momentum, sub_batches, alpha=0.3):
    return strength * rate / (2 * alpha * sub_batches * (1 - momentum))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_strength_follows_the_learning_rate(float64, wrapped):
    """The steps are those of the beta that is written out, and the log is the strength."""
    x, y = examples(12)
    rates = [0.5, 0.5, 0.125, 0.125]
    optimizer = SGD(schedules.PiecewiseConstantDecay([1], [0.5, 0.125]), momentum=0.75)
    if wrapped:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
    model = regression(strength=2.0, optimizer=optimizer, clip_norm=None)
    assert model.beta is None
    if wrapped:
        model.train_on_batch(x, y)
        beta = model.current_beta()
        assert float(beta) == pytest.approx(beta_of(2.0, 0.5, 0.75, 4))
        return
    betas = [beta_of(2.0, rate, 0.75, 4) for rate in rates]
    expected = steps_in_numpy(model, x, y, betas, rates, momentum=0.75)
    history = model.fit(x, y, batch_size=12, epochs=4, shuffle=False, verbose=0).history
    assert_close(weights_of(model), expected)
    np.testing.assert_allclose(history["explicit_to_implicit"], 2.0, rtol=1e-6)


def test_a_schedule_of_the_strength(float64):
    x, y = examples(12)
    strength = schedules.PiecewiseConstantDecay([0], [0.0, 4.0])
    model = regression(strength=strength, optimizer=SGD(0.5), clip_norm=None)
    betas = [0.0, beta_of(4.0, 0.5, 0.0, 4), beta_of(4.0, 0.5, 0.0, 4)]
    expected = steps_in_numpy(model, x, y, betas, [0.5] * 3)
    history = model.fit(x, y, batch_size=12, epochs=3, shuffle=False, verbose=0).history
    assert_close(weights_of(model), expected)
    np.testing.assert_allclose(history["explicit_to_implicit"], [0.0, 4.0, 4.0], rtol=1e-6)
    assert np.isnan(history["fisher_trace"]).tolist() == [True, False, False]


def test_accumulated_steps_have_their_sub_batches_together():
    optimizer = SGD(0.5, gradient_accumulation_steps=3)
    model = regression(strength=2.0, optimizer=optimizer)
    assert float(model.current_beta()) == pytest.approx(beta_of(2.0, 0.5, 0.0, 12))


@pytest.mark.parametrize("optimizer", ["adam", *map(nightly, ("adamw", "rmsprop", "lion"))])
def test_other_optimizers_have_no_such_ratio(optimizer):
    x, y = images()
    with pytest.raises(ValueError, match=r"give beta instead.*strength=0\.25, optimizer="):
        compiled(linear(), optimizer=optimizer, strength=0.25)
    model = compiled(linear(), optimizer=optimizer)
    model.optimizer.learning_rate = 0.01
    history = model.fit(x, y, epochs=8, verbose=0).history
    assert np.isnan(history["explicit_to_implicit"]).all()
    assert history["loss"][-1] < history["loss"][0]


class HalfSGD(SGD):
    """An optimizer with an update of its own."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient / 2, variable, learning_rate)


def test_a_subclass_of_sgd_with_another_update_is_another_optimizer():
    with pytest.raises(ValueError, match="optimizer=HalfSGD"):
        compiled(conv_net(), optimizer=HalfSGD(0.1), strength=0.25)


def test_the_ratio_at_a_learning_rate_of_zero():
    x, y = images(16)
    rate = schedules.PiecewiseConstantDecay([1], [0.0, 0.1])
    for options in ({"beta": 8.0}, {"strength": 0.5}):
        model = compiled(linear(), optimizer=SGD(rate), **options)
        history = model.fit(x, y, batch_size=4, verbose=0).history
        assert np.isfinite(history["explicit_to_implicit"]).all()


def test_beta_and_strength_say_the_same():
    with pytest.raises(ValueError, match=r"give one of them. Given: beta=10.0, strength=0.25"):
        FisherRegularizedModel(conv_net(), beta=10.0, strength=0.25)
    model = FisherRegularizedModel(conv_net())
    assert (model.beta, model.strength) == (10.0, None)
    model.strength = 0.5
    assert (model.beta, model.strength) == (None, 0.5)
    model.beta = 3
    assert (model.beta, model.strength) == (3.0, None)


# ------------------------------------------------------------------------------------ the warnings


def messages_of(model, count=1):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(count):
            model.fit(*images(), verbose=0)
    found = [one for one in caught if one.category is UserWarning]
    assert {one.filename for one in found} <= {__file__}  # Where `fit` is called.
    return [str(one.message) for one in found]


def test_the_first_fit_warns_of_a_weak_regularizer():
    """0.016 at beta 10: 156 would be a quarter."""
    (message,) = messages_of(compiled(linear(), optimizer=SGD(0.1, momentum=0.9)), 2)
    assert "is 0.016 times" in message
    assert "strength=0.25" in message
    assert "beta=160 " in message


@pytest.mark.parametrize(
    "options",
    [
        {"strength": 0.25},
        nightly({"beta": 1000.0}),
        {"beta": 0.0},
        {"optimizer": "adam"},
        {"optimizer": SGD(0.0)},
        {"beta": schedules.PiecewiseConstantDecay([9], [0.0, 1000.0])},
    ],
)
def test_no_warning(options):
    assert messages_of(compiled(linear(), **options)) == []


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_first_fit_names_ghost_batch_normalization(batch_norm):
    network = conv_net(batch_norm=batch_norm)
    found = messages_of(compiled(network, strength=1.0, share_gradients=True), 2)
    assert [("ghost batch normalization" in message) for message in found] == [True] * batch_norm


# ------------------------------------------------------------------------------------ the interval


@pytest.mark.parametrize(
    ("jit_compile", "shared"), each_value([False, True], [False, True, "auto"])
)
def test_every_third_step_has_three_times_beta(float64, shared, jit_compile):
    """And the clipping is the same in all steps."""
    x, y = examples(12)
    model = regression(
        beta=2.0,
        interval=3,
        clip_norm=0.3,
        share_gradients=shared,
        optimizer=SGD(0.5),
        compile_kwargs={"jit_compile": jit_compile},
    )
    betas = [6.0, 0.0, 0.0, 6.0, 0.0]
    expected = steps_in_numpy(model, x, y, betas, [0.5] * 5, clip_norm=0.3)
    history = model.fit(x, y, batch_size=12, epochs=5, shuffle=False, verbose=0).history
    assert_close(weights_of(model), expected, rtol=1e-7)
    assert min(history["gradient_norm"]) > 0.3
    assert np.isnan(history["fisher_trace"]).tolist() == [False, True, True, False, True]
    mean = np.mean(history["explicit_to_implicit"][:3])
    assert mean == pytest.approx(2 * 0.3 * 2.0 * 4 / 0.5)


def test_the_public_gradients_are_those_of_the_next_step(float64):
    x, y = examples(12)
    model = regression(beta=2.0, interval=2, clip_norm=None, optimizer=SGD(1.0))
    for _ in range(3):
        before = weights_of(model)
        gradients, _, _ = model.regularized_gradients(x, y)
        model.train_on_batch(x, y)
        assert_close(
            weights_of(model), [w - g for w, g in zip(before, gradients, strict=True)], rtol=1e-8
        )


class HalvedRate(keras.callbacks.Callback):
    """Halves the learning rate after each step."""

    def on_train_batch_end(self, batch, logs=None):
        rate = self.model.optimizer.learning_rate
        self.model.optimizer.learning_rate = float(rate) / 2


SURROUNDINGS = {
    "loss scaling": {"optimizer": lambda: keras.optimizers.LossScaleOptimizer(SGD(0.5))},
    "means of weights": {"optimizer": lambda: SGD(0.5, use_ema=True, ema_momentum=0.0)},
    "a rate set by a callback": {"callbacks": lambda: [HalvedRate()]},
    "several steps an execution": {"compile_kwargs": {"steps_per_execution": 3}},
    "eager": {"compile_kwargs": {"run_eagerly": True}},
    "replaced by a loaded one": {"reload": True},
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_strength_and_interval_in_all_surroundings(float64, name, tmp_path):
    """Each third step has three times the beta of the learning rate that it is taken with."""
    given = SURROUNDINGS[name]
    x, y = examples(12)
    model = regression(
        strength=1.0,
        interval=3,
        clip_norm=0.3,
        optimizer=given.get("optimizer", lambda: SGD(0.5))(),
        compile_kwargs=given.get("compile_kwargs", {}),
    )
    rates = [0.5 / 2**step if "callbacks" in given else 0.5 for step in range(6)]
    betas = [0 if i % 3 else 3 * beta_of(1.0, rate, 0.0, 4) for i, rate in enumerate(rates)]
    expected = steps_in_numpy(model, x, y, betas, rates, clip_norm=0.3)
    batches = tf.data.Dataset.from_tensors((x, y)).repeat()
    for steps in (2, 4) if given.get("reload") else (6,):
        callbacks = given.get("callbacks", list)()
        model.fit(batches, steps_per_epoch=steps, verbose=0, callbacks=callbacks)
        if steps == 2:
            model.save(tmp_path / "model.keras")
            model = keras.saving.load_model(tmp_path / "model.keras")
    assert_close(weights_of(model), expected)


@pytest.mark.parametrize("options", [{}, {"share_gradients": True, "direction": "central"}])
def test_an_interval_while_gradients_accumulate(float64, options):
    """Steps are counted, not updates; and what is clipped is the mean of an update's steps."""
    x, y = examples(12)
    optimizer = SGD(0.5, gradient_accumulation_steps=2)
    model = regression(beta=2.0, interval=3, clip_norm=0.3, optimizer=optimizer, **options)
    expected, sums = weights_of(model), [0.0, 0.0]
    for step in range(6):
        seed = tf.constant([model.seed, step], tf.int64)
        parts = np.split(split_batch(tf.constant(12), 4, seed).permutation.numpy(), 4)
        beta = 0.0 if step % 3 else 6.0
        gradient = algorithm_1(x, y, expected, parts, model.alpha, beta)[2]
        if options:
            sides = [algorithm_1(x, y, expected, parts, s * model.alpha, beta) for s in (1, -1)]
            pairs = zip(sides[0][2], sides[1][2], strict=True)
            plain = algorithm_1(x, y, expected, parts, model.alpha, 0.0)[2]
            gradient = [p + (a - b) / 2 for p, (a, b) in zip(plain, pairs, strict=True)]
        sums = [s + g / 2 for s, g in zip(sums, gradient, strict=True)]
        if step % 2:
            norm = np.sqrt(sum(np.sum(s**2) for s in sums))
            assert norm > 0.3
            expected = [w - 0.5 * 0.3 / norm * s for w, s in zip(expected, sums, strict=True)]
            sums = [0.0, 0.0]
    model.fit(x, y, batch_size=12, epochs=6, shuffle=False, verbose=0)
    assert_close(weights_of(model), expected)


@pytest.mark.parametrize(
    ("options", "betas"),
    [
        ({"strength": 1.0, "interval": 2}, [2 * beta_of(1.0, 0.5, 0.0, 4), 0] * 2),
        ({"beta": schedules.PiecewiseConstantDecay([0], [0.0, 2.0]), "clip_norm": 0.3}, [0, 2]),
        (
            {"beta": schedules.PiecewiseConstantDecay([2], [0.0, 2.0]), "interval": 2},
            [0] * 4 + [4],
        ),
    ],
)
def test_betas_of_the_steps(float64, options, betas):
    x, y = examples(12)
    options = {"clip_norm": None} | options
    model = regression(optimizer=SGD(0.5), **options)
    rates = [0.5] * len(betas)
    expected = steps_in_numpy(model, x, y, betas, rates, clip_norm=options["clip_norm"])
    model.fit(x, y, batch_size=12, epochs=len(betas), shuffle=False, verbose=0)
    assert_close(weights_of(model), expected)


def test_phases_of_weights_in_float64_by_their_policy_alone(set_policy):
    """Keras then has the loss of a plain step in float32."""
    set_policy("float64")
    x, y = examples(12)
    model = regression(beta=2.0, interval=2, optimizer=SGD(0.5), clip_norm=None)
    expected = steps_in_numpy(model, x, y, [4.0, 0.0], [0.5, 0.5])
    model.fit(x, y, batch_size=12, epochs=2, shuffle=False, verbose=0)
    assert_close(weights_of(model), expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------- several optimizers


def several_optimizers(**options):
    by_path = keras.optimizers.OptimizerMap(SGD(0.5, **options))
    by_path[".*/bias"] = SGD(0.25)
    return keras.optimizers.MultiOptimizer(by_path)


has_several = pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="This Keras has no MultiOptimizer."
)


@has_several
def test_several_optimizers_take_algorithm_1_and_have_no_ratio(float64):
    x, y = examples(12)
    model = regression(beta=2.0, optimizer=several_optimizers(), clip_norm=None)
    before, parts = weights_of(model), sub_batches_of(model, 12)
    gradient = algorithm_1(x, y, before, parts, model.alpha, 2.0)[2]
    history = model.fit(x, y, batch_size=12, shuffle=False, verbose=0).history
    expected = [w - r * g for w, r, g in zip(before, (0.5, 0.25), gradient, strict=True)]
    assert_close(weights_of(model), expected)
    assert np.isnan(history["explicit_to_implicit"]).all()


@has_several
def test_several_optimizers_that_accumulate_clip_no_sums():
    x, y = examples(12)
    make = lambda: several_optimizers(gradient_accumulation_steps=2)  # noqa: E731
    with pytest.raises(ValueError, match=r"Use clip_norm=None.*MultiOptimizer of SGD, SGD"):
        regression(optimizer=make()).train_on_batch(x, y)
    model = regression(optimizer=make(), clip_norm=None)
    assert np.isfinite(model.train_on_batch(x, y, return_dict=True)["gradient_norm"])


# ------------------------------------------------------------------- ghost batch normalization


def norm_net():
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((5,)), *layers])


@pytest.mark.parametrize(
    ("way", "scheduled"), each_value(["graph", "eager", "xla"], [False, True])
)
def test_shared_gradients_without_r_are_ghost_batch_normalization(float64, scheduled, way):
    """The mean over the sub-batches of plain Keras gradients, each with moments of its own."""
    x, y = examples(11)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    beta = schedules.PiecewiseConstantDecay([9], [0.0, 2.0]) if scheduled else 0.0
    options = {"eager": {"run_eagerly": True}, "xla": {"jit_compile": True}}.get(way, {})
    model = compiled(
        norm_net(),
        optimizer=SGD(1.0),
        beta=beta,
        num_sub_batches=3,
        share_gradients=True,
        clip_norm=0.1,
        compile_kwargs=options,
    )
    gradients, moved = [], []
    for part in sub_batches_of(model, 11):
        network = norm_net()
        before = [v.numpy() for v in network.non_trainable_variables]
        with tf.GradientTape() as tape:
            value = loss(y[part], network(x[part], training=True))
        gradients.append([g.numpy() for g in tape.gradient(value, network.trainable_variables)])
        after = [v.numpy() for v in network.non_trainable_variables]
        moved.append([a - b for a, b in zip(after, before, strict=True)])
    mean = [np.mean(parts, axis=0) for parts in zip(*gradients, strict=True)]
    norm = np.sqrt(sum(np.sum(g**2) for g in mean))
    assert norm > 0.1
    start = weights_of(model)
    logs = model.train_on_batch(x, y, return_dict=True)
    expected = [w - g * 0.1 / norm for w, g in zip(start, mean, strict=True)]
    assert_close(weights_of(model), expected)
    statistics = [np.mean(parts, axis=0) for parts in zip(*moved, strict=True)]
    found = [v.numpy() for v in model.model.non_trainable_variables]
    assert_close(found, [b + m for b, m in zip(before, statistics, strict=True)])
    assert np.isnan(logs["fisher_regularizer"])
    assert logs["gradient_norm"] == pytest.approx(norm)


def test_a_tiny_beta_is_the_control(float64):
    """So that the two arms differ in R alone."""
    x, y = images(40)
    weights = []
    for beta in (0.0, 1e-12):
        model = compiled(conv_net(dropout=0.4), beta=beta, share_gradients=True, alpha=0.1)
        model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        weights.append(weights_of(model))
    assert_close(*weights, rtol=1e-7)


class Weighted(keras.Model):
    def compute_loss(self, *args, **kwargs):
        return 3 * super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize("change", ["sum", "mean_with_sample_weight", "weights", "compute_loss"])
def test_a_loss_that_is_no_mean_has_no_such_ratio(change):
    """SGD's own regularization follows its square, and R does not change with it."""
    x, y = images()
    network, options, loss = linear(), {}, sparse_loss()
    if change == "weights":
        options = {"loss_weights": [3.0]}
    elif change == "compute_loss":
        network = Weighted(network.inputs, network.outputs)
    else:
        loss = sparse_loss(reduction=change)
    with pytest.raises(ValueError, match=r"mean over the examples.*give beta instead.*strength=0"):
        compiled(network, loss, optimizer=SGD(0.1), compile_kwargs=options, strength=0.25)
    model = compiled(network, loss, optimizer=SGD(0.1), compile_kwargs=options)
    assert np.isnan(model.fit(x, y, verbose=0).history["explicit_to_implicit"]).all()


@pytest.mark.parametrize("weights", [1.0, [1.0], [np.ones(1)], {"dense": 1.0}])
def test_a_loss_weight_of_one_leaves_the_ratio(weights):
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")])
    loss = {"dense": sparse_loss()} if isinstance(weights, dict) else sparse_loss()
    options = {"loss_weights": weights}
    model = compiled(network, loss, optimizer=SGD(0.1), compile_kwargs=options, strength=0.25)
    assert model.has_plain_loss


def test_a_loss_scale_is_not_the_optimizer_that_is_named():
    adam = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    with pytest.raises(ValueError, match="optimizer=Adam"):
        compiled(conv_net(), optimizer=adam, strength=0.25)


def test_fit_before_compile_is_keras_error():
    with pytest.raises(ValueError, match=r"compile\(\)"):
        FisherRegularizedModel(conv_net()).fit(*images(), verbose=0)
