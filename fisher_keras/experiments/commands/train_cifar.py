"""Trains one of the paper's networks, with or without the regularizer (Section 7.2).

The defaults are the recipe of the network's own paper, for example

  train_cifar --arch=resnet --regularize --data_dir=tfds --download --output_dir=runs/first
"""

from fisher_keras.experiments.training.flags import (
    GROUPS,
    training_config,
)
from fisher_keras.experiments.training.flags import (
    define_training_flags as define_flags,
)
from fisher_keras.experiments.training.train import train

__all__ = ["FLAG_GROUPS", "RESUME_FLAG", "define_flags", "run"]

FLAG_GROUPS = GROUPS
RESUME_FLAG = "--resume"


def run() -> None:
    """Trains the network that the flags ask for."""
    train(training_config())
