"""The code of a user's functions: changed code is told apart, in whatever place it is."""

import os
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

from fisher_keras.experiments.code_fingerprint import code_fingerprint

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
"""
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


def made_of(source, name="a_users_module"):
    module = {"__name__": name}
    exec(compile(source, name, "exec"), module)
    return module["make_model"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_told(change):
    old, new = CHANGES[change]
    assert USUAL.count(old) == 1
    assert code_fingerprint(made_of(USUAL.replace(old, new))) != code_fingerprint(made_of(USUAL))


def test_what_computes_the_same_is_the_same():
    commented = "# Mine.\n\n" + USUAL.replace("    return x", "    # The power.\n    return x", 1)
    unused = USUAL + "\ndef unused():\n    return 3\n"
    found = {code_fingerprint(made_of(source)) for source in (USUAL, commented, unused)}
    assert len(found) == 1


def test_it_is_the_same_in_each_process(tmp_path):
    (tmp_path / "of_a_user.py").write_text(USUAL)
    code = (
        "import of_a_user; from fisher_keras.experiments.code_fingerprint import code_fingerprint;"
        "print(code_fingerprint(of_a_user.make_model))"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1] != "None\n"


def test_code_of_packages_is_none_of_the_users():
    assert code_fingerprint(keras.layers.Dense, tf.nn.relu, len, [type(keras.losses.Loss)]) is None
