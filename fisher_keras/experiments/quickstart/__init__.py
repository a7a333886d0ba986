"""Both halves of the paper in minutes on two cores, on scikit-learn's handwritten digits.

The regularizer: a narrow CNN is trained without it, with its gradient clipping alone, and with it.
The metric: a ResNet-8 is trained on the digits and on further images with random labels, and
gamma-hat of the minima that it ends in is compared with their test errors (Scenario I). Stopped,
the same command goes on; changed flags train only the networks that they concern.
"""

from fisher_keras.experiments.quickstart.report import GROUP, define_flags, main

__all__ = ["GROUP", "define_flags", "main"]
