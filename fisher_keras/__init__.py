"""Fisher-information metric, regularizer and bound for Keras classifiers."""

from fisher_keras._version import __version__
from fisher_keras.regularizer import FisherRegularizedModel

__all__ = ["FisherRegularizedModel", "__version__"]
