"""A network of a user, `--arch=tiny_network:tiny`: a training traces it in half a second."""

import keras

# Options of a training of it.
TINY = {"width": None, "arch": "tiny_network:tiny"}


def tiny(num_classes, image_shape):
    layers = [
        keras.Input(image_shape),
        keras.layers.Conv2D(4, 3, strides=3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(num_classes),
    ]
    return keras.Sequential(layers)
