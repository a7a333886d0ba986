"""The observed Fisher information of a classifier (Section 4, Equations 4 and 5)."""

from fisher_keras.fisher.example_norms import example_gradient_norms
from fisher_keras.fisher.gram import FisherGram, loss_gradient_gram

__all__ = ["FisherGram", "example_gradient_norms", "loss_gradient_gram"]
