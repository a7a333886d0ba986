"""Models around a classifier, and the classifier inside."""

import keras


class ClassifierWrapper(keras.Model):
    """A Keras model that trains a classifier, and is not one itself.

    What is said of a local minimum is said of the classifier inside: `plain_classifier` finds it.

    Attributes:
        model: The classifier.
    """

    model: keras.Model


def plain_classifier(model: keras.Model) -> keras.Model:
    """Returns the classifier inside a `ClassifierWrapper`, and any other model as it is."""
    while isinstance(model, ClassifierWrapper):
        model = model.model
    return model
