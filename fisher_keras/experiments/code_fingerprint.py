"""Fingerprint of a user's code, by which runs of a changed loss or model are told apart."""

import argparse
import collections
import datetime
import decimal
import dis
import fractions
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier.labels import fingerprint
from fisher_keras.experiments.code_names import imported_modules, is_users, names_in, read_globals
from fisher_keras.experiments.code_objects import (
    array_of,
    attributes_of,
    config_of,
    has,
    names_in_methods,
)

_PLAIN = (bool, int, float, complex, bytes, type(None), type(...))
# Their text tells all of them, in each process.
_TOLD_BY_TEXT = (
    *(range, slice, pathlib.PurePath, re.Pattern, decimal.Decimal, fractions.Fraction),
    *(datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo),
    *(np.dtype, tf.DType, tf.TensorShape),
)
# Whether two names mean the same one of these, or two equal ones, depends on the process.
_WITHOUT_IDENTITY = (tuple, frozenset, types.CodeType)
_VARIABLES = (keras.Variable, tf.Variable)  # The weights of an object tell them.
# Attributes that Python itself gives to a class: none is code of its user.
_OF_CLASSES = {
    *("__abstractmethods__", "__annotate__", "__annotate_func__", "__annotations__"),
    *("__annotations_cache__", "__dict__", "__doc__", "__firstlineno__", "__module__"),
    *("__qualname__", "__slotnames__", "__static_attributes__", "__weakref__", "_abc_impl"),
}


def code_fingerprint(*roots: Any, made: Iterable[keras.Layer] = ()) -> str | None:
    """Returns 16 hexadecimal digits that tell the code of a user's functions and classes.

    The code is what the functions compute: bytecode, constants, default arguments, values in
    closures, and the functions, classes and values that they name in their modules and in those
    that they have imported. Comments, docstrings and line numbers do not count, nor does code of
    installed packages.

    An object of a user's class counts with all its attributes. One of a package, and a layer,
    count with their class, weights, `get_config`, functions, and the attributes that the code or
    the user's methods name. Numbers, lists and dictionaries count with their content alone.
    Environment variables, files, random generators, and what is looked up by a computed name do
    not count.

    Args:
        *roots: Functions, classes, other objects, or structures of them.
        made: Layers whose weights do not count, as they are drawn anew each time.

    Returns:
        The digits, the same in each process of one version of Python; None if none of the code is
        a user's.

    Raises:
        ValueError: If tuples or sets are nested too deeply.
    """
    code = _Code({id(layer) for layer in made})
    try:
        found = code.walk(roots)
    except RecursionError as error:
        raise ValueError(
            "A value that your code names has hundreds of tuples or sets inside of each other, "
            "and so changes of it cannot be told: make it a list, or make it inside of a function."
        ) from error
    if not code.of_user:
        return None
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


class _Code:
    """A walk through code and the objects that it names.

    Attributes:
        of_user: Whether it has met code of a user.
    """

    def __init__(self, made: set[int]) -> None:
        self.of_user = False
        self._made = made
        # By identity: a number, and the object, so that no other one gets its identity.
        self._met: dict[Any, tuple[int, Any]] = {}
        # Those that are met and not yet described: long chains of functions need no deep stack.
        self._waiting: collections.deque[Callable] = collections.deque()

    def walk(self, values: Iterable) -> list:
        """Returns the descriptions of values for JSON, and of all that they lead to."""
        found = [self._describe(value) for value in values]
        while self._waiting:
            found.append(self._waiting.popleft()())
        return found

    def _alone(self, value: Any) -> str:
        """Returns the walk from a value; what is described later does not depend on it."""
        waiting, self._waiting = self._waiting, collections.deque()
        count = len(self._met)
        found = self.walk([value])
        while len(self._met) > count:
            self._met.popitem()
        self._waiting = waiting
        return json.dumps(found)

    def _describe(self, value: Any, names: tuple[str, ...] = ()) -> Any:
        """Returns a description for JSON.

        Args:
            value: Any object.
            names: Those that occur in the code that names the object.
        """
        if isinstance(value, str):  # A name by which Keras may know code of the user.
            registered = keras.saving.get_custom_objects().get(value)
            return [value, None if registered is None else self._describe(registered)]
        if isinstance(value, (*_PLAIN, *_TOLD_BY_TEXT)):
            return repr(value)
        described = next((m for kinds, m in _DESCRIBED.items() if isinstance(value, kinds)), None)
        if isinstance(value, _WITHOUT_IDENTITY):
            return described(self, value)
        # Other code may name other attributes of the same object.
        key = id(value) if described else (id(value), names)
        if key not in self._met:
            self._met[key] = len(self._met), value
            method = described or functools.partial(_Code._instance, names=names)
            self._waiting.append(functools.partial(method, self, value))
        return f"met {self._met[key][0]}"

    def _all(self, values: Iterable) -> list:
        return [self._describe(value) for value in values]

    def _function(self, function: types.FunctionType) -> Any:
        contents = [_content(cell) for cell in function.__closure__ or ()]
        if not is_users(function.__module__):  # A library's decorator may hold a user's function.
            return [function.__qualname__, self._all(contents)]
        self.of_user = True
        names = names_in(function.__code__)
        cells = [self._describe(content, names) for content in contents]
        defaults = self._all([function.__defaults__, function.__kwdefaults__])
        return [self._bytecode(function.__code__), defaults, cells, self._named(function, names)]

    def _named(self, function: types.FunctionType, names: tuple[str, ...]) -> list:
        """Describes what code names in its module, and in other modules of the user."""
        inside, modules = function.__globals__, imported_modules(function)
        contents = [_content(cell) for cell in function.__closure__ or ()]
        modules += [content for content in contents if isinstance(content, types.ModuleType)]
        found = []
        for name in sorted(read_globals(function.__code__) & inside.keys()):
            if isinstance(inside[name], types.ModuleType):
                modules.append(inside[name])
            else:
                found.append([name, self._describe(inside[name], names)])
        looked_into: list[types.ModuleType] = []
        for module in modules:  # It grows.
            if module in looked_into or not is_users(module.__name__):
                continue
            looked_into.append(module)
            for name in sorted(vars(module).keys() & set(names)):
                value = vars(module)[name]
                if isinstance(value, types.ModuleType):
                    modules.append(value)
                else:
                    found.append([name, self._describe(value, names)])
        return found

    def _bytecode(self, code: types.CodeType) -> Any:
        # Not the constants as a whole, as a docstring is one of them.
        instructions = [
            [one.opname, self._operand(one)]
            for one, after in itertools.pairwise([*dis.get_instructions(code), None])
            if after is None or after.opname != "STORE_NAME" or after.argval not in _OF_CLASSES
        ]
        counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount]
        arguments = [*counts, *code.co_varnames[: counts[0] + counts[2]]]
        return [instructions, arguments, code.co_exceptiontable.hex()]

    def _operand(self, instruction: dis.Instruction) -> Any:
        if instruction.opcode in dis.hasconst:
            return self._describe(instruction.argval)
        # Local variables may have other names.
        return instruction.argval if instruction.opcode in dis.hasname else instruction.arg

    def _class(self, kind: type) -> Any:
        if not is_users(kind.__module__):
            return kind.__qualname__
        self.of_user = True
        attributes = {
            n: v
            for n, v in vars(kind).items()
            if n not in _OF_CLASSES and not isinstance(v, types.MemberDescriptorType)
        }
        return self._all([attributes, *kind.__bases__])

    def _mapping(self, mapping: Mapping) -> Any:
        # The order of a dictionary may be that of a set.
        pairs = [(self._alone(key), value) for key, value in mapping.items()]
        pairs.sort(key=lambda pair: pair[0])
        return [[key, self._describe(value)] for key, value in pairs]

    def _instance(self, value: Any, names: tuple[str, ...]) -> Any:
        """Describes an object of any other class."""
        # Such as a decorated function, or one of TensorFlow.
        for inner in ("python_function", "__wrapped__"):
            if has(value, inner) and callable(getattr(value, inner)):
                return self._describe(getattr(value, inner))
        array = array_of(value)
        if array is not None:
            return (
                self._describe(array.tolist()) if array.dtype == object else fingerprint([array])
            )
        weights = None
        if isinstance(value, (keras.Layer, tf.Module)):  # Such as a teacher's.
            # All variables of a layer have the states of random generators, too.
            state = value.weights if isinstance(value, keras.Layer) else value.variables
            drawn = id(value) in self._made
            weights = None if drawn else fingerprint([variable.numpy() for variable in state])
        attributes = attributes_of(value)
        if isinstance(value, (keras.Layer, tf.Module)) or not is_users(type(value).__module__):
            # Of a library's objects, what the code names, and functions: a wrapper may hold one.
            functions = (types.FunctionType, functools.partial)
            names = (*names, *names_in_methods(type(value)))
            attributes = {
                n: v
                for n, v in attributes.items()
                if (n in names or isinstance(v, functions)) and not isinstance(v, _VARIABLES)
            }
        # Keras numbers the names of objects as they are made.
        attributes = {n: v for n, v in attributes.items() if n != "name"}
        return [weights, *self._all([type(value), attributes, config_of(value)])]


_DESCRIBED: dict[Any, Callable] = {
    types.FunctionType: _Code._function,
    types.CodeType: _Code._bytecode,
    types.MethodType: lambda code, method: code._all([method.__func__, method.__self__]),
    (staticmethod, classmethod): lambda code, method: code._describe(method.__func__),
    property: lambda code, value: code._all([value.fget, value.fset]),
    (functools.partial, functools.partialmethod): lambda code, one: code._all(
        [one.func, one.args, one.keywords]
    ),
    type: _Code._class,
    types.ModuleType: lambda code, module: module.__name__,  # `_named` looks into it.
    # The environment, random seeds and caches are others in each process.
    (
        type(os.environ),
        keras.random.SeedGenerator,
        weakref.WeakKeyDictionary,
        weakref.WeakValueDictionary,
    ): (lambda code, value: type(value).__qualname__),
    Mapping: _Code._mapping,
    (list, tuple, collections.deque): _Code._all,
    (set, frozenset): lambda code, values: sorted(map(code._alone, values)),
    (types.SimpleNamespace, argparse.Namespace): lambda code, value: code._describe(vars(value)),
}


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # A name that is not bound yet.
        return None
