"""Trains one of the paper's networks, with or without the regularizer (Section 7.2).

The defaults are the recipe of the network's own paper, for example

  train_cifar --arch=resnet --regularize --output_dir=runs/first
"""

from fisher_keras.experiments import flags
from fisher_keras.experiments.training.config import TrainingConfig
from fisher_keras.experiments.training.train import train

FLAG_GROUPS = flags.flag_groups(TrainingConfig)
RESUME_FLAG = "--resume"


def define_flags() -> None:
    """Defines the flags of a `TrainingConfig`."""
    flags.define_flags(TrainingConfig)


def run() -> None:
    """Trains the network that the flags ask for."""
    train(flags.from_flags(TrainingConfig))
