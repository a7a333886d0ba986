"""Keras must run on TensorFlow: checked before TensorFlow, Keras and time are spent."""

import json
import os
import pathlib
import sys


def check_backend() -> None:
    """Checks Keras' backend, also before Keras is imported.

    Raises:
        ImportError: If Keras is set to another backend than TensorFlow, or TensorFlow to Keras 2.
    """
    if os.environ.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true"):
        raise ImportError(
            "fisher_keras is for Keras 3, but TF_USE_LEGACY_KERAS asks TensorFlow for Keras 2: "
            "unset TF_USE_LEGACY_KERAS, or set it to 0"
        )
    backend, where = _backend()
    if backend != "tensorflow":
        raise ImportError(
            f"fisher_keras needs Keras on TensorFlow, but {where} sets the backend {backend!r}: "
            "set the environment variable KERAS_BACKEND=tensorflow, before keras is imported"
        )


def _backend() -> tuple[str, str]:
    """Returns the backend that Keras has or will have, and what decides it."""
    if "keras" in sys.modules:
        import keras

        return keras.config.backend(), "the keras that is imported"
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"], "KERAS_BACKEND"
    settings = _keras_home() / "keras.json"
    try:
        return json.loads(settings.read_text()).get("backend", "tensorflow"), str(settings)
    except (OSError, ValueError, AttributeError):
        return "tensorflow", "the default"


def _keras_home() -> pathlib.Path:
    """Returns where Keras keeps its settings; it takes /tmp for a home that it cannot write to."""
    if "KERAS_HOME" in os.environ:
        return pathlib.Path(os.environ["KERAS_HOME"]).expanduser()
    home = os.path.expanduser("~")
    return pathlib.Path(home if os.access(home, os.W_OK) else "/tmp") / ".keras"
