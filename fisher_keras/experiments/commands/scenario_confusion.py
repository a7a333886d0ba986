"""Scenario I of Section 7.1: minima of trainings with confusion sets of several sizes.

For example

  scenario_confusion --preset=laptop --num_workers=2 --data_dir=tfds --download

Stopped, the same command goes on. bin/plot_results draws what came out.
"""

from fisher_keras.experiments.runs.experiment import (
    FLAGS_GROUP,
    experiment_options,
)
from fisher_keras.experiments.runs.experiment import (
    define_experiment_flags as define_flags,
)
from fisher_keras.experiments.scenarios.runs import run_scenario

__all__ = ["FLAG_GROUPS", "RESUME_FLAG", "define_flags", "run"]

FLAG_GROUPS = [FLAGS_GROUP]
RESUME_FLAG = None


def run() -> None:
    """Carries out the scenario."""
    run_scenario("scenario_confusion", experiment_options())
