"""The regularizer beside plain, clipped, ghost-normalized and sharpness-aware training.

A batch of B images is split into M = B / 16 sub-batches. Strengths are multiples of parity, where
the regularizer is as strong as the implicit one of SGD: `explicit_to_implicit`,
2 alpha beta M (1 - m) / learning rate with m the momentum, is 1. Its gradients are shared, so that
batch normalization takes its moments from sub-batches: the control for that is ghost. Large
batches have less of the implicit one: there the explicit one has something to give back.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fisher_keras.experiments.comparisons.common import (
    TEST_ERROR,
    Quantity,
    difference_cell,
    grouped,
    make_table,
    mean_cell,
    metric,
    num_flagged,
    result_of,
)
from fisher_keras.experiments.runs.experiment import ExperimentOptions, preset_of
from fisher_keras.experiments.runs.presets import LAPTOP_NETWORKS, LAPTOP_TRAINING, Preset
from fisher_keras.experiments.runs.store import Run
from fisher_keras.experiments.runs.trained_network import TrainedNetwork, excess_losses
from fisher_keras.experiments.runs.trained_run import MetricSettings, trained_run
from fisher_keras.experiments.training.arch import recipe_of
from fisher_keras.experiments.training.config import METHODS, TrainingConfig, resolve

EXPERIMENT = "methods"
SUB_BATCH_SIZE = 16
ALPHA = 1e-4  # In all of the paper's experiments.
CLIP_NORM = 10.0  # tau.
STRENGTHS = (0.25, 1.0, 4.0)

_PAPER = Preset(
    about="the ResNet-20 and recipe of the paper's Table 1, at two batch sizes.",
    values=(128, 1024),
    num_seeds=5,
    training={"arch": "resnet"},
    metrics=MetricSettings(("log_determinant", "trace"), normalize_logits=0.04),
)
PRESETS = {
    "paper": _PAPER,
    "laptop": _PAPER.replaced(
        LAPTOP_TRAINING
        | LAPTOP_NETWORKS["resnet"]
        | {"width": 8, "epochs": 200, "validation_size": 50},
        {"num_trials": 20},
        about="a ResNet-8 of half the filters on 1,000 images, for 200 epochs and without "
        "augmentation; 20 trials.",
        values=(64, 256),
    ),
    "smoke": _PAPER.smoke(
        {"depth": 8, "width": 4, "dataset": "digits", "train_size": 64}, values=(32,)
    ),
}


def methods_runs(preset: Preset) -> list[Run]:
    """Returns the runs, a seed of all methods at all batch sizes before the next seed.

    Args:
        preset: The size; its values are batch sizes.

    Returns:
        For each of them and each seed a plain run, a clipped one, one of ghost batch
        normalization, one for each of `STRENGTHS`, and one of sharpness-aware minimization.
    """
    return [
        trained_run(EXPERIMENT, training, preset.metrics, f"batch {batch_size} {_name(training)}")
        for seed in range(preset.num_seeds)
        for batch_size in preset.values
        for training in _trainings({**preset.training, "batch_size": batch_size, "seed": seed})
    ]


def _trainings(settings: dict[str, Any]) -> list[TrainingConfig]:
    plain = resolve(TrainingConfig(**settings))
    # At least two: with one, ghost batch normalization would be the ordinary one.
    num_sub_batches = max(2, plain.batch_size // SUB_BATCH_SIZE)
    # The beta at which the ratio of the module's docstring is 1.
    parity = plain.learning_rate / (2 * ALPHA * num_sub_batches * (1 - _momentum(plain.arch)))
    regularized = [
        TrainingConfig(
            **settings,
            method="fisher",
            alpha=ALPHA,
            # It is a part of the run's key, which the last bits of a division must not change.
            beta=float(f"{strength * parity:.3g}"),
            num_sub_batches=num_sub_batches,
            clip_norm=CLIP_NORM,
            share_gradients=True,
        )
        for strength in STRENGTHS
    ]
    clipped = TrainingConfig(**settings, method="clipped", clip_norm=CLIP_NORM)
    # Made from the clipped one, as both are to differ in batch normalization alone.
    ghost = dataclasses.replace(clipped, method="ghost", num_sub_batches=num_sub_batches)
    return [plain, clipped, ghost, *regularized, TrainingConfig(**settings, method="sam")]


def _momentum(arch: str) -> float:
    return recipe_of(arch).momentum


def _name(training: TrainingConfig) -> str:
    """Returns the method of a training, with the strength of the regularizer."""
    if training.method != "fisher":
        return training.method
    training = resolve(training)
    # Computed back from the rounded beta: hence only two digits of it are shown.
    ratio = 2 * training.alpha * training.beta * training.num_sub_batches / training.learning_rate
    return f"fisher, {ratio * (1 - _momentum(training.arch)):.2g} of parity"


def make_methods_table(options: ExperimentOptions) -> None:
    """Trains the networks that are not there yet, prints the table and writes it.

    Args:
        options: Of the experiment.

    Raises:
        ValueError: If an option or the data cannot be used.
        OSError: If the data or the store cannot be read or written.
        FailedRunsError: If runs failed; all others are finished.
    """
    preset = preset_of(PRESETS, options)
    make_table(
        methods_runs(preset), methods_table, "methods", preset, options, "compare_methods", 2
    )


def methods_table(networks: Sequence[TrainedNetwork]) -> list[list[str]]:
    """Returns the table of the methods: test error, differences of pairs, and the minima.

    Args:
        networks: Of the finished runs of `methods_runs`.

    Returns:
        Rows of cells, the header first. A difference is that of the test error to a control
        of the same batch size and seed, with the 95 % interval of Student's t.
    """
    groups = grouped(networks, lambda n: (n.training.batch_size, _name(n.training)))
    header = ["batch", "method", "runs", "test error (%)", *(f"less {one}" for one in _CONTROLS)]
    rows = [[*header, *(title for title, _, _ in _QUANTITIES), "flagged"]]
    for batch_size, name in sorted(groups, key=_place_in_table):
        group = groups[batch_size, name]
        differences = [
            "-" if name == other else difference_cell(group, others, TEST_ERROR, 2)
            for other in _CONTROLS
            for others in (groups.get((batch_size, other), {}),)
        ]
        cells = [mean_cell(group, quantity, digits) for _, digits, quantity in _QUANTITIES]
        (flagged,) = num_flagged([group])
        row = [str(batch_size), name, str(len(group)), mean_cell(group, TEST_ERROR, 2)]
        rows.append([*row, *differences, *cells, str(flagged or "")])
    return rows


_CONTROLS = ("plain", "clipped", "ghost")


def _log_trace(networks: Sequence[TrainedNetwork]) -> list[float]:
    return np.log(metric("trace")(networks)).tolist()


_QUANTITIES: tuple[tuple[str, int, Quantity], ...] = (
    ("test cross-entropy", 3, result_of("test", "loss")),
    ("calibration error", 3, result_of("test", "calibration_error")),
    ("train error (%)", 2, result_of("train", "error_percent")),
    ("excess train loss", 4, excess_losses),
    ("ln trace", 2, _log_trace),
    ("gamma-hat", 1, metric("log_determinant")),
    ("normalized", 1, metric("log_determinant", normalized=True)),
)


def _place_in_table(key: tuple[int, str]) -> tuple[int, int, float]:
    batch_size, name = key
    # Of "fisher, 0.25 of parity", the first word and the number: strengths are sorted as numbers.
    method, *rest = name.replace(",", "").split()
    return batch_size, METHODS.index(method), float(rest[0]) if rest else 0.0
