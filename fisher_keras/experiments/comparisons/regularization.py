"""Tables 1 and 2 of the paper: networks trained with and without the regularizer (Section 7.2).

Both are read off the same runs: no network is trained for one of them that the other has.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from fisher_keras.experiments.command_line.flags import option
from fisher_keras.experiments.runs.experiment import ExperimentOptions, carry_out_runs, preset_of
from fisher_keras.experiments.runs.presets import LAPTOP_NETWORKS, LAPTOP_TRAINING, Preset
from fisher_keras.experiments.runs.store import Run
from fisher_keras.experiments.runs.trained_run import (
    MetricSettings,
    run_flags,
    train_losses,
    trained_run,
)
from fisher_keras.experiments.statistics.paired import difference_cell
from fisher_keras.experiments.statistics.text_tables import (
    Rows,
    mean_and_std,
    publish_table,
)
from fisher_keras.experiments.training.config import TrainingConfig

EXPERIMENT = "regularization"
_ARCHITECTURES = {"cnn": "CNN", "wide_resnet": "WRN", "densenet": "DenseNet", "resnet": "ResNet"}
# Test errors in percent, mean and standard deviation of 5: without and with the regularizer.
PAPER_TABLE_1 = {
    ("cnn", "cifar10"): ((8.52, 0.08), (7.46, 0.13)),
    ("wide_resnet", "cifar10"): ((5.44, 0.04), (4.80, 0.10)),
    ("densenet", "cifar10"): ((4.61, 0.08), (4.31, 0.08)),
    ("resnet", "cifar10"): ((8.50, 0.31), (7.91, 0.25)),
    ("cnn", "cifar100"): ((31.12, 0.35), (29.19, 0.21)),
    ("wide_resnet", "cifar100"): ((25.52, 0.15), (23.65, 0.14)),
    ("densenet", "cifar100"): ((22.54, 0.32), (22.19, 0.28)),
}
# gamma-hat likewise.
PAPER_TABLE_2 = {
    ("resnet", "cifar10"): ((-979.3, 22.3), (-1138.1, 11.0)),
    ("wide_resnet", "cifar10"): ((-737.6, 20.3), (-804.8, 18.7)),
    ("densenet", "cifar10"): ((-850.3, 23.5), (-886.2, 20.5)),
}
_DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_NORMALIZE_LOGITS = 0.04

_METRICS = MetricSettings(("log_determinant",), normalize_logits=_NORMALIZE_LOGITS)
PRESETS = {
    "paper": Preset(
        about="the networks, recipes and data sets of the paper's Table 1.",
        values=tuple(PAPER_TABLE_1),
        num_seeds=5,
        training={},
        metrics=_METRICS,
    ),
    "laptop": Preset(
        about="a ResNet-8 and a CNN of a quarter of its filters on few images of CIFAR-10, for "
        "few epochs and without augmentation; smaller batches, 20 trials.",
        values=(("cnn", "cifar10"), ("resnet", "cifar10")),
        num_seeds=5,
        # See the scenarios' laptop preset.
        training=LAPTOP_TRAINING | {"validation_size": 250},
        metrics=dataclasses.replace(_METRICS, num_trials=20),
        networks=LAPTOP_NETWORKS,
    ),
    "smoke": Preset(
        about="two epochs on a few digits: it shows that everything runs, and nothing else.",
        values=(("cnn", "digits"), ("resnet", "digits")),
        num_seeds=2,
        training={"train_size": 60, "epochs": 2, "batch_size": 20},
        metrics=dataclasses.replace(_METRICS, num_samples=10, num_trials=2),
        run_estimate_s=15.0,
    ),
}

# Of an architecture and a data set, without (False) or with (True) the regularizer.
_Groups = dict[tuple[str, str], dict[bool, list[dict[str, Any]]]]


@dataclasses.dataclass(frozen=True)
class TableOptions(ExperimentOptions):
    """How and where a table is made; the fields' texts are those of --help."""

    settings_file: str | None = option(
        None,
        "Table of the regularizer's values, as for train_cifar.",
        group="experiment",
    )


@dataclasses.dataclass(frozen=True)
class Table2Options(TableOptions):
    """How and where Table 2 is made, and of which gamma-hat."""

    normalize_logits: bool = option(
        False,
        "Show gamma-hat of logits divided by 0.04 times their norm.",
        group="experiment",
    )


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
                regularize=regularize,
                settings_file=settings_file if regularize else None,
                seed=seed,
            ),
            preset.metrics,
            label=f"{arch} {dataset} {'regularized' if regularize else 'plain'}",
        )
        for seed in range(preset.num_seeds)
        for arch, dataset in preset.values
        for regularize in (False, True)
    ]


def make_table_1(options: TableOptions) -> None:
    """Trains the networks of Table 1 that are not there yet, prints and writes it.

    Args:
        options: How and where the runs are done.

    Raises:
        ValueError: If an option or the data cannot be used.
        OSError: If the data or the store cannot be read or written.
        FailedRunsError: If runs failed; all others are finished.
    """
    preset = preset_of(PRESETS, options)
    _make_table("table1", table_1, preset, options)


def make_table_2(options: Table2Options) -> None:
    """Trains the CIFAR-10 networks of Table 2 that are not there yet, prints and writes it.

    Args:
        options: How and where, and of which gamma-hat.

    Raises:
        ValueError: If an option or the data cannot be used.
        OSError: If the data or the store cannot be read or written.
        FailedRunsError: If runs failed; all others are finished.
    """
    preset = preset_of(PRESETS, options)
    values = tuple(value for value in preset.values if value[1] != "cifar100")
    preset = dataclasses.replace(preset, values=values)
    table = functools.partial(table_2, normalize_logits=options.normalize_logits)
    name = "table2_normalized" if options.normalize_logits else "table2"
    _make_table(name, table, preset, options)


def table_1(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the test errors in percent, with the paper's beside.

    Args:
        records: The finished runs of `regularization_runs`.

    Returns:
        Rows of cells, the header first; the difference is that of pairs of one seed, with and less
        without the regularizer, and the 95 % interval of Student's t; the last column counts the
        runs with `convergence_flags`.
    """
    header = ["network", "data", "test error (%)", "with regularizer (%)"]
    header += ["paper (%)", "paper, with regularizer (%)", "difference [95 %]"]
    header += ["test cross-entropy, without / with"]
    header += ["calibration error, without / with", "train error (%), without / with", "flagged"]
    return [
        header,
        *(
            _names(cell)
            + _both(groups, _test_error, 2)
            + _paper(PAPER_TABLE_1, cell, 2)
            + [_difference(groups, _test_error, 2)]
            + _test_columns(groups)
            + [" / ".join(_both(groups, lambda result: result["train"]["error_percent"], 2))]
            + [_flagged(groups)]
            for cell, groups in _groups(records).items()
        ),
    ]


def table_2(records: Sequence[dict[str, Any]], normalize_logits: bool) -> list[list[str]]:
    """Returns gamma-hat of the minima, with their training losses and the paper's gamma-hat.

    Args:
        records: The finished runs of `regularization_runs`.
        normalize_logits: Whether gamma-hat is that of normalized logits.

    Returns:
        Rows of cells, the header first; the difference as in `table_1`; the last column counts the
        runs with `convergence_flags`.
    """
    header = ["network", "data", "gamma-hat", "with regularizer"]
    header += ["paper", "paper, with regularizer", "difference [95 %]"]
    header += ["test error (%), without / with"]
    header += ["test cross-entropy, without / with", "calibration error, without / with"]
    header += ["train loss, without / with", "flagged"]
    key = "normalized_metrics" if normalize_logits else "metrics"

    def gamma_hat(result: dict[str, Any]) -> float:
        return float(result[key]["log_determinant"]["mean"])

    return [
        header,
        *(
            _names(cell)
            + _both(groups, gamma_hat, 1)
            + _paper(PAPER_TABLE_2, cell, 1)
            + [_difference(groups, gamma_hat, 1)]
            + [" / ".join(_both(groups, _test_error, 2))]
            + _test_columns(groups)
            + [" / ".join(mean_and_std(train_losses(groups[r]), 4) for r in (False, True))]
            + [_flagged(groups)]
            for cell, groups in _groups(records).items()
        ),
    ]


def _make_table(
    name: str,
    table: Callable[[Sequence[dict[str, Any]]], Rows],
    preset: Preset,
    options: TableOptions,
) -> None:
    """Carries out the runs, prints the table and writes it beside them."""
    runs = regularization_runs(preset, options.settings_file)
    store = carry_out_runs(EXPERIMENT, runs, preset, options)
    records = store.records_of(runs)
    if records and not options.dry_run:
        publish_table(store.directory, name, table(records))


def _groups(records: Sequence[dict[str, Any]]) -> _Groups:
    """Returns the records of each network and data set, in the order of the paper's tables."""
    groups: _Groups = {}
    for record in records:
        training = record["config"]["training"]
        cell = training["arch"], training["dataset"]
        both = groups.setdefault(cell, {False: [], True: []})
        both[training.get("regularize", False)].append(record)
    order = list(PAPER_TABLE_1)
    return dict(sorted(groups.items(), key=lambda item: _place(item[0], order)))


def _place(cell: tuple[str, str], order: list[tuple[str, str]]) -> int:
    return order.index(cell) if cell in order else len(order)


def _both(
    groups: dict[bool, list[dict[str, Any]]],
    quantity: Callable[[dict[str, Any]], float],
    digits: int,
) -> list[str]:
    """Returns mean ± std of a quantity of the results without and with the regularizer."""
    return [
        mean_and_std([quantity(record["result"]) for record in groups[regularize]], digits)
        for regularize in (False, True)
    ]


def _test_error(result: dict[str, Any]) -> float:
    return result["test"]["error_percent"]


def _difference(
    groups: dict[bool, list[dict[str, Any]]],
    quantity: Callable[[dict[str, Any]], float],
    digits: int,
) -> str:
    """Returns what the regularizer changes, in the mean over the seeds that have both runs."""
    with_it, without = (
        {record["seed"]: quantity(record["result"]) for record in groups[regularize]}
        for regularize in (True, False)
    )
    seeds = sorted(with_it.keys() & without.keys())
    pairs = ([values[seed] for seed in seeds] for values in (with_it, without))
    return difference_cell(*pairs, digits)


def _test_columns(groups: dict[bool, list[dict[str, Any]]]) -> list[str]:
    """Returns the test cross-entropy and calibration error, "-" where a record has none."""
    return [
        " / ".join(_both(groups, lambda result, name=name: result["test"].get(name, math.nan), 3))
        for name in ("loss", "calibration_error")
    ]


def _flagged(groups: dict[bool, list[dict[str, Any]]]) -> str:
    """Returns how many runs, without / with the regularizer, are at no minimum like the others."""
    records = [record for group in groups.values() for record in group]
    flags = run_flags(records)
    without = len(groups[False])
    counts = [sum(map(bool, part)) for part in (flags[:without], flags[without:])]
    return " / ".join(map(str, counts)) if any(counts) else ""


def _names(cell: tuple[str, str]) -> list[str]:
    arch, dataset = cell
    return [_ARCHITECTURES[arch], _DATASETS.get(dataset, dataset)]


def _paper(
    table: dict[tuple[str, str], tuple[tuple[float, float], ...]],
    cell: tuple[str, str],
    digits: int,
) -> list[str]:
    """Returns the paper's mean ± std without and with the regularizer, "-" where it has none."""
    pairs = table.get(cell)
    if pairs is None:
        return ["-", "-"]
    return [f"{mean:.{digits}f} ± {std:.{digits}f}" for mean, std in pairs]
