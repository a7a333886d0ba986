"""beta by the phases of the learning rate."""

import math

import numpy as np
import pytest

from fisher_keras.experiments.training.building import build_models
from fisher_keras.experiments.training.config import resolve
from fisher_keras.experiments.training.data import load_training_data
from fisher_keras.experiments.training.train import TrainingConfig, train
from fisher_keras.models import RECIPES, learning_rate_at, learning_rate_falls


def config(output_dir, **changes):
    values = {"dataset": "digits", "width": 0.05, "train_size": 40, "batch_size": 20, "epochs": 8}
    values |= {"regularize": True, "clip_norm": 0.0, "output_dir": str(output_dir)}
    return TrainingConfig(**(values | changes))


def test_each_phase_has_its_factor_from_the_step_on_at_which_the_learning_rate_falls(tmp_path):
    settings = resolve(config(tmp_path, beta=8.0, beta_phases="0,1,0.25"))
    data = load_training_data(settings)
    _, model = build_models(settings, data)
    recipe = RECIPES["cnn"]
    factors = {1.0: 0.0, 0.1: 1.0, 0.01: 0.25}
    for epoch in range(8):
        rate = learning_rate_at(recipe, epoch, 8, 1.0)
        beta = 8.0 * factors[round(rate, 6)]
        steps = range(2 * epoch, 2 * epoch + 2)
        assert [float(model.beta(step)) for step in steps] == [beta] * 2


def test_in_a_phase_of_0_it_is_plain_training(tmp_path):
    phased, plain = (
        train(config(tmp_path / name, epochs=4, **options), quiet=True)["history"]
        for name, options in (
            ("phased", {"beta_phases": "0,1,1"}),
            ("plain", {"regularize": False}),
        )
    )
    # The CNN's learning rate falls at a half and three quarters.
    assert phased["loss"][:2] == plain["loss"][:2]
    assert phased["loss"][3:] != plain["loss"][3:]
    assert [value is None for value in phased["fisher_trace"]] == [True] * 2 + [False] * 2


@pytest.mark.parametrize("epochs", [1, 3, 7, 164, 200])
@pytest.mark.parametrize("arch", ["cnn", "resnet", "densenet", "wide_resnet"])
def test_falls_are_where_the_learning_rate_is_lower_than_before(arch, epochs):
    recipe = RECIPES[arch]
    rates = [learning_rate_at(recipe, epoch, epochs, 1.0) for epoch in range(epochs)]
    for epoch, rate in enumerate(rates):
        passed = [
            factor
            for first, (_, factor) in zip(
                learning_rate_falls(recipe, epochs), recipe.schedule, strict=True
            )
            if first <= epoch
        ]
        assert rate == pytest.approx(math.prod(passed))
    expected = [math.ceil(start * epochs / recipe.epochs) for start, _ in recipe.schedule]
    np.testing.assert_array_equal(learning_rate_falls(recipe, epochs), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"beta_phases": "0,1"},
            "must be 3 numbers, .* cnn falls 2 times. Given: 0,1",
        ),
        ({"beta_phases": "0,1,-1"}, "must be 3 numbers"),
        ({"beta_phases": "0,x,1"}, "must be 3 numbers"),
        ({"beta_phases": "0,1,inf"}, "must be 3 numbers"),
        ({"beta_phases": "0,1,1", "schedule": "plateau"}, "needs --schedule=recipe"),
        ({"beta_phases": "0,1,1", "regularize": False}, "no effect without --regularize"),
    ],
)
def test_what_cannot_be_used(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)
