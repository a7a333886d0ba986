"""The regularizer (Section 6, Equation 6, Algorithm 1), and SAM for comparison."""

from fisher_keras.regularizer.fisher import GRADIENTS, FisherRegularizedModel
from fisher_keras.regularizer.sam import SharpnessAwareModel

__all__ = ["GRADIENTS", "FisherRegularizedModel", "SharpnessAwareModel"]
