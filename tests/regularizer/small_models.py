"""Small classifiers and their data, shared by the tests of training methods."""

import keras
import numpy as np
import tensorflow as tf
from closed_forms import NUM_CLASSES, NUM_FEATURES

from fisher_keras import FisherRegularizedModel
from fisher_keras.regularizer.sub_batches import split_batch

# Keras holds it in float32: a power of two is exact there, too.
L2 = 2.0**-7


def sparse_loss(**kwargs):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **kwargs)


def smoothed_loss():
    return keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)


def images(count=12, seed=0):
    random = np.random.RandomState(seed)
    return random.randn(count, 6, 6, 2), random.randint(0, NUM_CLASSES, count)


def conv_net(dropout=0.0, batch_norm=True, l2=0.0, activation=None):
    """A small network with all that moves besides weights: moving statistics and a seed."""
    keras.utils.set_random_seed(7)
    penalty = keras.regularizers.L2(l2) if l2 else None
    layers = [
        keras.Input((6, 6, 2)),
        keras.layers.Conv2D(4, 3, kernel_regularizer=penalty),
        keras.layers.BatchNormalization() if batch_norm else keras.layers.Identity(),
        keras.layers.Activation("tanh"),
        keras.layers.Dropout(dropout, seed=5),
        keras.layers.Flatten(),
        keras.layers.Dense(NUM_CLASSES, activation, kernel_regularizer=penalty),
    ]
    return keras.Sequential(layers)


def softmax_regression_model():
    """The classifier of closed_forms.py."""
    return keras.Sequential([keras.Input((NUM_FEATURES,)), keras.layers.Dense(NUM_CLASSES)])


def dense_net(dropout=0.4):
    """As much as `conv_net` has besides weights; XLA compiles it in a fraction of the time."""
    keras.utils.set_random_seed(7)
    layers = [
        keras.Input((6, 6, 2)),
        keras.layers.Flatten(),
        keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(L2)),
        keras.layers.BatchNormalization(),
        keras.layers.Activation("tanh"),
        keras.layers.Dropout(dropout, seed=5),
        keras.layers.Dense(NUM_CLASSES, kernel_regularizer=keras.regularizers.L2(L2)),
    ]
    return keras.Sequential(layers)


def compiled(
    model,
    loss=None,
    optimizer=None,
    compile_kwargs=None,
    method=FisherRegularizedModel,
    **kwargs,
):
    if method is FisherRegularizedModel:
        kwargs.setdefault("seed", 11)
    wrapped = method(model, **kwargs)
    optimizer = optimizer or keras.optimizers.SGD(0.1, momentum=0.9)
    wrapped.compile(optimizer, loss or sparse_loss(), **(compile_kwargs or {}))
    return wrapped


def weights_of(model):
    return [v.numpy() for v in model.trainable_variables]


def state_of(model):
    return [v.numpy() for v in model.non_trainable_variables]


def assert_equal(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_close(first, second, rtol=1e-9, atol=1e-12):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def sub_batches_of(model, batch_size):
    """The sets of examples that a model's next step splits a batch into."""
    seed = tf.constant([model.seed, int(model.optimizer.iterations)], tf.int64)
    return parts_of(batch_size, model.num_sub_batches, seed)


def parts_of(batch_size, num_sub_batches, seed):
    split = split_batch(tf.constant(batch_size), num_sub_batches, seed)
    sizes = [int(split.size) + (i < int(split.remainder)) for i in range(int(split.count))]
    return np.split(split.permutation.numpy(), np.cumsum(sizes)[:-1])


def frozen_net():
    model = conv_net(dropout=0.4, l2=L2)
    model.layers[1].trainable = False
    return model


def shared_layer_net():
    keras.utils.set_random_seed(7)
    inputs = keras.Input((6, 6, 2))
    conv, norm = keras.layers.Conv2D(2, 3, padding="same"), keras.layers.BatchNormalization()
    x = norm(conv(inputs))
    x = keras.layers.Dropout(0.2, seed=1)(norm(conv(keras.layers.ReLU()(x))))
    return keras.Model(inputs, keras.layers.Dense(NUM_CLASSES)(keras.layers.Flatten()(x)))


def nested_net():
    inner = conv_net(dropout=0.4)
    inputs = keras.Input((6, 6, 2))
    return keras.Model(inputs, keras.layers.Dense(NUM_CLASSES)(inner(inputs)))


NETWORKS = {
    "dropout and batch norm": lambda: conv_net(dropout=0.4),
    "penalties": lambda: conv_net(dropout=0.4, l2=L2),
    "frozen": frozen_net,
    "shared layers": shared_layer_net,
    "nested": nested_net,
}


class Subclassed(keras.Model):
    """Tells nothing about its last activation, and builds its layers when it is first called."""

    def __init__(self, softmax=False, **kwargs):
        super().__init__(**kwargs)
        self.softmax = softmax
        self.hidden = keras.layers.Dense(8, "tanh")
        self.dropout = keras.layers.Dropout(0.3, seed=2)
        self.head = keras.layers.Dense(NUM_CLASSES)

    def call(self, inputs, training=None):
        x = self.head(self.dropout(self.hidden(inputs), training=training))
        return keras.ops.softmax(x) if self.softmax else x

    def get_config(self):
        return {"softmax": self.softmax, "name": self.name}
