"""The regularizer (Section 6, Equation 6, Algorithm 1)."""

from fisher_keras.regularizer.model import GRADIENTS, FisherRegularizedModel

__all__ = ["GRADIENTS", "FisherRegularizedModel"]
