"""A Keras classifier as a function of its weights (Section 3)."""

from fisher_keras.classifier.classifier import Classifier

__all__ = ["Classifier"]
