"""Flags made from a dataclass."""

import dataclasses
import re

import numpy as np
import pytest

from fisher_keras.experiments.command_line.flags import (
    REQUIRED,
    check_options,
    from_flags,
    help_text,
    like,
    nested,
    option,
    parse,
)
from fisher_keras.experiments.command_line.table import COMMANDS


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    count: int = option(1, "Of its own.", group="outer")
    one: Config = nested(Config, leave_out=["count", "place"])
    place: str = option("here", "Last.", group="output")

    @classmethod
    def usual(cls, values):
        return {"count": 2, "one": {"count": 9, "fast": True}} if values["kind"].value else {}


@dataclasses.dataclass(frozen=True)
class Alike:
    factor: float = like(Config, "factor", "elsewhere")
    names: tuple[str, ...] = like(Config, "names", "elsewhere")

    def __post_init__(self):
        check_options(self)


def parsed(config, *arguments):
    return from_flags(config, parse(config, "script", arguments))


def test_defaults_are_those_of_the_dataclass():
    assert parsed(Config, "--path=x") == Config(("x",))
    assert parsed(Longer, "--path=x") == Longer(("x",))


def test_an_option_like_another_has_its_default_help_and_bounds():
    assert parsed(Alike, "--names=a,b") == Alike(0.5, ("a", "b"))
    with pytest.raises(ValueError, match="--factor must be a number"):
        Alike(factor=0.0)
    assert "elsewhere:" in help_text(Alike)
    assert "By how much." in help_text(Alike)
    assert "numbers:" not in help_text(Alike)


def test_every_kind_of_flag_fills_its_field():
    arguments = ["--path=x", "--path=y", "--kind=green", "--count=3", "--factor=2"]
    arguments += ["--names=a,b", "--fast", "--place=there", "--seed=4"]
    assert parsed(Longer, *arguments) == Longer(
        ("x", "y"), "green", 3, 2.0, ("a", "b"), True, "there", seed=4
    )


def test_a_preset_goes_before_defaults_and_after_flags():
    class Preset(Config):
        @classmethod
        def usual(cls, values):
            return {"count": 5, "fast": True, "inner": 1, "place": "preset"}

    config = parsed(Preset, "--path=x", "--nofast", "--count=6")
    assert config == Preset(("x",), count=6, fast=False, inner=1, place="preset")


def test_a_nested_dataclass_has_the_flags_that_are_not_left_out():
    arguments = ["--path=x", "--count=3", "--nofast", "--place=there"]
    outer = parsed(Outer, *arguments)
    assert outer == Outer(count=3, one=Config(("x",), count=9, fast=False), place="there")
    assert parsed(Outer, "--path=x").count == 2
    assert [line for line in help_text(Outer).splitlines() if "--place" in line] == [
        "  --place: Last."
    ]


@pytest.mark.parametrize(
    "argument", ["--kind=blue", "--count=0", "--count=two", "--factor=x", "--nosuch=1"]
)
def test_a_bad_flag_is_found_as_it_is_parsed(argument):
    with pytest.raises(ValueError, match=argument.partition("=")[0].strip("-")):
        parsed(Config, "--path=x", argument)
    with pytest.raises(ValueError, match="path"):
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
    text = help_text(Longer)
    assert [line for line in text.splitlines() if line.endswith(":")][:3] == [
        *("input:", "numbers:", "output:")
    ]
    inputs, _, numbers = text.partition("\nnumbers:")
    assert "--kind: <red|green>: Colour." in inputs
    assert "(default: 'red')" in inputs
    assert "--seed" not in inputs
    assert "(a positive integer)" in numbers


@dataclasses.dataclass(frozen=True)
class Open:
    data: str = option("a.b", "Data.", group="input", choices=("a.b", "of:NAME"))

    def __post_init__(self):
        check_options(self)


def test_capitals_of_a_choice_stand_for_any_text():
    assert parsed(Open, "--data=of:any/thing-1").data == "of:any/thing-1"
    assert parsed(Open).data == "a.b"
    assert "--data: <a.b|of:NAME>: Data." in help_text(Open)
    for wrong in ("of:", "a-b", "xof:y", "NAME"):
        with pytest.raises(ValueError, match=rf"one of a\.b, of:NAME, got '{wrong}'"):
            parsed(Open, f"--data={wrong}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_field_of_a_command_has_a_flag_and_a_text(name):
    config = COMMANDS[name].load_options()
    text = help_text(config)
    for field in dataclasses.fields(config):
        if flag := field.metadata.get("flag"):
            assert re.search(rf"^  --(\[no\])?{flag.repeated or field.name}: ", text, re.MULTILINE)
            assert flag.help
