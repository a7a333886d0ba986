"""Trained networks, read from their .keras files."""

import importlib
import os
import pathlib
import re
import sys
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import keras


def load_models(paths: Sequence[str], modules: Sequence[str] = ()) -> dict[str, keras.Model]:
    """Loads models, not compiled.

    Args:
        paths: Their .keras files.
        modules: Names of Python modules that define layers and functions of the models.

    Returns:
        The models by name: of the file, with its folder's where files are called alike.

    Raises:
        ValueError: If a file or a module is not there or cannot be used, or two models would have
            the same name.
    """
    known = _contents(modules)
    return {name: _load(path, known) for name, path in _names(paths).items()}


def _names(paths: Sequence[str]) -> dict[str, pathlib.Path]:
    files = [pathlib.Path(path) for path in paths]
    stems = [file.stem for file in files]
    if len(set(stems)) < len(stems):
        stems = [f"{file.resolve().parent.name}_{file.stem}" for file in files]
    if len(set(stems)) < len(stems):
        raise ValueError(
            f"--model: two of the files cannot be told apart by file and directory name: {paths}"
        )
    return dict(zip(stems, files, strict=True))


def _contents(modules: Sequence[str]) -> dict[str, Any]:
    """Imports modules, also from the working directory; returns the objects in them by name."""
    contents = {}
    sys.path.insert(0, os.getcwd())
    try:
        for module in modules:
            contents |= vars(importlib.import_module(module))
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # It is there, and lacks another one.
        raise ValueError(
            f"--import={module}: there is no such module in the working directory or among the "
            "installed packages; expected its name, without .py"
        ) from error
    finally:
        sys.path.remove(os.getcwd())
    return contents


def _load(path: pathlib.Path, known: dict[str, Any]) -> keras.Model:
    if not path.is_file():
        raise ValueError(f"--model={path}: there is no such file; expected a .keras file")
    damaged = ValueError(
        f"--model={path} is no .keras file, or only a part of one (a copy that was stopped?)"
    )
    # Keras says of such a file that it was not found.
    if path.suffix == ".keras" and not zipfile.is_zipfile(path):
        raise damaged
    try:
        return keras.models.load_model(path, custom_objects=known, compile=False)
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
        raise damaged from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"--model={path} cannot be loaded: {_reason(str(error))}") from error


def _reason(message: str) -> str:
    """Returns what is wrong, out of the many lines of Keras."""
    if unknown := re.search(r"Could not locate (?:class|function) '([^']+)'", message):
        return (
            f"it uses {unknown[1]}, which is no part of Keras; give --import=MODULE, the name of "
            "the Python module that defines it"
        )
    if "safe_mode" in message:
        return (
            "it holds a Lambda layer, which is Python code, and code from a file is not run; use "
            "a layer class of your own instead, and --import=MODULE"
        )
    return message.rpartition("Exception encountered: ")[2].partition("\n")[0]
