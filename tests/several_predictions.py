"""Classifiers with several predictions an example, their losses by obvious loops in float64."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

LENGTH, WORDS, CLASSES, COUNT = 5, 7, 3, 4


def sequential(shape, *parts):
    return keras.Sequential([keras.Input(shape), *parts])


def text(*parts):
    """Embeds words, of which 0 is padding that a mask leaves out."""
    return sequential((LENGTH,), layers.Embedding(WORDS, 4, mask_zero=True), *parts)


def transformer():
    words = keras.Input((LENGTH,))
    embedding = layers.Embedding(WORDS, 4, mask_zero=True)
    query, x = embedding(words), embedding(words)  # Attention takes the mask from its query.
    attended = layers.MultiHeadAttention(2, 3)(query, query)
    # The layer, unlike the operator +, keeps the mask.
    x = layers.LayerNormalization()(layers.Add()([x, attended]))
    x = layers.LayerNormalization()(layers.Add()([x, layers.Dense(4, "gelu")(x)]))
    return keras.Model(words, layers.Dense(CLASSES)(x))


def u_net(units=CLASSES, activation=None):
    image = keras.Input((4, 6, 2))
    wide = layers.Conv2D(3, 3, padding="same", activation="tanh")(image)
    deep = layers.Conv2D(4, 3, padding="same", activation="tanh")(layers.MaxPooling2D()(wide))
    joined = layers.Concatenate()([layers.UpSampling2D()(deep), wide])
    return keras.Model(image, layers.Conv2D(units, 1, activation=activation)(joined))


SEQUENCES = (LENGTH, 4)
MODELS = {
    "dense": lambda: sequential(SEQUENCES, layers.Dense(6, "tanh"), layers.Dense(CLASSES)),
    "tagger": lambda: text(layers.Dense(4, "tanh"), layers.Dense(CLASSES, "softmax")),
    "recurrent": lambda: text(
        layers.LSTM(3, return_sequences=True), layers.Dense(CLASSES, "softmax")
    ),
    "transformer": transformer,
    "u_net": u_net,
    "u_net of two classes": lambda: u_net(1, "sigmoid"),
    "labels": lambda: sequential((4,), layers.Dense(6, "tanh"), layers.Dense(3, "sigmoid")),
    "labels at positions": lambda: sequential(
        SEQUENCES, layers.Dense(6, "tanh"), layers.Dense(2, "sigmoid")
    ),
}


def case(name, count=COUNT, seed=0):
    """Returns a model, inputs, labels, and weights of positions of which some are 0."""
    keras.utils.set_random_seed(seed)
    random = np.random.default_rng(seed)
    model = MODELS[name]()
    for weight in model.trainable_variables:
        weight.assign(weight.numpy() + 0.3 * random.normal(size=weight.shape))
    shape = (count, *model.input_shape[1:])
    if isinstance(model.layers[0], layers.Embedding) or name == "transformer":
        x = random.integers(0, WORDS, shape)
        x[:, 0] = np.maximum(x[:, 0], 1)  # Else an example might have no word.
    else:
        x = random.normal(size=shape)
    positions, units = model.output_shape[1:-1], model.output_shape[-1]
    binary = model.layers[-1].activation is keras.activations.sigmoid
    if binary and units > 1:
        positions = (*positions, units)
    y = random.integers(0, 2 if binary else units, (count, *positions))
    weights = random.integers(0, 2, y.shape)
    weights.reshape(count, -1)[:, 0] = 1
    return model, x, y, weights


class Masked(layers.Layer):
    """Marks examples as padding."""

    supports_masking = True

    def call(self, x):
        return x

    def compute_mask(self, x, mask=None):
        return x[:, 0] > 0


def masked_examples():
    """Returns a classifier with a mask and one without, inputs, labels, and which ones count."""
    x, y = np.random.default_rng(0).normal(size=(6, 4)), np.arange(6) % 3
    kept = np.array([True, False, True, False, True, True])
    x[:, 0] = np.where(kept, 1.0, -1.0)
    plain = sequential((4,), layers.Dense(3))
    return sequential((4,), Masked(), *plain.layers), plain, x, y, kept


def counted(x, y, weights=None):
    """Returns which positions count: words that are not 0, of weight 1."""
    words = x != 0 if x.dtype.kind == "i" else np.ones(y.shape, bool)
    return words if weights is None else words & (weights > 0)


def position_losses(model, x, y):
    """Returns the loss at each position by name of the position: a loop over them, in float64."""
    outputs = tf.cast(model(x[np.newaxis]), tf.float64)[0]
    activation = model.layers[-1].activation
    losses = {}
    for position in np.ndindex(y.shape):
        if activation is keras.activations.sigmoid:
            p = outputs[position] if outputs.shape == y.shape else outputs[position][0]
            losses[position] = -tf.math.log(p if y[position] else 1 - p)
        elif activation is keras.activations.softmax:
            losses[position] = -tf.math.log(outputs[position][y[position]])
        else:
            losses[position] = -tf.nn.log_softmax(outputs[position])[y[position]]
    return losses


def flat(gradients):
    return np.concatenate([np.ravel(tf.convert_to_tensor(g).numpy()) for g in gradients])


def gradients(model, x, y, groups):
    """Yields the gradients of sums of the losses at some groups of positions of an example."""
    with tf.GradientTape(persistent=True) as tape:
        losses = position_losses(model, x, y)
        sums = [
            sum([losses[position] for position in positions], tf.zeros((), tf.float64))
            for positions in groups
        ]
    for loss in sums:
        weights = model.trainable_variables
        yield flat(tape.gradient(loss, weights, unconnected_gradients="zero"))


def jacobian(model, x, y, counts, unit="example"):
    """Returns J: a row for each example, or for each position that counts."""
    rows = []
    for i in range(len(x)):
        positions = [tuple(p) for p in np.argwhere(counts[i])]
        groups = [positions] if unit == "example" else [[p] for p in positions]
        rows += gradients(model, x[i], y[i], groups)
    return np.stack(rows)
