"""Trains one of the paper's networks, with or without the regularizer (Section 7.2).

The defaults are the recipe of the network's own paper, for example

  train_cifar --arch=resnet --regularize --output_dir=runs/first
"""

from fisher_keras.experiments.command_line.command import Command
from fisher_keras.experiments.training.config import TrainingConfig
from fisher_keras.experiments.training.train import train

COMMAND = Command.of(TrainingConfig, train, resume_flag="--resume")
