"""Finding the classifier inside of what trains it."""

import keras

from fisher_keras import FisherRegularizedModel
from fisher_keras.classifier.wrapper import ClassifierWrapper, unwrap


def test_the_classifier_inside():
    classifier = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    regularized = FisherRegularizedModel(classifier)
    assert isinstance(regularized, ClassifierWrapper)
    assert unwrap(regularized) is classifier
    assert unwrap(FisherRegularizedModel(regularized)) is classifier
    assert unwrap(classifier) is classifier
