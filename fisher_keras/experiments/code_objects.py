"""Parts of an object by which it is described: its numbers, attributes and settings."""

import inspect
import re
import types
from typing import Any

import keras
import numpy as np

from fisher_keras.experiments.code_names import is_users, names_in


def has(value: Any, name: str) -> bool:
    """Returns whether an object has an attribute that is not made as it is asked for."""
    return inspect.getattr_static(value, name, has) is not has


def array_of(value: Any) -> np.ndarray | None:
    """Returns the numbers of an object; None if it has none, as a symbolic tensor."""
    try:
        return np.asarray(value) if has(value, "__array__") else None
    except Exception:  # Whatever a package raises.
        return None


def names_in_methods(kind: type) -> set[str]:
    """Returns the names that occur in the methods of a user's class."""
    methods = [m for k in kind.__mro__ if is_users(k.__module__) for m in vars(k).values()]
    codes = [m.__code__ for m in methods if isinstance(m, types.FunctionType)]
    return {name for code in codes for name in names_in(code)}


def attributes_of(value: Any) -> dict[str, Any]:
    """Returns the attributes that an object itself has, also those in slots."""
    members = {n: m for kind in type(value).__mro__ for n, m in vars(kind).items()}
    slots = [n for n, m in members.items() if isinstance(m, types.MemberDescriptorType)]
    return {n: getattr(value, n) for n in slots if hasattr(value, n)} | getattr(
        value, "__dict__", {}
    )


def config_of(value: Any) -> Any:
    """Returns the settings of an object of Keras; None if it does not tell them."""
    if isinstance(value, keras.Model):
        return value.layers
    if isinstance(value, type) or not has(value, "get_config"):
        return None
    try:
        return _unnumbered(value.get_config())
    except Exception:  # Such as of a user's layer that has none.
        return None


def _unnumbered(config: Any) -> Any:
    """Returns a configuration whose names have no numbers: Keras counts all objects it makes."""
    if isinstance(config, dict):
        plain = {key: _unnumbered(value) for key, value in config.items()}
        name = plain.get("name")
        return plain | {"name": re.sub(r"_\d+$", "", name)} if isinstance(name, str) else plain
    return [*map(_unnumbered, config)] if isinstance(config, (list, tuple)) else config
