"""Names that occur in code, and the modules of its user that they lead to."""

import dis
import functools
import importlib.util
import itertools
import pathlib
import site
import sys
import sysconfig
import types

_PACKAGE = __name__.partition(".")[0]
_LOADS_OF_GLOBALS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}


@functools.cache
def is_users(module: str | None, file: str | None = None) -> bool:
    """Returns whether a module is of the user's own, and not installed; its file if not loaded."""
    top = (module or "").partition(".")[0]
    if top == "__main__":  # In a process that trains, the file of another one.
        return True
    if top == _PACKAGE or top in sys.stdlib_module_names:
        return False
    file = file or getattr(sys.modules.get(module or ""), "__file__", None)
    return file is None or not any(
        pathlib.Path(file).resolve().is_relative_to(folder) for folder in _installed()
    )


@functools.cache
def _installed() -> list[pathlib.Path]:
    """Returns the folders of Python and of the installed packages."""
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    paths = [*map(sysconfig.get_path, kinds), *site.getsitepackages(), site.getusersitepackages()]
    return [pathlib.Path(path).resolve() for path in paths]


def names_in(code: types.CodeType) -> tuple[str, ...]:
    """Returns the names that occur in code, and in the functions inside of it."""
    return tuple(sorted({name for one in _codes(code) for name in one.co_names}))


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """Returns code and that of the functions inside of it."""
    inside = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return [code, *(c for one in inside for c in _codes(one))]


def read_globals(code: types.CodeType) -> set[str]:
    """Returns the names of the global variables that code reads."""
    return {one.argval for one in _instructions(code) if one.opname in _LOADS_OF_GLOBALS}


def imported_modules(function: types.FunctionType) -> list[types.ModuleType]:
    """Returns the modules of the user that a function imports as it runs."""
    imported, name = set(), ""
    for one in _instructions(function.__code__):
        if one.opname == "IMPORT_NAME":
            name = one.argval
            imported.add(name)
        elif one.opname == "IMPORT_FROM":  # It may be a module, too.
            imported.add(f"{name}.{one.argval}".strip("."))
    importer = function.__globals__.get("__name__") or ""
    packages = ["", *_with_parents(importer)]  # An import can be relative.
    found = [
        _module(f"{package}.{name}".strip("."))
        for package in packages
        for whole in sorted(imported)
        for name in _with_parents(whole)
    ]
    return [module for module in found if module is not None]


def _instructions(code: types.CodeType) -> list[dis.Instruction]:
    return [one for inside in _codes(code) for one in dis.get_instructions(inside)]


def _with_parents(name: str) -> list[str]:
    """Returns "a", "a.b" and "a.b.c" of "a.b.c"."""
    return [*itertools.accumulate(name.split("."), "{}.{}".format)]


def _module(name: str) -> types.ModuleType | None:
    """Returns a module by its name; None if there is none, or it is not the user's."""
    if name not in sys.modules:
        try:
            spec = importlib.util.find_spec(name.partition(".")[0])
            # As the function does later: else the digits depended on whether it has been called.
            # A folder without an __init__.py has no origin.
            places = spec and (spec.origin, *(spec.submodule_search_locations or ()))
            if places and is_users(spec.name, next(filter(None, places))):
                importlib.import_module(name)
        except Exception:  # Whatever a user's module raises; code may try another one then.
            return None
    return sys.modules.get(name)
