r"""Figures 1 to 3, and how well each metric orders the networks by test error.

For example

  plot_results --store=results/scenario_confusion_laptop
  plot_results --store=results/scenario_confusion_laptop \
    --store=results/scenario_batch_size_laptop --output=results/laptop

Also of a scenario that is not finished: the runs that are there are drawn.
"""

from fisher_keras.experiments.scenarios.plot import plot_results
from fisher_keras.experiments.scenarios.plot_flags import GROUP, define_flags, plot_config

__all__ = ["FLAG_GROUPS", "RESUME_FLAG", "define_flags", "run"]

FLAG_GROUPS = [GROUP]
RESUME_FLAG = None


def run() -> None:
    """Draws the stores that the flags name."""
    plot_results(plot_config())
