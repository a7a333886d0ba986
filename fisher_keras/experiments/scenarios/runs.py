"""The three scenarios of Section 7.1, in which minima generalize differently.

One variable of the training is varied, and the metrics of the minima are compared with the test
error: I, the size of a confusion set; II, the augmentation; III, the batch size.
"""

from collections.abc import Mapping

from fisher_keras.experiments.runs.experiment import ExperimentOptions, execute_runs, preset_of
from fisher_keras.experiments.runs.presets import LAPTOP_NETWORKS, LAPTOP_TRAINING, Preset
from fisher_keras.experiments.runs.store import Run
from fisher_keras.experiments.runs.trained_run import MetricSettings, trained_run
from fisher_keras.experiments.training.config import TrainingConfig

VARIABLES = {
    "scenario_confusion": "confusion_size",
    "scenario_augmentation": "augmentation",
    "scenario_batch_size": "batch_size",
}

_FOUR_METRICS = ("log_determinant", "robustness", "frobenius_norm", "spectral_radius")

# "In all scenarios, we train the model for 200 epochs with an initial learning rate 0.1, divided
# by 10 whenever the training loss plateaus." "We set |S^t| = N' = T = 100." "The default values
# for the 3 variables are confusion size 0, 4-crop-f and batch size 128."
_PAPER_TRAINING = {
    "arch": "resnet",
    "epochs": 200,
    "learning_rate": 0.1,
    "schedule": "plateau",
    "augmentation": "4-crop-f",
    "batch_size": 128,
}
_PAPER = Preset(
    about="as in the paper's Section 7.1.",
    values=(),
    num_seeds=5,
    training=_PAPER_TRAINING,
    metrics=MetricSettings(_FOUR_METRICS, num_samples=100, num_trials=100),
)
_LAPTOP = _PAPER.replaced(
    # Learning curves of 10,000 test images take as long as training.
    LAPTOP_TRAINING | LAPTOP_NETWORKS["resnet"] | {"validation_size": 250},
    {"num_trials": 20},
    about="a ResNet-8 on few images, for few epochs and, but for Scenario II, without "
    "augmentation; smaller batches, 20 trials of each metric. That the training error is 0 is "
    "not given up.",
)
_SMOKE = _PAPER.smoke({"depth": 8, "width": 4, "dataset": "digits"})
_AUGMENTATIONS = ("no-aug", "flip-only", "1-crop-f", "4-crop-f")

SCENARIOS: Mapping[str, Mapping[str, Preset]] = {
    "scenario_confusion": {
        "paper": _PAPER.replaced({"train_size": 10_000}, values=(0, 1000, 2000, 3000, 4000, 5000)),
        "laptop": _LAPTOP.replaced(values=(0, 125, 250, 500)),
        "smoke": _SMOKE.replaced(values=(0, 20)),
    },
    "scenario_augmentation": {
        "paper": _PAPER.replaced(values=_AUGMENTATIONS),
        # To fit the strongest augmentation takes a wider network, and more steps an image.
        "laptop": _LAPTOP.replaced(
            {"train_size": 500, "width": 24, "batch_size": 32, "epochs": 150},
            values=_AUGMENTATIONS,
        ),
        "smoke": _SMOKE.replaced(values=("no-aug", "4-crop-f")),
    },
    "scenario_batch_size": {
        "paper": _PAPER.replaced(values=(128, 256, 512, 1024)),
        # In so few epochs, larger batches are too few steps to a training error of 0.
        "laptop": _LAPTOP.replaced(values=(16, 32, 64, 128)),
        "smoke": _SMOKE.replaced(values=(10, 20)),
    },
}


def scenario_runs(experiment: str, preset: Preset) -> list[Run]:
    """Returns the runs of a scenario, a seed of all values before the next seed.

    A seed draws the training images, the confusion set, the initial weights and the batches.

    Args:
        experiment: One of `SCENARIOS`.
        preset: The size of the experiment.

    Returns:
        A run for each value and seed.
    """
    variable = VARIABLES[experiment]
    return [
        trained_run(
            experiment,
            TrainingConfig(**{**preset.training, variable: value}, seed=seed),
            preset.metrics,
            label=f"{variable} {value}",
        )
        for seed in preset.seeds
        for value in preset.values
    ]


def run_scenario(experiment: str, options: ExperimentOptions) -> None:
    """Trains and evaluates the networks of a scenario; what is finished is not done again.

    Args:
        experiment: One of `SCENARIOS`.
        options: How and where the runs are done.

    Raises:
        ValueError: If an option or the data cannot be used.
        OSError: If the data or the store cannot be read or written.
        FailedRunsError: If runs failed; all others are finished.
    """
    preset = preset_of(SCENARIOS[experiment], options)
    execute_runs(scenario_runs(experiment, preset), preset, options)
