"""Chooses beta, M and tau of the regularizer on a validation split (Section 7.2).

For example

  tune_regularizer --preset=laptop --arch=resnet

Stopped or killed, the same command goes on.
"""

from fisher_keras.experiments.command_line.command import Command
from fisher_keras.experiments.search.search_flags import GROUPS, define_flags, tuning_config
from fisher_keras.experiments.search.tuning import tune

COMMAND = Command(define_flags, tuning_config, tune, GROUPS)
