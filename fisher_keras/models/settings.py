"""The regularizer's hyper-parameters for each network and data set (Section 7.2)."""

import dataclasses
import json
import os
import pathlib
from typing import Any, TypeAlias

from fisher_keras.files import write_text
from fisher_keras.models.architectures import check_architecture

_PACKAGE_TABLE = pathlib.Path(__file__).with_name("regularizer_settings.json")

# Data set -> architecture -> the fields of `RegularizerSettings`; `tuned`, whether they were
# chosen on a validation split; and then `tuning`, how.
_Table: TypeAlias = dict[str, dict[str, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class RegularizerSettings:
    """The hyper-parameters of Algorithm 1; the defaults are `FisherRegularizedModel`'s.

    Attributes:
        alpha: Length of the step along a sub-batch's gradient.
        beta: Strength of the regularizer.
        num_sub_batches: Sub-batches of a batch, M.
        clip_norm: Largest global norm of the gradient, tau; None for no clipping.
    """

    alpha: float = 1e-4
    beta: float = 10.0
    num_sub_batches: int = 8
    clip_norm: float | None = 10.0


def regularizer_settings(
    arch: str, dataset: str, settings_file: str | os.PathLike | None = None
) -> RegularizerSettings:
    """Returns the regularizer's hyper-parameters for a network on a data set.

    Args:
        arch: The architecture, one of `fisher_keras.models.ARCHITECTURES`, or the function of
            another network, as "package.module:function".
        dataset: The data set's name.
        settings_file: A table that `write_regularizer_settings` has written. What it does not have
            comes from the package's table, and what that does not have are the defaults. The row
            of a table says under `tuned` whether its values were chosen on a validation split.

    Returns:
        The settings.

    Raises:
        ValueError: If the architecture is unknown, or the file is not such a table.
        OSError: If the file cannot be read.
    """
    _check_row(arch)
    paths = [_PACKAGE_TABLE] if settings_file is None else [_path(settings_file), _PACKAGE_TABLE]
    for path in paths:
        row = _read(path).get(dataset, {}).get(arch)
        if row is not None:
            names = [field.name for field in dataclasses.fields(RegularizerSettings)]
            return RegularizerSettings(**{name: row[name] for name in names})
    return RegularizerSettings()


def write_regularizer_settings(
    path: str | os.PathLike,
    arch: str,
    dataset: str,
    settings: RegularizerSettings,
    tuning: dict[str, Any],
) -> None:
    """Puts tuned hyper-parameters into a table; its other rows stay as they are.

    Args:
        path: The table, a JSON file; a new one if there is none.
        arch: The architecture, one of `fisher_keras.models.ARCHITECTURES`, or the function of
            another network, as "package.module:function".
        dataset: The data set's name.
        settings: The best hyper-parameters.
        tuning: How they were found, for JSON.

    Raises:
        ValueError: If the architecture is unknown, or the file is not such a table.
        OSError: If the file cannot be read or written.
    """
    _check_row(arch)
    path = _path(path)
    table = _read(path) if path.exists() else {}
    row = {**dataclasses.asdict(settings), "tuned": True, "tuning": tuning}
    table[dataset] = {**table.get(dataset, {}), arch: row}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, _text(table), shared=True)


def _check_row(arch: str) -> None:
    if ":" not in arch:
        check_architecture(arch)


def _path(path: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(path).expanduser()


def _text(table: _Table) -> str:
    """Returns the table as JSON with a line a row."""
    datasets = []
    for dataset, rows in table.items():
        lines = (f"    {json.dumps(arch)}: {json.dumps(rows[arch])}" for arch in rows)
        joined = ",\n".join(lines)
        datasets.append(f"  {json.dumps(dataset)}: {{\n{joined}\n  }}")
    return "{\n" + ",\n".join(datasets) + "\n}\n"


def _read(path: pathlib.Path) -> _Table:
    names = [field.name for field in dataclasses.fields(RegularizerSettings)]
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        for rows in table.values():
            for arch, row in rows.items():
                if missing := [name for name in names if name not in row]:
                    raise ValueError(f"the row of {arch} has no {missing[0]}")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no table of regularizer settings: {error}.") from error
    return table
