"""The regularizer beside plain, clipped and sharpness-aware training, at several strengths.

A batch of B images is split into M = B / 16 sub-batches. Strengths are multiples of parity, where
the regularizer is as strong as the implicit one of SGD: 2 alpha beta M (1 - m) / learning rate is
1, m being the momentum (see `FisherRegularizedModel` on `explicit_to_implicit`, which leaves m
out). Large batches have less of the implicit one: there the explicit one has something to give
back.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

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
from fisher_keras.experiments.statistics.text_tables import mean_and_std, publish_table
from fisher_keras.experiments.training.config import TrainingConfig, resolve
from fisher_keras.models import RECIPES

EXPERIMENT = "methods"
SUB_BATCH_SIZE = 16
ALPHA = 1e-4  # In all of the paper's experiments.
CLIP_NORM = 10.0  # tau.
STRENGTHS = (0.25, 1.0, 4.0)

_METRICS = MetricSettings(("log_determinant", "trace"), normalize_logits=0.04)
_RESNET = {"arch": "resnet"}
PRESETS = {
    "paper": Preset(
        about="the ResNet-20 and recipe of the paper's Table 1, at two batch sizes.",
        values=(128, 1024),
        num_seeds=5,
        training=_RESNET,
        metrics=_METRICS,
    ),
    "laptop": Preset(
        about="a ResNet-8 of half the filters on 1,000 images, for 200 epochs and without "
        "augmentation; 20 trials.",
        values=(64, 256),
        num_seeds=5,
        training=LAPTOP_TRAINING
        | LAPTOP_NETWORKS["resnet"]
        | _RESNET
        | {"width": 8, "epochs": 200, "validation_size": 50},
        metrics=dataclasses.replace(_METRICS, num_trials=20),
    ),
    "smoke": Preset(
        about="two epochs on a few digits: it shows that everything runs, and nothing else.",
        values=(32,),
        num_seeds=2,
        training=_RESNET
        | {"depth": 8, "width": 4, "dataset": "digits", "train_size": 64, "epochs": 2},
        metrics=dataclasses.replace(_METRICS, num_samples=10, num_trials=2),
        run_estimate_s=15.0,
    ),
}


def methods_runs(preset: Preset) -> list[Run]:
    """Returns the runs, a seed of all methods at all batch sizes before the next seed.

    Args:
        preset: The size; its values are batch sizes.

    Returns:
        For each of them and each seed a plain run, a clipped one, one for each of `STRENGTHS`, and
        one of sharpness-aware minimization.
    """
    return [
        trained_run(EXPERIMENT, training, preset.metrics, f"batch {batch_size} {_name(training)}")
        for seed in range(preset.num_seeds)
        for batch_size in preset.values
        for training in _trainings({**preset.training, "batch_size": batch_size, "seed": seed})
    ]


def _trainings(settings: dict[str, Any]) -> list[TrainingConfig]:
    plain = resolve(TrainingConfig(**settings))
    num_sub_batches = max(2, plain.batch_size // SUB_BATCH_SIZE)
    parity = plain.learning_rate / (2 * ALPHA * num_sub_batches * (1 - _momentum(plain.arch)))
    regularized = [
        TrainingConfig(
            **settings,
            method="fisher",
            alpha=ALPHA,
            beta=float(f"{strength * parity:.3g}"),
            num_sub_batches=num_sub_batches,
            clip_norm=CLIP_NORM,
            share_gradients=True,
        )
        for strength in STRENGTHS
    ]
    clipped = TrainingConfig(**settings, method="clipped", clip_norm=CLIP_NORM)
    return [plain, clipped, *regularized, TrainingConfig(**settings, method="sam")]


def _momentum(arch: str) -> float:
    return RECIPES[arch].momentum


def _name(training: TrainingConfig) -> str:
    """Returns the method of a training, and how strong the regularizer is."""
    if not training.regularize:
        return training.method or ("clipped" if training.clip_norm else "plain")
    training = resolve(training)
    ratio = 2 * training.alpha * training.beta * training.num_sub_batches / training.learning_rate
    return f"fisher, {ratio * (1 - _momentum(training.arch)):.2g} of parity"


def make_methods_table(options: ExperimentOptions) -> None:
    """Trains the networks that are not there yet, prints the table and writes it.

    Args:
        options: How and where the runs are done.

    Raises:
        ValueError: If an option or the data cannot be used.
        OSError: If the data or the store cannot be read or written.
        FailedRunsError: If runs failed; all others are finished.
    """
    preset = preset_of(PRESETS, options)
    runs = methods_runs(preset)
    store = carry_out_runs(EXPERIMENT, runs, preset, options)
    records = store.records_of(runs)
    if records and not options.dry_run:
        publish_table(store.directory, "methods", methods_table(records), num_names=2)


def methods_table(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the table of the methods: test error, differences of pairs, and the minima.

    Args:
        records: The finished runs of `methods_runs`.

    Returns:
        Rows of cells, the header first. A difference is that of the test error to plain or clipped
        training of the same batch size and seed, with the 95 % interval of Student's t.
    """
    groups = _groups(records)
    quantities = _quantities()
    header = ["batch", "method", "runs", "test error (%)", "less plain", "less clipped"]
    rows = [[*header, *(title for title, _, _ in quantities), "flagged"]]
    for (batch_size, name), by_seed in groups.items():
        cells = [mean_and_std(_errors(by_seed), 2)]
        for other in ("plain", "clipped"):
            cells.append(_difference(by_seed, groups.get((batch_size, other), {}), name == other))
        for _, digits, quantity in quantities:
            cells.append(mean_and_std(quantity(list(by_seed.values())), digits))
        rows.append([str(batch_size), name, str(len(by_seed)), *cells, _flagged(by_seed)])
    return rows


_Records = list[dict[str, Any]]


def _quantities() -> list[tuple[str, int, Callable[[_Records], list[float]]]]:
    def of(*path: str) -> Callable[[_Records], list[float]]:
        return lambda records: [float(_at(record["result"], path)) for record in records]

    return [
        ("test cross-entropy", 3, of("test", "loss")),
        ("calibration error", 3, of("test", "calibration_error")),
        ("train error (%)", 2, of("train", "error_percent")),
        ("excess train loss", 4, train_losses),
        ("ln trace", 2, lambda records: np.log(of("metrics", "trace", "mean")(records)).tolist()),
        ("gamma-hat", 1, of("metrics", "log_determinant", "mean")),
        ("normalized", 1, of("normalized_metrics", "log_determinant", "mean")),
    ]


def _at(result: dict[str, Any], path: Sequence[str]) -> Any:
    for name in path:
        result = result[name]
    return result


def _groups(records: Sequence[dict[str, Any]]) -> dict[tuple[int, str], dict[int, dict]]:
    """Returns the records by batch size and method, then by seed, in the order of `_trainings`."""
    groups: dict[tuple[int, str], dict[int, dict]] = {}
    for record in records:
        training = resolve(TrainingConfig(**record["config"]["training"]))
        by_seed = groups.setdefault((training.batch_size, _name(training)), {})
        by_seed[record["seed"]] = record
    return {key: dict(sorted(groups[key].items())) for key in sorted(groups, key=_place_in_table)}


def _place_in_table(key: tuple[int, str]) -> tuple[int, int, float]:
    batch_size, name = key
    kinds = ("plain", "clipped", "fisher", "sam")
    kind, *rest = name.replace(",", "").split()
    return batch_size, kinds.index(kind), float(rest[0]) if rest else 0.0


def _errors(by_seed: dict[int, dict]) -> list[float]:
    return [record["result"]["test"]["error_percent"] for record in by_seed.values()]


def _difference(by_seed: dict[int, dict], others: dict[int, dict], same: bool) -> str:
    seeds = sorted(by_seed.keys() & others.keys())
    if same or not seeds:
        return "-"
    pairs = ([group[seed] for seed in seeds] for group in (by_seed, others))
    return difference_cell(*(_errors(dict(enumerate(group))) for group in pairs), digits=2)


def _flagged(by_seed: dict[int, dict]) -> str:
    return str(sum(map(bool, run_flags(list(by_seed.values())))) or "")
