"""Both halves of the paper in minutes on two cores, on scikit-learn's handwritten digits.

The regularizer: a narrow CNN is trained without it, with its gradient clipping alone, and with it.
The metric: a ResNet-8 is trained on digits some of which have random labels, and gamma-hat of the
minima that it ends in is compared with their test errors (Section 7.1, Scenario I).
"""
