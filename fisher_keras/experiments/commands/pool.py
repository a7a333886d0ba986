"""A pool of networks that differ in many settings at once, by random search.

For example

  pool --preset=laptop --label_smoothing=0.1 --num_workers=2

Stopped, the same command goes on. plot_results draws what came out.
"""

from fisher_keras.experiments.command_line.command import Command
from fisher_keras.experiments.runs.experiment import ExperimentOptions
from fisher_keras.experiments.scenarios.pool import run_pool

COMMAND = Command.of(ExperimentOptions, run_pool)
