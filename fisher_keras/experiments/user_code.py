"""Functions and modules of users, named on the command line."""

import importlib
import os
import sys
import types
from collections.abc import Callable
from typing import Any


def import_module(module: str, flag: str = "--import") -> types.ModuleType:
    """Imports a module, also from the working directory.

    Args:
        module: Its name.
        flag: The flag that names it, for errors.

    Raises:
        ValueError: If there is no such module.
    """
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # It is there, and lacks another one.
        raise ValueError(
            f"{flag}={module}: there is no such module in the working directory or among the "
            "installed packages; expected its name, without .py"
        ) from error
    finally:
        sys.path.remove(os.getcwd())


def load_function(name: str, flag: str) -> Callable[..., Any]:
    """Returns the function of a name "package.module:function".

    Args:
        name: The name.
        flag: The flag that has it, for errors.

    Raises:
        ValueError: If there is no such function.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(
            f"{flag}={name} must be a function's name with that of its module before it, as "
            "package.module:function"
        )
    found = getattr(import_module(module, flag), function, None)
    if not callable(found):
        raise ValueError(f"{flag}={name}: the module {module} has no function {function}")
    return found
