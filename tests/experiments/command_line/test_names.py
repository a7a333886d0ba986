"""The names that flags accept are those of the core."""

from fisher_keras import datasets, metrics, models
from fisher_keras.experiments import names
from fisher_keras.models.activation import ACTIVATIONS
from fisher_keras.regularizer.algorithm import DIRECTIONS
from fisher_keras.regularizer.fisher import GRADIENTS


def test_names_are_those_of_the_core():
    assert ACTIVATIONS == names.ACTIVATIONS
    assert tuple(models.ARCHITECTURES) == names.ARCHITECTURES
    assert tuple(datasets.AUGMENTATIONS) == names.AUGMENTATIONS
    assert tuple(datasets.DATASETS) == names.DATASETS
    assert tuple(GRADIENTS) == names.GRADIENTS
    assert DIRECTIONS == names.DIRECTIONS
    assert tuple(metrics.METRICS) == names.METRICS
