"""The gradient of a step is that of the loss that is logged, whatever the loss."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import each_value
from small_models import sparse_loss

from fisher_keras import FisherRegularizedModel

CLASSES = 3
Sparse = keras.losses.SparseCategoricalCrossentropy


class Smoothed(Sparse):
    """Smooths labels, as many users' losses do."""

    def call(self, y, outputs):
        y = keras.ops.one_hot(keras.ops.reshape(keras.ops.cast(y, "int32"), [-1]), CLASSES)
        return keras.ops.categorical_crossentropy(
            0.7 * y + 0.3 / CLASSES, outputs, from_logits=True
        )


class NextKeras(Sparse):
    """Has an argument that this Keras does not know."""

    def __init__(self, label_smoothing=0.3, **kwargs):
        super().__init__(**kwargs)
        self.label_smoothing = label_smoothing

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}

    call = Smoothed.call


class Annealed(Sparse):
    """Is Keras' loss at first, and another one after a callback has set the variable."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.power = tf.Variable(1.0, dtype="float64")

    def call(self, y, outputs):
        return super().call(y, outputs) ** tf.cast(self.power, outputs.dtype)


class Weighed(Sparse):
    """Weighs examples by their class."""

    def __call__(self, y, outputs, sample_weight=None):
        weight = tf.gather(tf.constant([1.0, 2.0, 0.5], outputs.dtype), tf.cast(y, tf.int32))
        return super().__call__(y, outputs, sample_weight=weight)


def replaced():
    """One of Keras' own objects with another function."""
    loss = Sparse(from_logits=True)
    loss.call = Smoothed(from_logits=True).call
    return loss


LOSSES = {
    "subclass": lambda: Smoothed(from_logits=True),
    "argument": lambda: NextKeras(from_logits=True),
    "annealed": lambda: Annealed(from_logits=True),
    "weighed": lambda: Weighed(from_logits=True),
    "replaced": replaced,
    "Keras' own": sparse_loss,
}


def network():
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(5, "tanh"), keras.layers.Dense(CLASSES)]
    return keras.Sequential([keras.Input((4,)), *layers])


def data(count=12):
    random = np.random.RandomState(0)
    return random.randn(count, 4), random.randint(0, CLASSES, count), random.rand(count)


def plain_gradient(loss, model, x, y, weight=None):
    with tf.GradientTape() as tape:
        value = loss(tf.constant(y), model(x), sample_weight=weight)
    return value, tape.gradient(value, model.trainable_variables)


@pytest.mark.parametrize(("shared", "name"), each_value(["auto", True, False], list(LOSSES)))
def test_it_is_the_gradient_of_the_compiled_loss(float64, name, shared):
    x, y, _ = data()
    loss = LOSSES[name]()
    model = FisherRegularizedModel(network(), beta=0, num_sub_batches=3, share_gradients=shared)
    model.compile("sgd", loss)
    for power in (1.0, 2.0) if name == "annealed" else (1.0,):
        if name == "annealed":
            loss.power.assign(power)
        expected, gradient = plain_gradient(loss, model.model, x, y)
        found, value, _ = model.regularized_gradients(x, y)
        np.testing.assert_allclose(value, expected, rtol=1e-9)
        for mine, right in zip(found, gradient, strict=True):
            np.testing.assert_allclose(mine, right, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("shared", ["auto", True])
def test_soft_labels_are_in_the_shared_gradient(float64, shared):
    """Though for hard ones the loss is that of the regularizer."""
    x, _, _ = data()
    y = np.random.default_rng(0).dirichlet(np.ones(CLASSES), len(x))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model = FisherRegularizedModel(network(), beta=0, num_sub_batches=3, share_gradients=shared)
    model.compile("sgd", loss)
    _, gradient = plain_gradient(loss, model.model, x, y)
    for mine, right in zip(model.regularized_gradients(x, y)[0], gradient, strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("shared", ["auto", True, False])
def test_metrics_are_of_the_outputs_themselves(shared):
    """The accuracy of a part of them, or of their multiples, would be the same."""
    x, y, _ = data()
    model = FisherRegularizedModel(network(), num_sub_batches=3, share_gradients=shared)
    metric = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="metric")
    model.compile("sgd", sparse_loss(), metrics=[metric])
    expected = np.mean(sparse_loss()(y, model.model(x)))
    found = model.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(found["metric"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("reduction", "weights"),
    [
        ("sum", "float32"),
        ("mean_with_sample_weight", "float32"),
        ("mean_with_sample_weight", "int32"),
        ("mean_with_sample_weight", "bool"),
    ],
)
def test_shared_gradients_need_a_mean_over_the_examples(reduction, weights):
    """The sub-batches' losses have another mean, with weights; "auto" takes L by itself."""
    x, y, weight = data()
    weight = (3 * weight).astype("int32" if weights == "bool" else weights).astype(weights)
    loss = Sparse(from_logits=True, reduction=reduction)
    model = FisherRegularizedModel(network(), num_sub_batches=3, share_gradients=True)
    model.compile("sgd", loss)
    message = rf"share_gradients=False.*Given: .*reduction={reduction!r}"
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(x, y, sample_weight=weight)
    auto = FisherRegularizedModel(network(), beta=0, num_sub_batches=3)
    auto.compile("sgd", loss)
    found, value, _ = auto.regularized_gradients(x, y, weight)
    expected, gradient = plain_gradient(loss, auto.model, x, y, weight)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for mine, right in zip(found, gradient, strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-6)


BALANCED = {
    "sparse": (Sparse, lambda y: y == 9),
    "of many classes": (Sparse, lambda y: y == 9),  # The gradient by each output is small there.
    "one-hot": (keras.losses.CategoricalCrossentropy, lambda y: y[:, -1] == 1),
    "binary": (keras.losses.BinaryCrossentropy, lambda y: y[:, 0] == 1),
}


def balanced(name):
    """A cross-entropy whose mean is weighed by the class: one of them counts five times."""
    base, counts_more = BALANCED[name]

    class Balanced(base):
        def __call__(self, y, outputs, sample_weight=None):
            weight = tf.where(counts_more(y), 5.0, 1.0)
            return tf.reduce_sum(weight * self.call(y, outputs)) / tf.reduce_sum(weight)

    return Balanced(from_logits=True)


@pytest.mark.parametrize(("name", "dtype"), each_value(list(BALANCED), ["int64", "float32"]))
def test_shared_gradients_need_a_mean_whatever_the_class(name, dtype):
    classes = {"binary": 1, "of many classes": 1000}.get(name, 10)
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(classes)])
    model = FisherRegularizedModel(net, num_sub_batches=3, share_gradients=True)
    model.compile("sgd", balanced(name))
    y = {"binary": np.arange(20)[:, np.newaxis] % 2, "one-hot": np.eye(10)[np.arange(20) % 10]}
    y = y.get(name, np.arange(20) % 10).astype(dtype)
    with pytest.raises(ValueError, match="for that of all of it, which this loss is not"):
        model.train_on_batch(np.ones((20, 4)), y)


class Masked(keras.layers.Layer):
    """Marks examples as padding, which Keras' losses leave out."""

    supports_masking = True

    def call(self, inputs):
        return inputs

    def compute_mask(self, inputs, mask=None):
        return inputs[:, 0] > 0


@pytest.mark.parametrize("shared", ["auto", False])
def test_a_mask_of_the_outputs_is_of_the_loss(float64, shared):
    x, y, _ = data()
    base = network()
    masked = keras.Sequential([*base.layers, Masked()])
    model = FisherRegularizedModel(masked, beta=0, num_sub_batches=3, share_gradients=shared)
    model.compile("sgd", sparse_loss())
    weight = base(x)[:, 0] > 0
    expected, gradient = plain_gradient(
        Sparse(from_logits=True, reduction="mean_with_sample_weight"), base, x, y, weight
    )
    found, value, _ = model.regularized_gradients(x, y)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    for mine, right in zip(found, gradient, strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-7, atol=1e-12)


class PenaltyOfEach(keras.layers.Layer):
    """Adds a penalty for each example, which Keras adds up."""

    def call(self, x):
        self.add_loss(0.01 * keras.ops.sum(x**2, axis=-1))
        return x


class ScaledByTensor(keras.optimizers.SGD):
    """Scales losses by what it reads off the loss, as an optimizer of one's own may."""

    def scale_loss(self, loss):
        return loss * tf.cast(4.0, loss.dtype)

    def apply(self, gradients, variables=None):
        return super().apply([gradient / 4 for gradient in gradients], variables)


def trained(layers, labels, optimizer=keras.optimizers.SGD, wrap=lambda model: model):
    """Returns the logged loss and the weights after two steps of one batch."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), *layers()])
    trainer = wrap(model)
    trainer.compile(optimizer(0.1), Sparse(from_logits=True))
    x = np.random.default_rng(0).normal(size=(len(labels), 4)).astype(np.float32)
    losses = trainer.fit(x, labels, batch_size=len(labels), epochs=2, verbose=0).history["loss"]
    return losses, np.concatenate([w.numpy().ravel() for w in model.weights])


def unregularized(model):
    """A step of one sub-batch without R, which is Keras' own."""
    return FisherRegularizedModel(
        model, beta=0.0, num_sub_batches=1, clip_norm=None, share_gradients=True
    )


@pytest.mark.parametrize(
    ("layers", "labels", "optimizer"),
    [
        (lambda: [PenaltyOfEach(), keras.layers.Dense(3)], "int32", keras.optimizers.SGD),
        # Fewer labels than outputs: int8 has none above 127.
        (lambda: [keras.layers.Dense(200)], "int8", keras.optimizers.SGD),
        (lambda: [keras.layers.Dense(3)], "int32", ScaledByTensor),
    ],
)
def test_a_step_without_the_regularizer_is_that_of_keras(layers, labels, optimizer):
    labels = (np.arange(12) % 3).astype(labels)
    losses, weights = trained(layers, labels)
    ours, found = trained(layers, labels, optimizer, unregularized)
    np.testing.assert_allclose(ours, losses, rtol=1e-6)
    np.testing.assert_allclose(found, weights, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shared", [True, False, "auto"])
def test_without_the_regularizer_only_gradients_of_sub_batches_are_clipped(shared):
    def wrap(model):
        return FisherRegularizedModel(
            model, beta=0.0, num_sub_batches=2, clip_norm=1e-6, share_gradients=shared
        )

    plain, found = (
        trained(lambda: [keras.layers.Dense(3)], np.arange(12) % 3, wrap=way)[1]
        for way in (lambda model: model, wrap)
    )
    assert np.allclose(found, plain, rtol=1e-5, atol=1e-7) == (shared is not True)


@pytest.mark.parametrize("shared", [True, False])
def test_a_scaled_loss_has_the_same_step(shared):
    def wrap(model):
        return FisherRegularizedModel(
            model, beta=100.0, num_sub_batches=2, clip_norm=None, share_gradients=shared, seed=1
        )

    def scaled(rate):
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(rate), initial_scale=64.0)

    plain, found = (
        trained(lambda: [keras.layers.Dense(3)], np.arange(12) % 3, optimizer, wrap)[1]
        for optimizer in (keras.optimizers.SGD, scaled)
    )
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)
