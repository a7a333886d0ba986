"""A pool of networks that differ in many settings at once, each drawn at random.

The scenarios of Section 7.1 vary one setting: a metric that goes with it goes with the test error,
for whatever reason. Where many settings vary, it has to tell which network generalizes best
whatever made it so (Y. Jiang et al., "Fantastic Generalization Measures and Where to Find Them",
ICLR 2020; G. K. Dziugaite et al., "In Search of Robust Measures of Generalization", NeurIPS 2020).
"""

import itertools
import random
from typing import Any

from fisher_keras.experiments.names import METRICS
from fisher_keras.experiments.runs.experiment import execute_runs, preset_of
from fisher_keras.experiments.runs.presets import Preset
from fisher_keras.experiments.runs.store import Run
from fisher_keras.experiments.runs.trained_run import trained_run
from fisher_keras.experiments.scenarios.pool_options import PoolOptions
from fisher_keras.experiments.scenarios.runs import SCENARIOS
from fisher_keras.experiments.training.config import TrainingConfig
from fisher_keras.experiments.training.option_checks import NETWORK_OPTIONS

EXPERIMENT = "pool"
VARIED = ("batch_size", "augmentation", "confusion_size", "width", "l2_penalty", "learning_rate")

_SCENARIO_III = SCENARIOS["scenario_batch_size"]


def _values(*values: tuple) -> tuple[tuple[str, tuple], ...]:
    return tuple(zip(VARIED, values, strict=True))


_LAPTOP_SIZES = {"train_size": 500, "validation_size": 50}
_LAPTOP_VALUES = _values(
    (16, 32, 64),
    ("no-aug", "flip-only", "1-crop-f"),
    (0, 50, 100),
    (8, 12, 16),
    (0.0, 5e-5, 2e-4),
    (0.03, 0.1, 0.2),
)
PRESETS = {
    "paper": _SCENARIO_III["paper"].replaced(
        {"train_size": 10_000},
        about="the network, recipe and metrics of the paper's Section 7.1, on 10,000 images.",
        num_seeds=100,
        values=_values(
            (64, 128, 512),
            ("no-aug", "flip-only", "4-crop-f"),
            (0, 1000, 2000),
            (12, 16, 24),
            (0.0, 5e-5, 2e-4),
            (0.03, 0.1, 0.2),
        ),
    ),
    "laptop": _SCENARIO_III["laptop"].replaced(
        _LAPTOP_SIZES,
        about="small ResNet-8s on 500 images, 100 epochs, 20 trials of each metric.",
        num_seeds=100,
        values=_LAPTOP_VALUES,
    ),
    # Wide enough that networks with crops reach the loss at which all trainings end.
    "repeated": _SCENARIO_III["laptop"].replaced(
        _LAPTOP_SIZES | {"width": 24, "epochs": 400, "label_smoothing": 0.1, "target_loss": 0.05},
        {"names": METRICS},
        about="ResNet-8s of one width on 500 images, 40 settings with three seeds each. All "
        "trainings end at the same loss; 20 trials of each metric.",
        num_seeds=3,
        num_settings=40,
        values=tuple(value for value in _LAPTOP_VALUES if value[0] != "width"),
    ),
    "smoke": _SCENARIO_III["smoke"].replaced(
        num_seeds=6,
        values=_values(
            (10, 20), ("no-aug", "flip-only"), (0, 20), (4, 6), (0.0, 5e-5), (0.05, 0.1)
        ),
    ),
}


def pool_runs(preset: Preset) -> list[Run]:
    """Returns the runs of the pool, a seed of all settings before the next seed.

    Args:
        preset: The size; its values are pairs of a setting and what it is drawn from. With
            `num_settings`, each of so many combinations has all seeds. Without it, each seed
            draws its own.

    Returns:
        The runs; a smaller pool has the first of them.
    """
    drawn = [(_drawn(preset, seed), seed) for seed in preset.seeds]
    if preset.num_settings is not None:
        drawn = [(one, seed) for seed in preset.seeds for one in _combinations(preset)]
    return [
        trained_run(
            EXPERIMENT,
            TrainingConfig(**{**preset.training, **settings}, seed=seed),
            preset.metrics,
            label="network",
        )
        for settings, seed in drawn
    ]


def _combinations(preset: Preset) -> list[dict[str, Any]]:
    """Returns the first `num_settings` different combinations that are drawn."""
    found: dict[tuple, dict[str, Any]] = {}
    for number in itertools.count():
        if len(found) == preset.num_settings:
            return list(found.values())
        drawn = _drawn(preset, number)
        found.setdefault(tuple(drawn.values()), drawn)


def _drawn(preset: Preset, number: int) -> dict[str, Any]:
    # A generator for each setting: one more setting leaves the others as they are.
    # By `random()`, as it is the one method whose numbers Python promises not to change.
    return {
        name: values[int(len(values) * random.Random(f"{name} {number}").random())]
        for name, values in preset.values
    }


def run_pool(options: PoolOptions) -> None:
    """Trains and evaluates the networks of the pool; what is finished is not done again.

    Args:
        options: How and where the runs are done.

    Raises:
        ValueError: If an option or the data cannot be used.
        OSError: If the data or the store cannot be read or written.
        FailedRunsError: If runs failed; all others are finished.
    """
    preset = preset_of(PRESETS, options)
    if preset.training["arch"] != PRESETS[options.preset].training["arch"]:
        # What is left are the settings that all networks have.
        values = tuple(value for value in preset.values if value[0] not in NETWORK_OPTIONS)
        preset = preset.replaced(values=values)
    execute_runs(pool_runs(preset), preset, options)
