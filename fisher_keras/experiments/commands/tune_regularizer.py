"""Chooses beta, M and tau of the regularizer on a validation split (Section 7.2).

For example

  tune_regularizer --preset=laptop --arch=resnet

Stopped or killed, the same command goes on. Started several times at once, on one machine or with
--storage on many, the processes share the trials.
"""

from fisher_keras.experiments.search.flags import GROUPS, define_flags, tuning_config
from fisher_keras.experiments.search.tuning import tune

__all__ = ["FLAG_GROUPS", "RESUME_FLAG", "define_flags", "run"]

FLAG_GROUPS = GROUPS
RESUME_FLAG = None


def run() -> None:
    """Carries out the search that the flags ask for."""
    tune(tuning_config())
