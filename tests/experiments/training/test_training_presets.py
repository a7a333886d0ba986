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


def test_without_a_preset_the_defaults_stay():
    assert training("--epochs=3") == dataclasses.replace(TrainingConfig(), epochs=3)
    with pytest.raises(ValueError, match="--preset must be one of imagenet, got 'cifar'"):
        TrainingOptions(preset="cifar", training=TrainingConfig())
