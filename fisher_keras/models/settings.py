"""The regularizer's hyper-parameters for each network and data set (Section 7.2)."""

import dataclasses
import json
import os
import pathlib
from typing import Any

from fisher_keras.atomic import replacing
from fisher_keras.models.architectures import check_architecture

# Names a file that is read and written in place of the package's own table.
SETTINGS_VARIABLE = "FISHER_KERAS_REGULARIZER_SETTINGS"
_PACKAGE_SETTINGS = pathlib.Path(__file__).with_name("regularizer_settings.json")


@dataclasses.dataclass(frozen=True)
class RegularizerSettings:
    """The hyper-parameters of Algorithm 1; the defaults are `FisherRegularizedModel`'s.

    Attributes:
        alpha: length of the step along a sub-batch's gradient, alpha.
        beta: strength of the regularizer, beta.
        num_sub_batches: sub-batches of a batch, M.
        clip_norm: largest global norm of the gradient, tau; None for no clipping.
    """

    alpha: float = 1e-4
    beta: float = 10.0
    num_sub_batches: int = 8
    clip_norm: float | None = 10.0


def regularizer_settings(arch: str, dataset: str) -> RegularizerSettings:
    """Returns the regularizer's hyper-parameters for a network on a dataset.

    They are read from `settings_file()`, where `tuned` says whether an entry was chosen on a
    validation split (Section 7.2), and `tuning` how, or it still holds the defaults.

    Args:
        arch: the architecture, one of `fisher_keras.models.ARCHITECTURES`.
        dataset: the dataset's name; one that the table does not have gets the defaults.

    Returns:
        The settings.

    Raises:
        ValueError: if the architecture is unknown, or the file is not such a table.
        OSError: if the file cannot be read.
    """
    check_architecture(arch)
    entry = _settings_table().get(dataset, {}).get(arch, {})
    names = [field.name for field in dataclasses.fields(RegularizerSettings)]
    return RegularizerSettings(**{name: entry[name] for name in names if name in entry})


def write_regularizer_settings(
    arch: str, dataset: str, settings: RegularizerSettings, tuning: dict[str, Any]
) -> pathlib.Path:
    """Puts tuned hyper-parameters into `settings_file()`; its other entries stay as they are.

    Args:
        arch: the architecture, one of `fisher_keras.models.ARCHITECTURES`.
        dataset: the dataset's name.
        settings: the best hyper-parameters.
        tuning: how they were found, for JSON.

    Returns:
        The file. If it was not there, it has the package's other entries.

    Raises:
        ValueError: if the architecture is unknown, or the file is not such a table.
        OSError: if the file cannot be read or written.
    """
    check_architecture(arch)
    table = _settings_table()
    entry = {**dataclasses.asdict(settings), "tuned": True, "tuning": tuning}
    table[dataset] = {**table.get(dataset, {}), arch: entry}
    datasets = []
    for name, networks in table.items():
        lines = (f"    {json.dumps(key)}: {json.dumps(networks[key])}" for key in networks)
        joined = ",\n".join(lines)
        datasets.append(f"  {json.dumps(name)}: {{\n{joined}\n  }}")
    path = settings_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, shared=True) as part:
        part.write_text("{\n" + ",\n".join(datasets) + "\n}\n", encoding="utf-8")
    return path


def settings_file() -> pathlib.Path:
    """Returns the table's file: $FISHER_KERAS_REGULARIZER_SETTINGS, or the one in the package."""
    return pathlib.Path(os.environ.get(SETTINGS_VARIABLE) or _PACKAGE_SETTINGS).expanduser()


def _settings_table() -> dict[str, dict[str, dict]]:
    """Reads the table: dataset -> architecture -> hyper-parameters, `tuned` and `tuning`."""
    path = settings_file()
    if not path.exists():
        path = _PACKAGE_SETTINGS
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(entry, dict) for row in table.values() for entry in row.values()):
            raise ValueError("an entry is not an object")
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no table of regularizer settings: {error}.") from error
    return table
