"""The regularizer beside plain, clipped and sharpness-aware training, at several strengths.

For example

  compare_methods --preset=laptop --num_workers=2

Stopped, the same command goes on; the table of what is finished comes at its end.
"""

from fisher_keras.experiments.command_line.command import Command
from fisher_keras.experiments.comparisons.methods import make_methods_table
from fisher_keras.experiments.runs.experiment import ExperimentOptions

COMMAND = Command.of(ExperimentOptions, make_methods_table)
