"""Presets of train_cifar: recipes whose values go between flags and defaults."""

import dataclasses

import pytest

from fisher_keras.experiments.command_line import flags
from fisher_keras.experiments.training.config import TrainingConfig, resolve
from fisher_keras.experiments.training.training_presets import TRAINING_PRESETS, TrainingOptions


def training(*arguments):
    values = flags.parse(TrainingOptions, "train_cifar", arguments)
    return flags.from_flags(TrainingOptions, values).training


@pytest.mark.parametrize("name", TRAINING_PRESETS)
def test_a_preset_is_a_whole_training(name):
    config = training(f"--preset={name}")
    assert config == TrainingConfig(**TRAINING_PRESETS[name])
    assert resolve(config).output_dir


def test_a_flag_goes_before_the_preset():
    config = training("--preset=imagenet", "--epochs=3", "--label_smoothing=0")
    usual = TRAINING_PRESETS["imagenet"]
    assert config == TrainingConfig(**usual | {"epochs": 3, "label_smoothing": 0.0})


@pytest.mark.parametrize(
    ("given", "dropped"),
    [
        ({"method": "plain"}, ["strength", "step_length"]),
        ({"method": "sam"}, ["strength", "step_length"]),
        ({"method": "ghost"}, ["strength", "step_length"]),
        ({"regularize": False}, ["method", "strength", "step_length"]),
        ({"beta": 1.0}, ["strength"]),
        ({"gradient": "hessian_vector_product"}, ["step_length"]),
        ({"dataset": "cifar10"}, ["image_size"]),
        ({"dataset": "folder"}, []),
    ],
)
def test_what_a_given_flag_leaves_without_a_meaning_is_not_of_the_preset(given, dropped):
    config = training("--preset=imagenet", *(f"--{n}={v}".lower() for n, v in given.items()))
    usual = {n: v for n, v in TRAINING_PRESETS["imagenet"].items() if n not in dropped}
    assert config == TrainingConfig(**usual | given)
    assert config.regularize == ("method" not in given and "regularize" not in given)
    resolve(config)


def test_without_a_preset_the_defaults_stay():
    assert training("--epochs=3") == dataclasses.replace(TrainingConfig(), epochs=3)
    with pytest.raises(ValueError, match="--preset must be one of imagenet, got 'cifar'"):
        TrainingOptions(preset="cifar", training=TrainingConfig())
