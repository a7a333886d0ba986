"""Scenario III of Section 7.1: minima of trainings with several batch sizes.

For example

  scenario_batch_size --preset=laptop --num_workers=2

Stopped, the same command goes on. plot_results draws what came out.
"""

import functools

from fisher_keras.experiments.command_line.command import Command
from fisher_keras.experiments.runs.experiment import ExperimentOptions
from fisher_keras.experiments.scenarios.runs import run_scenario

COMMAND = Command.of(ExperimentOptions, functools.partial(run_scenario, "scenario_batch_size"))
