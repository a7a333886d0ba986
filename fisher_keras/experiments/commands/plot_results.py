r"""Figures 1 to 3, and how well each metric orders the networks by test error.

For example

  plot_results --store=results/scenario_confusion_laptop
  plot_results --store=results/scenario_confusion_laptop \
    --store=results/scenario_batch_size_laptop --output=results/laptop

Also of a scenario that is not finished: the runs that are there are drawn.
"""

from fisher_keras.experiments import flags
from fisher_keras.experiments.scenarios.plot import PlotConfig, plot_results

FLAG_GROUPS = flags.flag_groups(PlotConfig)
RESUME_FLAG = None


def define_flags() -> None:
    """Defines the flags of a `PlotConfig`."""
    flags.define_flags(PlotConfig)


def run() -> None:
    """Draws the stores that the flags name."""
    plot_results(flags.from_flags(PlotConfig))
