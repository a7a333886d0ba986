"""Scenario II of Section 7.1: minima of trainings with several augmentations.

For example

  scenario_augmentation --preset=laptop --num_workers=2

Stopped, the same command goes on. bin/plot_results draws what came out.
"""

from fisher_keras.experiments import flags
from fisher_keras.experiments.runs.experiment import ExperimentOptions
from fisher_keras.experiments.scenarios.runs import run_scenario

FLAG_GROUPS = flags.flag_groups(ExperimentOptions)
RESUME_FLAG = None


def define_flags() -> None:
    """Defines the flags of `ExperimentOptions`."""
    flags.define_flags(ExperimentOptions)


def run() -> None:
    """Carries out the scenario."""
    run_scenario("scenario_augmentation", flags.from_flags(ExperimentOptions))
