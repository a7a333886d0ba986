"""The code of a user's functions: changed code is told apart, in whatever place it is."""

import os
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from fisher_keras.experiments import code_fingerprint as code_module
from fisher_keras.experiments.code_fingerprint import _Code, code_fingerprint

USUAL = """
import functools
import keras
import tensorflow as tf

GAMMA = 2.0
WEIGHTS = {"a": [1.0, 2.0], "b": {3.0, 4.0}}
TEACHER = keras.layers.Dense(2, kernel_initializer="ones")
TEACHER.build((None, 3))

def helper(x, power=2):
    return x ** power

class Focal(keras.losses.Loss):
    factor = 0.25

    def __init__(self, gamma):
        super().__init__()
        self.gamma = gamma

    def call(self, y, p):
        return self.factor * helper(p) * self.gamma

@tf.custom_gradient
def clipped(x):
    return x, lambda upstream: tf.clip_by_value(upstream, -1.0, 1.0)

def weighed(weight):
    return lambda y, p: weight * p

partial = functools.partial(helper, power=4)
INSTANCE = Focal(5.0)
CLOSURE = weighed(6.0)

@keras.saving.register_keras_serializable("mine")
def by_name(y, p):
    return 8.0 * p

DENSE = keras.layers.Dense(2, activation=lambda x: 9.0 * x)

def make_model():
    def loss(y, p):
        return clipped(p) * GAMMA + partial(p) + sum(WEIGHTS["a"]) + TEACHER(p)
    return loss, INSTANCE, CLOSURE, Focal(7.0), "mine>by_name", DENSE

f = make_model
"""
# What changes in the module above.
CHANGES = {
    "a constant of a module": ("GAMMA = 2.0", "GAMMA = 2.5"),
    "a constant in a structure": ("[1.0, 2.0]", "[1.0, 2.1]"),
    "a constant in a set": ("{3.0, 4.0}", "{3.0, 4.1}"),
    "weights of a teacher": ('"ones"', '"zeros"'),
    "a default argument": ("power=2", "power=3"),
    "an operation of another function": ("x ** power", "x * power"),
    "an attribute of a class": ("factor = 0.25", "factor = 0.5"),
    "an attribute of an object": ("Focal(5.0)", "Focal(5.1)"),
    "a method": ("* self.gamma", "/ self.gamma"),
    "a decorated function": ("-1.0, 1.0", "-2.0, 2.0"),
    "a closure": ("weighed(6.0)", "weighed(6.1)"),
    "a partial function": ("power=4", "power=5"),
    "a name": ("partial(p)", "helper(p)"),
    "an argument of a class": ("Focal(7.0)", "Focal(7.1)"),
    "a function that Keras knows by its name": ("8.0 * p", "8.1 * p"),
    "an activation of a layer": ("9.0 * x", "9.1 * x"),
}


def test_code_of_packages_is_none_of_the_users():
    assert code_fingerprint(keras.layers.Dense, tf.nn.relu, len, [type(keras.losses.Loss)]) is None


HEAD = (
    "import argparse, collections, dataclasses, datetime, functools, pathlib, types\n"
    "import keras\nimport numpy as np\n"
)
# A module of a user, what changes in it, and whether it is another code then.
PIECES = {
    **{name: (USUAL, change, True) for name, change in CHANGES.items()},
    "a comment": (USUAL, ("    return x **", "    # The power.\n    return x **"), False),
    "an unused function": (USUAL, ("f =", "def unused():\n    return 3\n\nf ="), False),
    "an option of a loss of Keras": (
        "B = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)\nf = lambda y, p: B(y, p)",
        ("0.1", "0.2"),
        True,
    ),
    "an option in a closure": (
        "def g(b):\n    return lambda y, p: b(y, p)\n"
        "f = g(keras.losses.CategoricalCrossentropy(label_smoothing=0.1))",
        ("0.1", "0.2"),
        True,
    ),
    "an activation of a teacher": (
        "T = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, 'relu', True, 'zeros')])\n"
        "f = lambda x: T(x)",
        ("relu", "tanh"),
        True,
    ),
    "an attribute of a layer": (
        "class L(keras.layers.Layer):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = 1.0\n        self.seed_generator = keras.random.SeedGenerator()\n"
        "    def call(self, x): return x * self.a, self.seed_generator\n"
        "O = L()\nO.a = 3.0\nf = lambda x: O(x)",
        ("3.0", "3.5"),
        True,
    ),
    "slots": (
        "@dataclasses.dataclass(slots=True)\nclass S:\n    a: float\nO = S(1.0)\nf = lambda: O",
        ("S(1.0)", "S(2.0)"),
        True,
    ),
    "a range": ("R = range(3)\nf = lambda: R", ("3", "4"), True),
    "a path": ("P = pathlib.Path('a')\nf = lambda: P", ("'a'", "'b'"), True),
    "a date": ("D = datetime.date(2020, 1, 1)\nf = lambda: D", ("2020", "2021"), True),
    "a deque": ("D = collections.deque([1.0])\nf = lambda: D", ("1.0", "1.5"), True),
    "a partial method": (
        "class C:\n    def a(self, b): return b\n    c = functools.partialmethod(a, b=1.0)\nf = C",
        ("1.0", "1.5"),
        True,
    ),
    "an attribute that the second function names": (
        "P = argparse.ArgumentParser('a', 'b')\ng = lambda: P.prog\nf = lambda: P.usage + g()",
        ("'a'", "'c'"),
        True,
    ),
    "a set of functions": (
        "def a(): return 1.0\ndef b(): return 2.0\n"
        "S = {a, b, frozenset({'c', 'd', 'e'})}\nf = lambda: S",
        ("1.0", "1.5"),
        True,
    ),
    "a dictionary by functions": (
        "def a(): return 1.0\ndef b(): return 2.0\nS = {a: b, b: a}\nf = lambda: S",
        ("2.0", "2.5"),
        True,
    ),
    "a dictionary filled from a set": (
        "S = {k: [k] for k in {'a', 'b', 'c', 'd'}}\nS |= {1: 'a', '1': 2.0}\nf = lambda: S",
        ("2.0", "2.5"),
        True,
    ),
    "arguments in another order": (
        "def a(b, c): return b\nf = lambda: a(b=1, c=2)",
        ("a(b, c): return b", "a(c, b): return c"),
        True,
    ),
    "a docstring": ("def f():\n    'Doc.'\n    return None, 1.0", ("'Doc.'", "'Text.'"), False),
    "no docstring": ("def f():\n    'Doc.'\n    return None, 1.0", ("'Doc.'", "# Text"), False),
    "a docstring of an inner class": (
        "def f():\n    class A:\n        'Doc.'\n        b = 1.0\n    return A",
        ("'Doc.'", "'Text.'"),
        False,
    ),
    "a list whose name is that of an attribute": (
        "losses = []\nf = lambda: keras.losses.MeanSquaredError()",
        ("[]", "[1.0]"),
        False,
    ),
    "the states of a layer with noise": (
        "L = keras.layers.GaussianNoise(0.5)\nf = lambda x: L(x, training=True)",
        ("f =", "L(np.ones(3), training=True); f ="),
        False,
    ),
    "the environment": (
        "from os import environ\nf = lambda: environ",
        ("f =", "environ['OF_A_TEST'] = '1'; f ="),
        False,
    ),
    "names that Keras numbers": (
        "T = keras.layers.TimeDistributed(keras.layers.Dense(2))\nf = lambda x: T(x)",
        ("T =", "keras.layers.Dense(2); T ="),
        False,
    ),
    "a name of a local variable": ("def f():\n    a = 1.0\n    return a", (" a", " b"), False),
}


def print_fingerprint(tmp_path, imported, *names, seed="1"):
    """Prints, in a process of its own, the fingerprints of what is imported."""
    code = (
        f"{imported}; from fisher_keras.experiments.code_fingerprint import code_fingerprint;"
        f"[print(code_fingerprint(one)) for one in ({', '.join(names)},)]"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


@pytest.mark.parametrize("piece", PIECES)
def test_a_change_is_told(piece, tmp_path, monkeypatch):
    monkeypatch.setenv("OF_A_TEST", "0")
    source, (old, new), told = PIECES[piece]
    assert old in source
    found = [fingerprint_of(HEAD + text) for text in (source, source, source.replace(old, new))]
    assert found[0] == found[1]
    assert (found[0] != found[2]) == told


def module_of(source):
    # A data class looks for its module.
    module = types.ModuleType("of_a_piece")
    sys.modules["of_a_piece"] = module
    exec(compile(source, "of_a_piece", "exec"), vars(module))
    return module


def fingerprint_of(source):
    return code_fingerprint(module_of(source).f)


def test_it_is_the_same_in_each_process(tmp_path):
    sources = dict.fromkeys(source for source, _, _ in PIECES.values())
    names = [f"piece_{number}" for number in range(len(sources))]
    for name, source in zip(names, sources, strict=True):
        (tmp_path / f"{name}.py").write_text(HEAD + source)
    found = [
        print_fingerprint(
            tmp_path, f"import {', '.join(names)}", *(f"{name}.f" for name in names), seed=seed
        )
        for seed in "12"
    ]
    assert found[0] == found[1]
    assert "None" not in found[0]


@pytest.mark.parametrize(
    "statement",
    [
        "from {0} import build\n    return build()",
        "import {0}\n    return {0}.build()",
        "import {0} as m\n    return m.build()",
        "import {0}.inner\n    return {0}.inner.build()",
        "import {0}.inner as m\n    return m.build()",
        "import {0} as m\n    def g():\n        return m.build()\n    return g",
        "from .inner import build\n    return build()",
        "from . import inner\n    return inner.build()",
    ],
)
def test_imports_inside_of_a_function_are_followed(statement, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for number in (1.0, 1.0, 2.0):
        package = "its_package"
        (tmp_path / package).mkdir(exist_ok=True)
        code = f"import numpy as np\ndef build():\n    return np.abs(1.0), {number}\n"
        for name in ("__init__", "inner"):
            (tmp_path / package / f"{name}.py").write_text(code)
        for name in [name for name in sys.modules if name.startswith(package)]:
            del sys.modules[name]
        sys.dont_write_bytecode, written = True, sys.dont_write_bytecode
        module = {"__name__": f"{package}.of_a_user", "__package__": package}
        exec(f"def f():\n    {statement.format(package)}", module)
        before = code_fingerprint(module["f"])
        made = module["f"]()
        sys.dont_write_bytecode = written
        assert before == code_fingerprint(module["f"])
        found.append(code_fingerprint(made if callable(made) else module["f"]))
    assert found[0] == found[1] != found[2]


def test_modules_of_packages_are_not_looked_into(tmp_path, monkeypatch):
    described = []
    original = _Code._function
    monkeypatch.setitem(
        code_module._DESCRIBED,
        types.FunctionType,
        lambda code, function: described.append(function) or original(code, function),
    )
    helper = types.ModuleType("its_helper")
    exec("import numpy as np\ndef inner(x):\n    return np.mean(x)", vars(helper))
    user = {"__name__": "its_module", "its_helper": helper, "np": np}
    exec("def f(x):\n    return its_helper.inner(np.mean(x))", user)
    code_fingerprint(user["f"])
    assert {one.__name__ for one in described} == {"f", "inner"}


def test_long_chains_and_what_cannot_be_read():
    chain = "\n".join(f"def f{n}(x): return f{n + 1}(x)" for n in range(2000))
    found = [fingerprint_of(f"{chain}\nf2000 = {end}\nf = f0") for end in (1.0, 2.0)]
    assert found[0] != found[1]
    usual = "from unittest.mock import MagicMock\nM = MagicMock()\nf = lambda: M(1)"
    assert fingerprint_of(usual) == fingerprint_of(usual)
    symbolic = "import keras\ninputs = keras.Input((2,))\nf = lambda: inputs"
    assert fingerprint_of(symbolic) == fingerprint_of(symbolic)
    nested = "T = ()\nfor _ in range(5000): T = (T,)\nf = lambda: T"
    with pytest.raises(ValueError, match="hundreds of tuples or sets inside of each other"):
        fingerprint_of(nested)


def test_weights_that_are_drawn_anew_do_not_count():
    layer = keras.layers.Dense(2, activation=module_of(USUAL).f)
    layer.build((None, 3))
    found = []
    for value in (1.0, 2.0):
        layer.set_weights([np.full((3, 2), value), np.zeros(2)])
        found += [code_fingerprint(layer), code_fingerprint(layer, made=[layer])]
    assert found[0] != found[2]
    assert found[1] == found[3]
