"""Public attributes of a training method, checked and saved."""

import random
from collections.abc import Callable
from typing import Any

import keras

from fisher_keras.arguments import one_of, real_number, whole_number


class Option:
    """An attribute of a model that is checked when it is set, takes effect at once, and is saved.

    The argument of the constructor must have the same name. If a value is set after `compile`,
    also in a callback, the next step is traced again.

    Examples:
        >>> class Method:
        ...     rho = Option(lambda name, value: real_number(name, value, above=0))
        >>> method = Method()
        >>> method.rho = 1
        >>> method.rho
        1.0
    """

    def __init__(self, check: Callable[[str, Any], Any], instead_of: str | None = None) -> None:
        """Makes an attribute.

        Args:
            check: Takes its name and a value that is given; returns the value to keep, or raises
                a ValueError.
            instead_of: Name of another attribute with the same meaning in other terms. It becomes
                None as soon as this one is set.
        """
        self._check, self._instead_of = check, instead_of

    def __set_name__(self, owner: type, name: str) -> None:
        """Takes the name of the attribute."""
        self._name = name

    def __get__(self, model: Any, owner: type) -> Any:
        """Returns the value; of the class, this object."""
        if model is None:
            return self
        if self._name not in vars(model):
            raise AttributeError(self._name)
        return vars(model)[self._name]

    def __set__(self, model: Any, value: Any) -> None:
        """Checks a value and keeps it; forgets traces with another value."""

        def values() -> dict[str, Any]:
            names = [name for name in (self._name, self._instead_of) if name is not None]
            return {name: vars(model).get(name) for name in names}

        before = values()
        vars(model)[self._name] = self._check(self._name, value)
        if self._instead_of is not None:
            vars(model)[self._instead_of] = None
        if not getattr(model, "compiled", False) or before == values():
            return
        try:
            model.forget_traces()
        except ValueError:
            vars(model).update(before)
            raise


class WithOptions(keras.Model):
    """A model around a classifier that can be made again from it, its options and its name."""

    @classmethod
    def option_names(cls) -> list[str]:
        """Returns the names of the options, those of the bases first."""
        found = [(name, value) for c in reversed(cls.__mro__) for name, value in vars(c).items()]
        return [name for name, value in found if isinstance(value, Option)]

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments to make this model again."""
        config = {"model": keras.saving.serialize_keras_object(self.model)}
        for option in self.option_names():
            value = getattr(self, option)
            simple = value is None or isinstance(value, (bool, int, float, str))
            config[option] = value if simple else keras.saving.serialize_keras_object(value)
        return {**config, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "WithOptions":
        """Makes a model from the result of `get_config`."""
        return cls(
            **{
                name: keras.saving.deserialize_keras_object(value)
                if isinstance(value, dict)
                else value
                for name, value in config.items()
            }
        )


def positive(name: str, value: Any) -> float:
    """Returns a number greater than 0, or raises a ValueError."""
    return real_number(name, value, above=0)


def positive_or_none(name: str, value: Any) -> float | None:
    """Returns None, or a number greater than 0, or raises a ValueError."""
    return None if value is None else real_number(f"{name}, if it is not None,", value, above=0)


def seed_or_random(name: str, value: Any) -> int:
    """Returns a seed, drawn if it is None, or raises a ValueError."""
    if value is None:
        return random.randrange(2**31)
    return whole_number(f"{name}, if it is not None,", value, least=0)


def number_or_schedule(name: str, value: Any) -> Any:
    """Returns a Keras schedule, or a number that is 0 or greater, or raises a ValueError."""
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return value
    return real_number(f"{name}, if it is no LearningRateSchedule,", value, least=0)


def choice_of(*choices: Any) -> Callable[[str, Any], Any]:
    """Returns the check that a value is one of some choices."""
    return lambda name, value: one_of(name, value, choices)
