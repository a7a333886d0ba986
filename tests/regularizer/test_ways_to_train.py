"""Keras' ways to train and save, with the regularizer and with sharpness-aware minimization."""

import keras
import numpy as np
import pytest
from marks import nightly
from small_models import (
    L2,
    NUM_CLASSES,
    Subclassed,
    assert_close,
    assert_equal,
    compiled,
    conv_net,
    images,
    state_of,
    weights_of,
)

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel
from fisher_keras.regularizer.strength import explicit_to_implicit

STRONG = {"beta": 100.0, "alpha": 0.01, "num_sub_batches": 4}
PRODUCT = STRONG | {"gradient": "hessian_vector_product", "share_gradients": False}
WAYS = {
    "graph": {},
    "eager": {"run_eagerly": True},
    "several steps": {"steps_per_execution": 3},
    "xla": {"jit_compile": True},
}


@pytest.mark.parametrize(
    ("options", "ways"),
    [
        (STRONG | {"share_gradients": True}, WAYS),
        (PRODUCT, ("graph", "xla")),
        nightly(PRODUCT, WAYS),
        ({"method": SharpnessAwareModel, "rho": 0.5}, WAYS),
    ],
)
def test_every_way_to_run_a_step_gives_the_same_weights(options, ways):
    x, y = images(22)
    found = []
    for name in ways:
        model = compiled(conv_net(), compile_kwargs=WAYS[name], **options)
        model.fit(x, y, batch_size=10, epochs=2, shuffle=False, verbose=0)
        found.append(weights_of(model))
        assert_close(found[-1], found[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("batch_size", "num_sub_batches", "gradient", "shared"),
    [
        nightly(1, 2, "finite_difference", False),
        (1, 2, "hessian_vector_product", True),
        (3, 1, "finite_difference", False),
        nightly(3, 1, "finite_difference", True),
        nightly(3, 1, "hessian_vector_product", False),
    ],
)
def test_xla_takes_one_example_and_one_sub_batch(batch_size, num_sub_batches, gradient, shared):
    random = np.random.RandomState(1)
    x, y = random.randn(batch_size, 4), random.randint(0, NUM_CLASSES, batch_size)
    results = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(7)
        model = compiled(
            keras.Sequential([keras.Input((4,)), keras.layers.Dense(NUM_CLASSES)]),
            alpha=0.1,
            beta=20.0,
            num_sub_batches=num_sub_batches,
            gradient=gradient,
            share_gradients=shared,
            compile_kwargs={"jit_compile": jit_compile},
        )
        model.train_on_batch(x, y)
        results.append(weights_of(model))
    assert_close(*results, rtol=1e-4, atol=1e-6)


def test_logs_evaluation_and_prediction():
    x, y = images(20)
    model = compiled(conv_net(), compile_kwargs={"metrics": ["accuracy"]})
    history = model.fit(x, y, batch_size=8, validation_data=(x, y), verbose=0).history
    fisher = {"fisher_regularizer", "fisher_trace", "gradient_norm", "explicit_to_implicit"}
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"} | fisher
    assert set(model.evaluate(x, y, return_dict=True, verbose=0)) == {"loss", "accuracy"}
    plain = model.model.predict(x, verbose=0)
    assert_equal([model.predict(x, verbose=0)], [plain])


@pytest.mark.parametrize("loss_scaling", [False, True])
def test_the_strength_beside_sgds_own_is_of_each_step(loss_scaling):
    """Four steps: beta 8, 8, 0, 0 at the learning rates 0.1, 0.05, 0.05, 0.05."""
    schedules = keras.optimizers.schedules
    model = FisherRegularizedModel(
        conv_net(),
        alpha=0.01,
        beta=schedules.PiecewiseConstantDecay([1], [8.0, 0.0]),
        num_sub_batches=3,
    )
    optimizer = keras.optimizers.SGD(schedules.PiecewiseConstantDecay([0], [0.1, 0.05]))
    if loss_scaling:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, dynamic_growth_steps=100)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = images(16)
    history = model.fit(x, y, batch_size=4, verbose=0).history
    expected = 2 * 0.01 * 3 * np.mean([8 / 0.1, 8 / 0.05, 0, 0])
    assert history["explicit_to_implicit"] == pytest.approx([expected], rel=1e-5)


def test_the_strength_is_the_ratio_of_the_two_penalties():
    """One-dimensional gradients that are noise alone: of w x, x of mean 0."""
    rng = np.random.default_rng(0)
    examples, sub_batches, alpha, beta, rate = 64, 8, 0.01, 5.0, 0.1
    gradients = rng.normal(size=(20_000, examples))
    of_sub_batches = gradients.reshape(-1, sub_batches, examples // sub_batches).mean(axis=2)
    explicit = alpha * beta / 2 * np.mean(of_sub_batches**2)
    implicit = rate / 4 * np.mean(gradients.mean(axis=1) ** 2)
    expected = explicit_to_implicit(alpha, beta, sub_batches, rate, momentum=0.0)
    assert explicit / implicit == pytest.approx(float(expected), rel=0.03)


def test_a_run_repeats_and_the_seed_matters():
    x, y = images(30)
    results = []
    for seed in (3, 3, 4):
        model = compiled(conv_net(dropout=0.2), seed=seed, beta=100.0, alpha=0.01)
        model.fit(x, y, batch_size=10, epochs=2, shuffle=False, verbose=0)
        results.append(weights_of(model))
    assert_equal(results[0], results[1])
    assert any(np.any(a != b) for a, b in zip(results[0], results[2], strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"beta": keras.optimizers.schedules.PolynomialDecay(5.0, 20, 50.0), "seed": None},
        {"strength": 0.5, "interval": 2, "step_length": 0.1, "direction": "central"},
        {"method": SharpnessAwareModel, "rho": 0.2, "adaptive": True},
        nightly({"method": SharpnessAwareModel, "rho": 0.2}),
    ],
)
def test_saved_in_the_middle_goes_on_to_the_same_weights(tmp_path, options):
    x, y = images(40)
    model = compiled(conv_net(dropout=0.4, l2=L2), **options)
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    model.save(tmp_path / "middle.keras")
    loaded = keras.saving.load_model(tmp_path / "middle.keras")
    assert type(loaded) is type(model)
    for m in (model, loaded):
        m.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    assert_equal(weights_of(loaded), weights_of(model))
    assert_equal(state_of(loaded.model), state_of(model.model))


def test_a_subclassed_model_is_saved_and_loaded(tmp_path):
    random = np.random.RandomState(1)
    x, y = random.randn(30, 5).astype("float32"), random.randint(0, NUM_CLASSES, 30)
    model = compiled(Subclassed())
    model.fit(x, y, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    custom = {"Subclassed": Subclassed}
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects=custom)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    for m in (model, loaded):
        m.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert_equal(weights_of(loaded), weights_of(model))


def test_the_plain_model_is_saved_alone(tmp_path):
    x, y = images()
    model = compiled(conv_net())
    model.fit(x, y, verbose=0)
    model.model.save(tmp_path / "plain.keras")
    loaded = keras.saving.load_model(tmp_path / "plain.keras")
    assert type(loaded) is keras.Sequential
    assert_equal([loaded.predict(x, verbose=0)], [model.predict(x, verbose=0)])
