"""Fingerprint of a user's code, by which runs of a changed loss or model are told apart."""

import functools
import hashlib
import json
import pathlib
import site
import sys
import sysconfig
import types
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier.labels import fingerprint

_PACKAGE = __name__.partition(".")[0]
_PLAIN = (bool, int, float, complex, bytes, type(None), type(...))
# Attributes that Python itself gives to a class: none is code of its user.
_OF_CLASSES = {
    *("__abstractmethods__", "__annotations__", "__dict__", "__doc__", "__firstlineno__"),
    *("__module__", "__qualname__", "__static_attributes__", "__weakref__", "_abc_impl"),
}


def code_fingerprint(*roots: Any) -> str | None:
    """Returns 16 hexadecimal digits that tell the code of a user's functions and classes.

    The code is what the functions compute: bytecode, constants, default arguments, values in
    closures, and the functions, classes and values of their modules that they name. Comments and
    line numbers do not count, nor does code of installed packages.

    Args:
        *roots: Functions, classes, other objects, or structures of them.

    Returns:
        The digits, the same in each process of one version of Python; None if none of the code is
        a user's.
    """
    code = _Code()
    found = [code.describe(root) for root in roots]
    if not code.of_user:
        return None
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


class _Code:
    """A walk through code and the objects that it names.

    Attributes:
        of_user: Whether it has met code of a user.
    """

    def __init__(self) -> None:
        self.of_user = False
        # By identity: a number, and the object, so that no other one gets its identity.
        self._met: dict[int, tuple[int, Any]] = {}

    def describe(self, value: Any, names: tuple[str, ...] = ()) -> Any:
        """Returns a description for JSON.

        Args:
            value: Any object.
            names: Those that occur in the code that names the object.
        """
        if isinstance(value, str):  # A name by which Keras may know code of the user.
            registered = keras.saving.get_custom_objects().get(value)
            return [value, None if registered is None else self.describe(registered)]
        if isinstance(value, _PLAIN):
            return repr(value)
        if id(value) in self._met:
            return f"met {self._met[id(value)][0]}"
        self._met[id(value)] = len(self._met), value
        for kinds, method in _DESCRIBED.items():
            if isinstance(value, kinds):
                return method(self, value)
        # Such as a decorated function, or one of TensorFlow.
        for inner in ("python_function", "__wrapped__"):
            if callable(getattr(value, inner, None)):
                return self.describe(getattr(value, inner))
        return self._instance(value, names)

    def _function(self, function: types.FunctionType) -> Any:
        # A library's decorator may hold a user's function.
        cells = [self.describe(_content(cell)) for cell in function.__closure__ or ()]
        if not _is_users(function.__module__):
            return [function.__qualname__, cells]
        self.of_user = True
        code = function.__code__
        defaults = self.describe([function.__defaults__, function.__kwdefaults__])
        return [self._bytecode(code), defaults, cells, self._globals(function, _names(code))]

    def _globals(self, function: types.FunctionType, names: tuple[str, ...]) -> list:
        """Describes what code names in its module, and in other modules of the user."""
        found = []
        for name in filter(function.__globals__.__contains__, names):
            value = function.__globals__[name]
            if not isinstance(value, types.ModuleType):
                found.append([name, self.describe(value, names)])
            elif _is_users(value.__name__):
                inside = vars(value).keys() & set(names)
                found += [[n, self.describe(vars(value)[n], names)] for n in sorted(inside)]
        return found

    def _bytecode(self, code: types.CodeType) -> Any:
        constants = [self.describe(constant) for constant in code.co_consts]
        return [code.co_code.hex(), constants, code.co_names]

    def _class(self, kind: type) -> Any:
        if not _is_users(kind.__module__):
            return kind.__qualname__
        self.of_user = True
        attributes = {n: v for n, v in vars(kind).items() if n not in _OF_CLASSES}
        return [self.describe(attributes), [self.describe(base) for base in kind.__bases__]]

    def _mapping(self, mapping: Mapping) -> Any:
        return sorted([str(key), self.describe(value)] for key, value in mapping.items())

    def _instance(self, value: Any, names: tuple[str, ...]) -> Any:
        """Describes an object of any other class."""
        if hasattr(value, "__array__"):
            return fingerprint([np.asarray(value)])
        attributes = getattr(value, "__dict__", {})
        weights = None
        if isinstance(value, (keras.Layer, tf.Module)):
            weights = fingerprint([v.numpy() for v in value.variables])  # Such as a teacher's.
        if weights is not None or not _is_users(type(value).__module__):
            # Of a library's objects, what the code names, and functions: a wrapper may hold one.
            functions = (types.FunctionType, functools.partial)
            attributes = {
                n: v for n, v in attributes.items() if n in names or isinstance(v, functions)
            }
        # Keras numbers the names of objects as they are made.
        attributes = {n: v for n, v in attributes.items() if n != "name"}
        return [self.describe(type(value)), weights, self.describe(attributes)]


_DESCRIBED: dict[Any, Callable] = {
    types.FunctionType: _Code._function,
    types.CodeType: _Code._bytecode,
    types.MethodType: lambda code, method: code.describe([method.__func__, method.__self__]),
    (staticmethod, classmethod): lambda code, method: code.describe(method.__func__),
    property: lambda code, value: code.describe([value.fget, value.fset]),
    functools.partial: lambda code, one: code.describe([one.func, one.args, one.keywords]),
    type: _Code._class,
    Mapping: _Code._mapping,
    (list, tuple): lambda code, values: [code.describe(value) for value in values],
    (set, frozenset): lambda code, values: sorted(map(repr, values)),
}


def _names(code: types.CodeType) -> tuple[str, ...]:
    """Returns the names that occur in code, and in the functions inside of it."""
    inside = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return tuple(sorted({*code.co_names, *(name for c in inside for name in _names(c))}))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # A name that is not bound yet.
        return None


@functools.cache
def _is_users(module: str | None) -> bool:
    """Returns whether a module is of the user's own, and not installed."""
    top = (module or "").partition(".")[0]
    if top == _PACKAGE or top in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    return file is None or not any(
        pathlib.Path(file).resolve().is_relative_to(folder) for folder in _installed()
    )


@functools.cache
def _installed() -> list[pathlib.Path]:
    """Returns the folders of Python and of the installed packages."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    paths = [*map(sysconfig.get_path, kinds), *site.getsitepackages(), site.getusersitepackages()]
    return [pathlib.Path(path).resolve() for path in paths]
