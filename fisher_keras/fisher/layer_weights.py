"""The layers of a model, with their trainable weights."""

import keras

from fisher_keras.classifier import stateless
from fisher_keras.graph import keras_private


def weights_by_layer(model: keras.Model) -> dict[str, list[int]]:
    """Returns the layers that have trainable weights of their own.

    Args:
        model: A built Keras model.

    Returns:
        For each such layer, by its path in the model, the indices of its weights among all
        trainable weights, in the order of the weights. A layer in a layer is a separate layer. A
        weight that several layers share belongs to one of them.
    """
    # A layer has the weights of those in it, too: the one with the fewest is the owner.
    layers = keras_private.all_layers(model)
    layers.sort(key=lambda layer: len(layer.trainable_variables), reverse=True)
    owners = {id(variable): layer for layer in layers for variable in layer.trainable_variables}
    indices: dict[int, list[int]] = {}
    names: dict[str, int] = {}
    for index, variable in enumerate(stateless.weights(model)):
        owner = owners[id(variable)]
        if id(owner) not in indices:
            path = variable.path.removeprefix(f"{model.name}/")
            name = path.rpartition("/")[0] or owner.name
            # Two models in a model may have layers of the same names.
            while name in names:
                name += "'"
            names[name] = id(owner)
        indices.setdefault(id(owner), []).append(index)
    return {name: indices[owner] for name, owner in names.items()}
