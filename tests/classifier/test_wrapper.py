"""Finding the classifier inside of what trains it."""

import keras

from fisher_keras import FisherRegularizedModel
from fisher_keras.classifier.wrapper import ClassifierWrapper, plain_classifier


def test_the_classifier_inside():
    classifier = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    regularized = FisherRegularizedModel(classifier)
    assert isinstance(regularized, ClassifierWrapper)
    assert plain_classifier(regularized) is classifier
    assert plain_classifier(FisherRegularizedModel(regularized)) is classifier
    assert plain_classifier(classifier) is classifier
