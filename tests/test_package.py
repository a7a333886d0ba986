"""Tests of the package's face: what a user imports first, and what must be set for it."""

import json
import os
import subprocess
import sys

import keras
import pytest
from marks import nightly

import fisher_keras


def run_python(code, **environment):
    """Runs code in a new process without this one's Keras settings: exit code, output, errors."""
    kept = {k: v for k, v in os.environ.items() if k not in ("KERAS_BACKEND", "KERAS_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_table_of_contents():
    for name in fisher_keras.__all__:
        assert getattr(fisher_keras, name) is not None
        assert name in dir(fisher_keras)
    assert sorted(fisher_keras.__all__) == fisher_keras.__all__
    with pytest.raises(AttributeError, match="'fisher_keras' has no attribute 'metric'"):
        fisher_keras.metric  # noqa: B018


def test_names_are_documented_by_section():
    for name in set(fisher_keras.__all__) - {"__version__"}:
        assert f"`{name}`" in fisher_keras.__doc__


def test_import_alone_loads_neither_tensorflow_nor_keras():
    code = "import sys, fisher_keras; print({'tensorflow', 'keras'} & set(sys.modules))"
    assert run_python(code) == (0, "set()\n", "")


@pytest.mark.parametrize("imports", ["keras, fisher_keras", nightly("fisher_keras, keras")])
def test_a_saved_model_is_found_by_the_import_alone(tmp_path, imports):
    """The class must not have been used before: Keras looks for it by its name."""
    path = str(tmp_path / "model.keras")
    classifier = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = fisher_keras.FisherRegularizedModel(classifier, beta=3.0)
    model.build((None, 4))
    model.save(path)
    code = f"import {imports}; print(keras.saving.load_model({path!r}).beta)"
    status, output, errors = run_python(code)
    assert (status, output) == (0, "3.0\n"), errors


def refusal(code="import fisher_keras", **environment):
    status, output, errors = run_python(code, **environment)
    assert (status, output) == (1, "")
    return errors.splitlines()[-1]


def test_another_backend_is_refused_before_it_is_loaded():
    assert refusal(KERAS_BACKEND="jax") == (
        "ImportError: fisher_keras needs Keras on TensorFlow, but KERAS_BACKEND sets the backend "
        "'jax': set the environment variable KERAS_BACKEND=tensorflow, before keras is imported"
    )


def test_another_backend_in_the_settings_file_is_refused(tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "torch"}))
    line = refusal(KERAS_HOME=str(tmp_path))
    assert f"{tmp_path}/keras.json sets the backend 'torch'" in line
    settings = {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "tensorflow"}
    assert run_python("import fisher_keras", **settings)[0] == 0


def test_a_backend_that_is_loaded_already_is_refused():
    # As if: the other backends' packages are not there.
    line = refusal("import keras; keras.config.backend = lambda: 'numpy'; import fisher_keras")
    assert "the keras that is imported sets the backend 'numpy'" in line


@pytest.mark.parametrize("value", ["1", "true", "True"])
def test_legacy_keras_is_refused(value):
    assert refusal(TF_USE_LEGACY_KERAS=value) == (
        "ImportError: fisher_keras is for Keras 3, but TF_USE_LEGACY_KERAS asks TensorFlow for "
        "Keras 2: unset TF_USE_LEGACY_KERAS, or set it to 0"
    )
    assert run_python("import fisher_keras", TF_USE_LEGACY_KERAS="0")[0] == 0
