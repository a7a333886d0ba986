"""The observed Fisher information of a classifier (Section 4, Equations 4 and 5)."""

from fisher_keras.fisher.gram import FisherGram, loss_gradient_gram

__all__ = ["FisherGram", "loss_gradient_gram"]
