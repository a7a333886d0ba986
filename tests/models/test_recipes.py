"""Tests of the recipes against the numbers of the papers they are from."""

import math
from fractions import Fraction

import keras
import numpy as np
import pytest

from fisher_keras.models import (
    ARCHITECTURES,
    RECIPES,
    build_model,
    build_optimizer,
    learning_rate_at,
)


def test_every_architecture_has_a_recipe():
    assert tuple(RECIPES) == ARCHITECTURES


@pytest.mark.parametrize(
    ("arch", "batch_size", "epochs", "nesterov", "weight_decay"),
    [
        # The CNN's is a coefficient of the sum of squares, whose gradient is twice as large.
        ("cnn", 128, 200, True, 2e-4),
        ("resnet", 128, 164, False, 1e-4),
        ("wide_resnet", 128, 200, True, 5e-4),
        ("densenet", 64, 300, True, 1e-4),
    ],
)
def test_numbers_are_the_papers(arch, batch_size, epochs, nesterov, weight_decay):
    recipe = RECIPES[arch]
    assert (recipe.batch_size, recipe.epochs, recipe.nesterov) == (batch_size, epochs, nesterov)
    assert (recipe.momentum, recipe.augmentation) == (0.9, "4-crop-f")
    assert 2 * recipe.l2_penalty == pytest.approx(weight_decay)


def test_resnet_epochs_are_its_64k_iterations():
    iterations_per_epoch = -(-50_000 // 128)
    milestones = [epoch for epoch, _ in RECIPES["resnet"].schedule]
    expected = [round(steps / iterations_per_epoch) for steps in (32_000, 48_000, 64_000)]
    assert [*milestones, RECIPES["resnet"].epochs] == expected


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_penalty_is_the_one_that_the_model_applies(arch):
    regularizers = [
        layer.kernel_regularizer
        for layer in build_model(arch, 10).layers
        if hasattr(layer, "kernel_regularizer")
    ]
    assert {float(regularizer.l2) for regularizer in regularizers} == {RECIPES[arch].l2_penalty}


# Learning rates of the epochs at which they change, from the papers.
SCHEDULES = {
    "cnn": {0: 0.01, 99: 0.01, 100: 0.001, 149: 0.001, 150: 0.0001, 199: 0.0001},
    "resnet": {0: 0.1, 81: 0.1, 82: 0.01, 122: 0.01, 123: 0.001, 163: 0.001},
    "wide_resnet": {
        **{0: 0.1, 59: 0.1, 60: 0.02, 119: 0.02},
        **{120: 0.004, 159: 0.004, 160: 0.0008, 199: 0.0008},
    },
    "densenet": {0: 0.1, 149: 0.1, 150: 0.01, 224: 0.01, 225: 0.001, 299: 0.001},
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_learning_rate_changes_at_the_papers_epochs(arch):
    for epoch, expected in SCHEDULES[arch].items():
        assert learning_rate_at(RECIPES[arch], epoch) == pytest.approx(expected, rel=1e-12)


def test_shorter_training_scales_the_schedule():
    rates = [learning_rate_at(RECIPES["cnn"], epoch, epochs=20) for epoch in range(20)]
    np.testing.assert_allclose(rates, [0.01] * 10 + [0.001] * 5 + [0.0001] * 5)
    # Milestones of 200 epochs become 4.5, 9 and 12 of 15: epoch 4 begins before 4.5.
    rates = [learning_rate_at(RECIPES["wide_resnet"], epoch, epochs=15) for epoch in range(15)]
    np.testing.assert_allclose(rates, [0.1] * 5 + [0.02] * 4 + [0.004] * 3 + [0.0008] * 3)


def test_one_epoch_has_the_initial_learning_rate():
    assert all(learning_rate_at(recipe, 0, epochs=1) > 0.001 for recipe in RECIPES.values())


@pytest.mark.parametrize("epochs", [7, 20, 99, 164, 1000])
def test_scaled_milestones_are_exact(epochs):
    # ResNet's milestones are no round fractions of its epochs: rounding would show.
    rates = [learning_rate_at(RECIPES["resnet"], epoch, epochs) for epoch in range(epochs)]
    first, second = (math.ceil(Fraction(start, 164) * epochs) for start in (82, 123))
    expected = [0.1] * first + [0.01] * (second - first) + [0.001] * (epochs - second)
    np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_another_initial_learning_rate_keeps_the_factors():
    assert learning_rate_at(RECIPES["cnn"], 160, learning_rate=0.5) == pytest.approx(0.005)


def test_scheduler_callback_follows_the_recipe():
    recipe = RECIPES["wide_resnet"]
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(build_optimizer(recipe), "mse")
    seen = []
    model.fit(
        np.zeros((1, 1)),
        np.zeros((1, 1)),
        epochs=10,
        verbose=0,
        callbacks=[
            keras.callbacks.LearningRateScheduler(
                lambda epoch: learning_rate_at(recipe, epoch, epochs=10)
            ),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: seen.append(float(model.optimizer.learning_rate))
            ),
        ],
    )
    np.testing.assert_allclose(seen, [0.1] * 3 + [0.02] * 3 + [0.004] * 2 + [0.0008] * 2, 1e-6)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_optimizer_moves_by_the_momentum_of_the_paper(arch):
    optimizer = build_optimizer(RECIPES[arch], learning_rate=0.1)
    weight = keras.Variable([1.0])
    w, velocity = 1.0, 0.0
    for gradient in (1.0, -0.5, 2.0):
        optimizer.apply([keras.ops.array([gradient])], [weight])
        velocity = 0.9 * velocity - 0.1 * gradient
        w += 0.9 * velocity - 0.1 * gradient if RECIPES[arch].nesterov else velocity
    np.testing.assert_allclose(weight.numpy(), [w], rtol=1e-6)
    assert not optimizer.weight_decay  # It is in the model's penalties.


def test_optimizer_starts_at_the_recipes_learning_rate():
    assert float(build_optimizer(RECIPES["densenet"]).learning_rate) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epoch": -1}, "epoch must be a whole number, 0 or greater"),
        ({"epoch": 0, "epochs": 0}, "epochs must be a whole number, 1 or greater"),
    ],
)
def test_impossible_epochs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        learning_rate_at(RECIPES["cnn"], **arguments)


@pytest.mark.parametrize("learning_rate", [0.0, -0.1, float("nan"), float("inf")])
def test_impossible_learning_rates_are_refused(learning_rate):
    with pytest.raises(ValueError, match="number greater than 0"):
        learning_rate_at(RECIPES["cnn"], 0, learning_rate=learning_rate)
    with pytest.raises(ValueError, match="number greater than 0"):
        build_optimizer(RECIPES["cnn"], learning_rate)
