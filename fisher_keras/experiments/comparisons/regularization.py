"""Tables 1 and 2 of the paper: networks trained with and without the regularizer (Section 7.2).

Both are read off the same runs: no network is trained for one of them that the other has.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from fisher_keras.experiments.comparisons.common import (
    CALIBRATION_ERROR,
    CROSS_ENTROPY,
    ERROR,
    TRAIN_ERROR,
    Column,
    Group,
    grouped,
    make_table,
    metric,
    num_flagged,
)
from fisher_keras.experiments.comparisons.table_options import Table2Options, TableOptions
from fisher_keras.experiments.runs.experiment import preset_of
from fisher_keras.experiments.runs.presets import LAPTOP_NETWORKS, LAPTOP_TRAINING, Preset
from fisher_keras.experiments.runs.store import Run
from fisher_keras.experiments.runs.trained_network import TrainedNetwork, excess_losses
from fisher_keras.experiments.runs.trained_run import MetricSettings, trained_run
from fisher_keras.experiments.training.config import TrainingConfig

EXPERIMENT = "regularization"
_ARCHITECTURES = {"cnn": "CNN", "wide_resnet": "WRN", "densenet": "DenseNet", "resnet": "ResNet"}
_PaperTable: TypeAlias = Mapping[tuple[str, str], tuple[tuple[float, float], ...]]
# Test errors in percent, mean and standard deviation of 5: without and with the regularizer.
PAPER_TABLE_1: _PaperTable = {
    ("cnn", "cifar10"): ((8.52, 0.08), (7.46, 0.13)),
    ("wide_resnet", "cifar10"): ((5.44, 0.04), (4.80, 0.10)),
    ("densenet", "cifar10"): ((4.61, 0.08), (4.31, 0.08)),
    ("resnet", "cifar10"): ((8.50, 0.31), (7.91, 0.25)),
    ("cnn", "cifar100"): ((31.12, 0.35), (29.19, 0.21)),
    ("wide_resnet", "cifar100"): ((25.52, 0.15), (23.65, 0.14)),
    ("densenet", "cifar100"): ((22.54, 0.32), (22.19, 0.28)),
}
# gamma-hat likewise.
PAPER_TABLE_2: _PaperTable = {
    ("resnet", "cifar10"): ((-979.3, 22.3), (-1138.1, 11.0)),
    ("wide_resnet", "cifar10"): ((-737.6, 20.3), (-804.8, 18.7)),
    ("densenet", "cifar10"): ((-850.3, 23.5), (-886.2, 20.5)),
}
_DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}

_PAPER = Preset(
    about="the networks, recipes and data sets of the paper's Table 1.",
    values=tuple(PAPER_TABLE_1),
    num_seeds=5,
    training={},
    metrics=MetricSettings(("log_determinant",), normalize_logits=0.04),
)
PRESETS = {
    "paper": _PAPER,
    "laptop": _PAPER.replaced(
        LAPTOP_TRAINING | {"validation_size": 250},  # See the scenarios' laptop preset.
        {"num_trials": 20},
        about="a ResNet-8 and a CNN of a quarter of its filters on few images of CIFAR-10, for "
        "few epochs and without augmentation; smaller batches, 20 trials.",
        values=(("cnn", "cifar10"), ("resnet", "cifar10")),
        networks=LAPTOP_NETWORKS,
    ),
    "smoke": _PAPER.smoke(values=(("cnn", "digits"), ("resnet", "digits"))),
}


def regularization_runs(preset: Preset, settings_file: str | None = None) -> list[Run]:
    """Returns the runs of both tables, a seed of all networks before the next seed.

    Args:
        preset: The size; its values are pairs of an architecture and a data set.
        settings_file: A table of the regularizer's values, see `regularizer_settings`.

    Returns:
        For each of them and each seed a run without and one with the regularizer, whose settings
        are those of `regularizer_settings`.

    Raises:
        ValueError: If the file is no such table.
        OSError: If it cannot be read.
    """
    return [
        trained_run(
            EXPERIMENT,
            TrainingConfig(
                arch=arch,
                dataset=dataset,
                **{**preset.training, **preset.networks.get(arch, {})},
                method=method,
                # A plain training refuses a table, as it could not use it.
                settings_file=settings_file if method == "fisher" else None,
                seed=seed,
            ),
            preset.metrics,
            label=f"{arch} {dataset} {method}",
        )
        for seed in preset.seeds
        for arch, dataset in preset.values
        for method in ("plain", "fisher")
    ]


def make_table_1(options: TableOptions) -> None:
    """Trains the networks of Table 1 that are not there yet, prints and writes it.

    Args:
        options: Of the table.

    Raises:
        ValueError: If an option or the data cannot be used.
        OSError: If the data or the store cannot be read or written.
        FailedRunsError: If runs failed; all others are finished.
    """
    preset = _preset(options)
    runs = regularization_runs(preset, options.settings_file)
    make_table(runs, table_1, "table1", preset, options, "table1", num_names=2)


def make_table_2(options: Table2Options) -> None:
    """Trains the CIFAR-10 networks of Table 2 that are not there yet, prints and writes it.

    Args:
        options: Of the table.

    Raises:
        ValueError: If an option or the data cannot be used.
        OSError: If the data or the store cannot be read or written.
        FailedRunsError: If runs failed; all others are finished.
    """
    preset = _preset(options)
    # Only fewer values, with all settings left as they are: so the runs keep their keys, and those
    # of Table 1 are not trained again.
    values = tuple(v for v in preset.values if options.dataset or v[1] != "cifar100")
    preset = dataclasses.replace(preset, values=values)
    table = functools.partial(table_2, normalize_logits=options.normalize_logits)
    name = "table2_normalized" if options.normalize_logits else "table2"
    runs = regularization_runs(preset, options.settings_file)
    make_table(runs, table, name, preset, options, "table2", num_names=2)


def _preset(options: TableOptions) -> Preset:
    """Returns the preset that was asked for; its values are of the options' network and data."""
    preset = preset_of(PRESETS, options)
    values = dict.fromkeys(
        (options.arch or arch, options.dataset or dataset) for arch, dataset in preset.values
    )
    training = {n: value for n, value in preset.training.items() if n not in ("arch", "dataset")}
    return dataclasses.replace(preset, training=training, values=tuple(values))


def table_1(networks: Sequence[TrainedNetwork]) -> list[list[str]]:
    """Returns the test errors in percent, with the paper's beside.

    Args:
        networks: Of the finished runs of `regularization_runs`.

    Returns:
        Rows of cells, the header first; the difference is that of pairs of one seed, with and less
        without the regularizer, and the 95 % interval of Student's t; the last column counts the
        runs with `convergence_flags`.
    """
    header = [ERROR.title, "with regularizer (%)", "paper (%)", "paper, with regularizer (%)"]
    columns = (CROSS_ENTROPY, CALIBRATION_ERROR, TRAIN_ERROR)
    return _table(networks, header, ERROR, PAPER_TABLE_1, columns)


def table_2(networks: Sequence[TrainedNetwork], normalize_logits: bool) -> list[list[str]]:
    """Returns gamma-hat of the minima, with their training losses and the paper's gamma-hat.

    Args:
        networks: Of the finished runs of `regularization_runs`.
        normalize_logits: Whether gamma-hat is that of normalized logits.

    Returns:
        Rows of cells, the header first; the difference as in `table_1`; the last column counts the
        runs with `convergence_flags`.
    """
    gamma_hat = Column("gamma-hat", 1, metric("log_determinant", normalize_logits))
    header = [gamma_hat.title, "with regularizer", "paper", "paper, with regularizer"]
    columns = (ERROR, CROSS_ENTROPY, CALIBRATION_ERROR, Column("train loss", 4, excess_losses))
    return _table(networks, header, gamma_hat, PAPER_TABLE_2, columns)


def _table(
    networks: Sequence[TrainedNetwork],
    header: Sequence[str],
    compared: Column,
    paper: _PaperTable,
    columns: Sequence[Column],
) -> list[list[str]]:
    """Returns a line for each network and data set; columns have values without / with."""
    titles = [f"{column.title}, without / with" for column in columns]
    rows = [["network", "data", *header, "difference [95 %]", *titles, "flagged"]]
    for (arch, dataset), (plain, fisher) in _pairs(networks).items():
        papers = [
            f"{mean:.{compared.digits}f} ± {std:.{compared.digits}f}"
            for mean, std in paper.get((arch, dataset), ())
        ]
        flagged = [num_flagged(group, plain) for group in (plain, fisher)]
        rows.append(
            [
                _ARCHITECTURES.get(arch, arch),
                _DATASETS.get(dataset, dataset),
                *map(compared.mean, (plain, fisher)),
                *(papers or ["–", "–"]),
                compared.difference(fisher, plain),
                *(" / ".join(map(column.mean, (plain, fisher))) for column in columns),
                " / ".join(map(str, flagged)) if any(flagged) else "",
            ]
        )
    return rows


def _pairs(networks: Sequence[TrainedNetwork]) -> dict[tuple[str, str], tuple[Group, Group]]:
    """Returns the networks without / with the regularizer, in the order of the paper's tables."""
    groups = grouped(networks, lambda n: (n.training.arch, n.training.dataset, n.training.method))
    # Networks that are not in the paper, such as those of the smoke preset, come last.
    order = list(PAPER_TABLE_1)
    cells = sorted(
        dict.fromkeys((n.training.arch, n.training.dataset) for n in networks),
        key=lambda cell: order.index(cell) if cell in order else len(order),
    )
    return {cell: tuple(groups.get((*cell, m), {}) for m in ("plain", "fisher")) for cell in cells}
