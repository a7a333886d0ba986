"""Both halves of the paper in minutes, on handwritten digits.

A narrow CNN is trained without the regularizer, with its gradient clipping alone, and with it.
Then a ResNet-8 is trained on digits some of which have random labels, and gamma-hat of the minima
that it ends in is compared with their test errors. Stopped, the same command goes on; changed
flags train only the networks that they concern.
"""

from fisher_keras.experiments.command_line.command import Command
from fisher_keras.experiments.quickstart.networks import Settings
from fisher_keras.experiments.quickstart.report import report

COMMAND = Command.of(Settings, report)
