"""Flags made from a dataclass."""

import dataclasses

import numpy as np
import pytest
from absl import flags as absl_flags

from fisher_keras.experiments.command_line.flags import (
    REQUIRED,
    check_options,
    define_flags,
    flag_groups,
    from_flags,
    option,
)
from fisher_keras.experiments.evaluate import EvaluationConfig
from fisher_keras.experiments.training.config import TrainingConfig


@dataclasses.dataclass(frozen=True)
class Config:
    paths: tuple[str, ...] = option(REQUIRED, "Files.", group="input", repeated="path")
    kind: str = option("red", "Colour.", group="input", choices=("red", "green"))
    count: int | None = option(None, "How many.", group="numbers", least=1)
    factor: float = option(0.5, "By how much.", group="numbers", above=0)
    names: tuple[str, ...] = option(("a",), "Some of a, b.", group="input", choices=("a", "b"))
    fast: bool = option(False, "Hurry.", group="numbers")
    place: str | None = option(None, "Where.", group="output")
    inner: int = 7

    def __post_init__(self):
        check_options(self)


@dataclasses.dataclass(frozen=True)
class Longer(Config):
    seed: int = option(0, "Of all.", group="numbers", least=0)


def parsed(config, *arguments, leave_out=(), usual=None):
    values = absl_flags.FlagValues()
    define_flags(config, leave_out, flag_values=values)
    values(["script", *arguments])
    return from_flags(config, leave_out, usual, flag_values=values)


def test_defaults_are_those_of_the_dataclass():
    assert parsed(Config, "--path=x") == Config(("x",))
    assert parsed(Longer, "--path=x") == Longer(("x",))


def test_every_kind_of_flag_fills_its_field():
    arguments = ["--path=x", "--path=y", "--kind=green", "--count=3", "--factor=2"]
    arguments += ["--names=a,b", "--fast", "--place=there", "--seed=4"]
    assert parsed(Longer, *arguments) == Longer(
        ("x", "y"), "green", 3, 2.0, ("a", "b"), True, "there", seed=4
    )


def test_a_preset_goes_before_defaults_and_after_flags():
    usual = {"count": 5, "fast": True, "inner": 1, "place": "preset"}
    config = parsed(Config, "--path=x", "--nofast", "--count=6", usual=usual)
    assert config == Config(("x",), count=6, fast=False, inner=1, place="preset")
    assert parsed(Config, "--path=x", leave_out=["count"], usual=usual).count == 5


def test_a_field_that_is_left_out_has_no_flag():
    with pytest.raises(absl_flags.UnrecognizedFlagError, match="count"):
        parsed(Config, "--path=x", "--count=3", leave_out=["count"])


@pytest.mark.parametrize(
    "argument", ["--kind=blue", "--count=0", "--count=two", "--factor=x", "--nosuch=1"]
)
def test_a_bad_flag_is_found_as_it_is_parsed(argument):
    with pytest.raises(absl_flags.Error):
        parsed(Config, "--path=x", argument)
    with pytest.raises(absl_flags.Error, match="path"):
        parsed(Config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "blue"}, "--kind must be one of red, green, got 'blue'"),
        ({"kind": None}, "--kind must be one of red, green, got None"),
        ({"names": ("a", "c")}, "--names must be one of a, b, got 'c'"),
        ({"count": 0}, r"--count must be a whole number, 1 or greater\. Given: 0"),
        ({"count": 1.5}, "--count must be a whole number"),
        ({"count": True}, "--count must be a whole number"),
        ({"factor": 0.0}, "--factor must be a number greater than 0"),
        ({"factor": None}, "--factor must be a number"),
        ({"factor": float("nan")}, "--factor must be a number"),
    ],
)
def test_the_dataclass_names_the_flag_of_a_bad_value(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(("x",), **changes)


def test_numpys_numbers_become_pythons():
    config = Config(("x",), count=np.int64(3), factor=np.float32(0.25))
    assert (type(config.count), type(config.factor)) == (int, float)
    assert Config(("x",), count=4.0).count == 4


def test_help_has_groups_defaults_and_choices():
    assert flag_groups(Longer) == ["input", "numbers", "output"]
    values = absl_flags.FlagValues()
    define_flags(Longer, flag_values=values)
    text = values.module_help("input")
    assert "--kind: <red|green>: Colour." in text
    assert "(default: 'red')" in text
    assert "--seed" not in text
    assert "(a positive integer)" in values.module_help("numbers")


@pytest.mark.parametrize("config", [TrainingConfig, EvaluationConfig])
def test_every_field_of_a_command_has_a_flag_and_a_text(config):
    values = absl_flags.FlagValues()
    define_flags(config, flag_values=values)
    assert {field.name for field in dataclasses.fields(config)} - {"models"} <= set(values)
    assert all(values[name].help for name in values)
