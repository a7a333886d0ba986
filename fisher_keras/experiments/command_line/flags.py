"""Command line flags made from the dataclasses that they fill.

A field says once what it is: `epochs: int = option(3, "Passes.", group="training", least=1)`.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from absl import flags

from fisher_keras.arguments import bounds_in_words, real_number, whole_number

_SEE_HELP = "--help lists the flags"
REQUIRED = dataclasses.MISSING  # As the default of an option that must be given.

_Config = TypeVar("_Config")
_DEFINE = {
    bool: flags.DEFINE_boolean,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    tuple: flags.DEFINE_list,
}


@dataclasses.dataclass(frozen=True)
class _Flag:
    """Definition of a flag: the arguments of `option`, and the field; its kind leaves out None."""

    help: str
    group: str
    choices: tuple[str, ...]
    least: float | None
    above: float | None
    below: float | None
    repeated: str | None
    field: str = ""
    kind: type = str
    default: Any = None

    @property
    def name(self) -> str:
        """The name on the command line."""
        return self.repeated or self.field

    @property
    def is_open(self) -> bool:
        """True if some choice stands for any text."""
        return any(choice != choice.lower() for choice in self.choices)

    def allows(self, value: object) -> bool:
        """Returns whether a value is one of the choices."""
        patterns = (re.sub("[A-Z]+", ".+", re.escape(choice)) for choice in self.choices)
        return any(re.fullmatch(pattern, str(value)) for pattern in patterns)

    @property
    def expected(self) -> str:
        """The values allowed, in words."""
        if self.choices:
            # A comma in a choice would read as one between two.
            separator = "; " if any("," in choice for choice in self.choices) else ", "
            return f"one of {separator.join(self.choices)}"
        kinds = {int: "a whole number", float: "a number", bool: "true or false"}
        return kinds.get(self.kind, "text") + bounds_in_words(self.least, self.above, self.below)


def option(
    default: Any,
    help: str,
    *,
    group: str,
    choices: Sequence[str] = (),
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    repeated: str | None = None,
) -> Any:
    """Returns a dataclass field that is also a command line flag.

    The field's type is `bool`, `int`, `float`, `str` or `tuple[str, ...]`, with or without None.

    Args:
        default: The field's default, or `REQUIRED`.
        help: What it is.
        group: The heading that --help lists the flag under.
        choices: The values allowed; of a tuple, those of its items. Capitals stand for any text:
            "tfds:NAME" allows "tfds:mnist".
        least: The smallest number allowed.
        above: The largest number that is too small.
        below: The smallest number that is too large.
        repeated: The name of a flag that is given once for each item of a tuple. Without it, the
            flag has the field's name, and takes the items with commas between.

    Returns:
        The field.
    """
    flag = _Flag(help, group, tuple(choices), least, above, below, repeated)
    return dataclasses.field(default=default, metadata={"flag": flag})


def like(config: type, name: str, group: str) -> Any:
    """Returns a dataclass field that is the option of another dataclass.

    Args:
        config: The other dataclass.
        name: The name of both fields.
        group: The heading that --help lists the flag under here.
    """
    field = config.__dataclass_fields__[name]
    flag = dataclasses.replace(field.metadata["flag"], group=group)
    return dataclasses.field(default=field.default, metadata={"flag": flag})


def nested(config: type, leave_out: Collection[str] = ()) -> Any:
    """Returns a dataclass field whose options are flags of the dataclass that it is in.

    Args:
        config: The dataclass that the field holds.
        leave_out: Names of its fields that get no flag.

    Returns:
        The field.
    """
    return dataclasses.field(metadata={"nested": (config, frozenset(leave_out))})


def parse(config: type, program: str, arguments: Sequence[str]) -> flags.FlagValues:
    """Parses the flags of a dataclass.

    Args:
        config: The dataclass.
        program: The command, for messages.
        arguments: Of the command line.

    Returns:
        The flags with their values.

    Raises:
        ValueError: If a flag or an argument is unknown, or a value cannot be used.
    """
    values = _define(config)
    try:
        _, *rest = values([program, *arguments])
        if rest:
            raise ValueError(f"unexpected argument {rest[0]!r}: flags start with --")
    # The special kinds of `flags.Error` come first: the last clause would catch them, too.
    except flags.UnrecognizedFlagError as error:
        close = difflib.get_close_matches(error.flagname, values, n=1)
        guess = f" (did you mean --{close[0]}?)" if close else ""
        raise ValueError(f"there is no flag --{error.flagname}{guess}; {_SEE_HELP}") from error
    except flags.IllegalFlagValueError as error:
        # The error's text alone names the flag. What follows is Python's own: "invalid literal".
        name, value = re.match(r"flag --(\w+)=(.*?): ", str(error), re.DOTALL).groups()
        flag = next(flag for flag in _flags(config, inner=True) if flag.name == name)
        message = f"--{name} must be {flag.expected}, got {value!r}"
        if value == "None":  # So absl writes what is not given.
            message = f"--{name} is required: {flag.help.removeprefix('Required. ')}"
        raise ValueError(f"{message} ({_SEE_HELP})") from error
    except flags.CantOpenFlagFileError as error:
        raise ValueError("the file of --flagfile cannot be read") from error
    # Also the ValueError from above, which so gets the same hint.
    except (flags.Error, ValueError) as error:
        raise ValueError(f"{error} ({_SEE_HELP})") from error
    return values


def help_text(config: type) -> str:
    """Returns the flags of a dataclass in their groups, for --help."""
    groups = dict.fromkeys(flag.group for flag in _flags(config, inner=True))
    text = "\n".join(map(_define(config).module_help, groups))
    # absl's own sentence, in which two signs end the one before it.
    return re.sub(r"\.;(\s+)repeat this option.*", r".\1It may be given several times.", text)


def from_flags(config: type[_Config], values: flags.FlagValues) -> _Config:
    """Makes an instance of a dataclass from parsed flags.

    Args:
        config: The dataclass. Its class method `usual`, if it has one, returns for the flags the
            values of fields, by name, that go before the defaults of their flags: a preset.
        values: From `parse`.

    Returns:
        The instance.

    Raises:
        ValueError: If a value cannot be used.
    """
    usual = config.usual(values) if hasattr(config, "usual") else {}
    return _filled(config, values, usual)


def check_options(config: Any) -> None:
    """Checks the fields of a dataclass, in its `__post_init__`; their numbers become Python's.

    Args:
        config: The instance. None is allowed where it is the field's default.

    Raises:
        ValueError: At the first field that is not one of its choices, or no number within its
            bounds.
    """
    # Not those of nested dataclasses: they have checked theirs when they were made. A whole number
    # without a bound is left to its dataclass, as what it may be depends on other fields.
    for flag in _flags(type(config)):
        value = getattr(config, flag.field)
        if value is None and flag.default is None:
            continue
        if flag.choices:
            for item in value if flag.kind is tuple else (value,):
                if not flag.allows(item):
                    raise ValueError(f"--{flag.name} must be {flag.expected}, got {item!r}")
        elif flag.kind is int and flag.least is not None:
            number = whole_number(f"--{flag.name}", value, flag.least, flag.below)
            _set(config, flag, number)
        elif flag.kind is float:
            bounds = {"least": flag.least, "above": flag.above, "below": flag.below}
            _set(config, flag, real_number(f"--{flag.name}", value, **bounds))


def _flags(config: type, leave_out: Collection[str] = (), inner: bool = False) -> Iterator[_Flag]:
    """Yields the flags of a dataclass, with `inner` those of nested ones, too."""
    types_ = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if "flag" in field.metadata and field.name not in leave_out:
            yield dataclasses.replace(
                field.metadata["flag"],
                field=field.name,
                kind=_kind(types_[field.name]),
                default=field.default,
            )
        elif "nested" in field.metadata and inner:
            yield from _flags(*field.metadata["nested"], inner)


def _define(config: type) -> flags.FlagValues:
    """Defines the flag of each option."""
    values = flags.FlagValues()  # Not the global ones, in which TensorFlow's packages define some.
    for flag in _flags(config, inner=True):
        # --help lists a flag under the name of its module: here the group's.
        more = {"module_name": flag.group, "flag_values": values}
        define = _DEFINE[flag.kind]
        if flag.repeated:
            define = flags.DEFINE_multi_string
        elif flag.choices and flag.kind is str and not flag.is_open:
            define, more["enum_values"] = flags.DEFINE_enum, flag.choices
        # absl knows no bounds that are themselves excluded: `check_options` checks those.
        elif flag.kind in (int, float) and flag.least is not None:
            more["lower_bound"] = flag.least
        required = flag.default is REQUIRED
        default = None if required else flag.default
        if flag.kind is tuple and default:
            default = list(default)  # A tuple would be taken for text.
        # As absl shows the choices of an enum, which cannot be open.
        choices = f"<{'|'.join(flag.choices)}>: " if flag.is_open else ""
        define(flag.name, default, help=choices + flag.help, **more)
        if required:
            flags.mark_flag_as_required(flag.name, values)
    return values


def _filled(
    config: type[_Config],
    values: flags.FlagValues,
    usual: Mapping[str, Any],
    leave_out: Collection[str] = (),
) -> _Config:
    # The order of precedence: a flag that is given, then the preset, then the flag's default. Of a
    # nested dataclass the preset has fields by name, which here become an instance.
    fields = dict(usual)
    for field in dataclasses.fields(config):
        if "nested" in field.metadata:
            inner, left_out = field.metadata["nested"]
            fields[field.name] = _filled(inner, values, usual.get(field.name, {}), left_out)
    for flag in _flags(config, leave_out):
        # A field that is left out may share its name with a flag of the outer dataclass.
        parsed = values[flag.name]
        # Given, and not different from its default: who gives the default by hand wants it and
        # not the preset's value.
        if parsed.present or flag.field not in fields:
            is_list = flag.kind is tuple and parsed.value is not None
            fields[flag.field] = tuple(parsed.value) if is_list else parsed.value
    return config(**fields)


def _kind(annotation: Any) -> type:
    """Returns `int` for `int | None`, and `tuple` for `tuple[str, ...] | None`."""
    if isinstance(annotation, types.UnionType):
        annotation, *_ = (part for part in typing.get_args(annotation) if part is not type(None))
    return typing.get_origin(annotation) or annotation


def _set(config: Any, flag: _Flag, value: float) -> None:
    object.__setattr__(config, flag.field, value)  # It may be frozen.
