"""A smooth activation in the place of a network's ReLU."""

import keras

# Smooth ones that resemble ReLU, as Keras calls them.
ACTIVATIONS = ("gelu", "silu", "softplus")


def with_activation(model: keras.Model, activation: str) -> keras.Model:
    """Returns a copy of a network of Keras' layers with a smooth activation.

    Args:
        model: A functional model, whose activation is ReLU: layers, or arguments of layers.
        activation: One of `ACTIVATIONS`.

    Returns:
        A model with the same weights, and with the activation wherever the network has ReLU.
    """

    def replaced(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, keras.layers.ReLU):
            return keras.layers.Activation(activation, name=layer.name)
        config = layer.get_config()
        if config.get("activation") == "relu":
            config["activation"] = activation
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=replaced)
    copy.set_weights(model.get_weights())
    return copy
