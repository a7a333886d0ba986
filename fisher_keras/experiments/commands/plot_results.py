r"""Figures 1 to 3, and how well each metric orders the networks by test error.

For example

  plot_results --store=results/scenario_confusion_laptop
  plot_results --store=results/scenario_confusion_laptop \
    --store=results/scenario_batch_size_laptop --output=results/laptop

Also of a scenario that is not finished: the runs that are there are drawn.
"""

from fisher_keras.experiments.command_line.command import Command
from fisher_keras.experiments.scenarios.plot import PlotConfig, plot_results

COMMAND = Command.of(PlotConfig, plot_results)
