"""Trained networks, read from their .keras files."""

import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import keras

from fisher_keras.classifier import Classifier
from fisher_keras.experiments.user_code import import_module

_HF = "hf://"  # How Keras writes the address of a model on Hugging Face.


def load_models(paths: Sequence[str], modules: Sequence[str] = ()) -> dict[str, keras.Model]:
    """Loads models, not compiled.

    Args:
        paths: Their .keras files, or addresses on Hugging Face, hf://USER/NAME.
        modules: Names of Python modules that define layers and functions of the models.

    Returns:
        The models by name: of the file, with its folder's where files are called alike.

    Raises:
        ValueError: If a file or a module is not there or cannot be used, or two models would have
            the same name.
        OSError: If a model cannot be read from Hugging Face.
    """
    known = {name: value for m in modules for name, value in vars(import_module(m)).items()}
    return {name: _load(path, known, "--model=") for name, path in _names(paths).items()}


class SavedClassifiers:
    """Classifiers of .keras files; files of one architecture share a model, and so its traces."""

    def __init__(self) -> None:
        """Starts without any."""
        self._classifiers: dict[tuple[str, float | None], Classifier] = {}

    def load(self, path: str | os.PathLike, normalize_logits: float | None = None) -> Classifier:
        """Returns the classifier of a file, until the next file is loaded.

        Args:
            path: The .keras file.
            normalize_logits: See `Classifier`.

        Raises:
            ValueError: If the file cannot be used.
        """
        model = _load(str(path), {})
        key = _architecture(model), normalize_logits
        if key not in self._classifiers:
            self._classifiers[key] = Classifier(model, normalize_logits=normalize_logits)
        known = self._classifiers[key]
        known.model.set_weights(model.get_weights())
        return known


def _architecture(model: keras.Model) -> str:
    """Returns the definition of a model, the same for the models of the same layers."""
    # What layers share has a number that differs from process to process.
    return re.sub(r'"shared_object_id": \d+', "", model.to_json())


def _names(paths: Sequence[str]) -> dict[str, str]:
    files = [pathlib.Path(path) for path in paths]
    # The name of a model on Hugging Face may have dots.
    stems = [f.name if p.startswith(_HF) else f.stem for f, p in zip(files, paths, strict=True)]
    if len(set(stems)) < len(stems):
        stems = [f"{file.resolve().parent.name}_{file.stem}" for file in files]
    if len(set(stems)) < len(stems):
        raise ValueError(
            f"--model: two of the files cannot be told apart by file and directory name: {paths}"
        )
    return dict(zip(stems, paths, strict=True))


def _load(path: str, known: dict[str, Any], flag: str = "") -> keras.Model:
    path = os.path.expanduser(path)
    file, given = pathlib.Path(path), f"{flag}{path}"
    if not path.startswith(_HF) and not file.is_file():
        raise ValueError(f"{given}: there is no such file; expected a .keras file")
    damaged = ValueError(
        f"{given} is no .keras file, or only a part of one (a copy that was stopped?)"
    )
    # Keras says of such a file that it was not found.
    if file.is_file() and file.suffix == ".keras" and not zipfile.is_zipfile(file):
        raise damaged
    try:
        return keras.models.load_model(path, custom_objects=known, compile=False)
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
        raise damaged from error
    except OSError as error:
        if not path.startswith(_HF):
            raise
        raise OSError(
            f"{given} cannot be read from Hugging Face: check its name and the network, or "
            f"give a .keras file ({' '.join(str(error).split())})"
        ) from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{given} cannot be loaded: {_reason(str(error))}") from error


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
