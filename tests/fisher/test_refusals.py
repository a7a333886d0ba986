"""Models whose examples or weights are not where one would look: right, or refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from marks import each_value
from slow_jacobian import images, jacobian, shake, xi

from fisher_keras.classifier import Classifier
from fisher_keras.fisher import loss_gradient_gram
from fisher_keras.metrics import hessian, robustness


class Calls(keras.Model):
    """A network of two layers, the first of which is called in a way of its own."""

    def __init__(self, how):
        super().__init__()
        self.inner = layers.Dense(4, "tanh")
        self.inner.build((None, 4))
        self.head = layers.Dense(3)
        self.how = how

    def call(self, x):
        return self.head(self.how(self.inner, x))


def ready(model, x):
    model(x[:1])
    return shake(model)


def directly(layer, x):
    return layer(x)


def rematerialized(layer, x):
    return keras.remat(layer.call)(x)


def recomputed(layer, x):
    return tf.recompute_grad(layer.call)(x)


def in_a_function(layer, x):
    return tf.function(layer.call)(x)


def in_a_branch(layer, x):
    return tf.cond(tf.shape(x)[0] > 0, lambda: layer(x), lambda: tf.zeros([tf.shape(x)[0], 4]))


def in_a_loop(layer, x):
    condition, body = lambda i, h: i < 2, lambda i, h: (i + 1, layer(h))
    return tf.while_loop(condition, body, (0, x))[1]


def partly_recomputed(layer, x):
    return layer(x) + tf.recompute_grad(layer.call)(2 * x)


def example_by_example(layer, x):
    return tf.map_fn(lambda row: layer(row[tf.newaxis])[0], x)


def with_a_custom_gradient(layer, x):
    @tf.custom_gradient
    def twice_as_steep(x):
        return x, lambda upstream: 2 * upstream

    return layer(twice_as_steep(layer(x)))


WAYS = {
    way.__name__: way
    for way in (
        rematerialized,
        recomputed,
        in_a_function,
        in_a_branch,
        in_a_loop,
        partly_recomputed,
        example_by_example,
        with_a_custom_gradient,
    )
}


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_ways_to_call_a_layer(how):
    x, y = images(5, (4,))
    model = ready(Calls(how), x)
    j = jacobian(model, x, y)
    np.testing.assert_allclose(xi(loss_gradient_gram(model, x, y)), j @ j.T, rtol=1e-4, atol=1e-6)
    assert np.isfinite(model.predict(x, verbose=0)).all()


class FunctionModel(Calls):
    @tf.function
    def call(self, x):
        return super().call(x)


def test_a_model_that_is_a_function_still_trains():
    x, y = images(5, (4,))
    plain, model = Calls(directly), FunctionModel(directly)
    j = jacobian(ready(plain, x), x, y)
    model(x[:3])  # For this number, it keeps the trace that Keras made to build it.
    model.set_weights(plain.get_weights())
    np.testing.assert_allclose(xi(loss_gradient_gram(model, x, y)), j @ j.T, rtol=1e-4, atol=1e-6)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = np.array(model.inner.kernel.value)
    model.fit(x, y, verbose=0)
    assert not np.allclose(before, model.inner.kernel.value)


def test_a_saved_model_as_a_layer(tmp_path):
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, "tanh")])
    inner.export(str(tmp_path), verbose=False)
    x, y = images(5, (4,))
    model = keras.Sequential(
        [keras.Input((4,)), layers.TFSMLayer(str(tmp_path), call_endpoint="serve")]
    )
    model.add(layers.Dense(3))
    j = jacobian(model, x, y)
    np.testing.assert_allclose(xi(loss_gradient_gram(model, x, y)), j @ j.T, rtol=1e-4, atol=1e-6)


class TimeMajor(keras.Model):
    """Has positions on the leading axis where it multiplies."""

    def __init__(self, flat):
        super().__init__()
        self.inner = layers.Dense(4, use_bias=False)
        self.head = layers.Dense(3)
        self.flat = flat

    def call(self, x):
        h = tf.transpose(x, [1, 0, 2])
        shape = tf.shape(h)
        h = self.inner(tf.reshape(h, [-1, h.shape[-1]]) if self.flat else h)
        h = tf.reshape(h, [shape[0], shape[1], 4])
        return self.head(tf.reduce_mean(tf.tanh(h), axis=0))


def sequences(count):
    return images(count, (6, 5))


@pytest.mark.parametrize(
    ("flat", "first"),
    each_value([False, True], ["fewer", "zeros", "zero head", "equal rows", "none"]),
)
def test_positions_in_front_whatever_was_first(flat, first):
    x, y = sequences(6)
    model = ready(TimeMajor(flat), x)
    classifier = Classifier(model)
    head = model.head.get_weights()
    if first == "fewer":
        loss_gradient_gram(classifier, *sequences(5))
    elif first == "zeros":
        loss_gradient_gram(classifier, 0 * x, y)
    elif first == "zero head":
        model.head.set_weights([0 * w for w in head])
        loss_gradient_gram(classifier, x, y)
        model.head.set_weights(head)
    elif first == "equal rows":
        loss_gradient_gram(classifier, np.ones_like(x), y)
    j = jacobian(model, x, y)
    for chunk_size in (None, 3, 4):
        found = loss_gradient_gram(classifier, x, y, chunk_size=chunk_size)
        np.testing.assert_allclose(xi(found), j @ j.T, rtol=1e-4, atol=1e-6)


class Stacked(layers.Layer):
    """Flattens examples and positions into one axis for several operations."""

    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Dense(5, "relu"), layers.Dense(4)

    def call(self, x):
        rows = tf.reshape(x, [-1, x.shape[-1]])
        return tf.reshape(self.second(self.first(rows)), [-1, x.shape[1] * 4])


def test_examples_and_positions_on_one_axis():
    x, y = sequences(6)
    model = shake(keras.Sequential([keras.Input((6, 5)), Stacked(), layers.Dense(3)]))
    j = jacobian(model, x, y)
    np.testing.assert_allclose(xi(loss_gradient_gram(model, x, y)), j @ j.T, rtol=1e-4, atol=1e-6)


def sorted_and_back(layer, x):
    order = tf.argsort(x[:, 0])
    return tf.gather(layer(tf.gather(x, order)), tf.argsort(order))


def sorted_in_a_function(layer, x):
    return tf.function(lambda x: sorted_and_back(layer, x))(x)


def sorted_outside(layer, x):
    """The rows that the layer takes come out of a function."""
    order = tf.argsort(x[:, 0])
    h = layer(tf.ensure_shape(tf.function(tf.gather)(x, order), x.shape))
    return tf.ensure_shape(tf.function(tf.gather)(h, tf.argsort(order)), h.shape)


def scattered(layer, x):
    order = tf.argsort(x[:, 0])
    h = layer(tf.gather_nd(x, order[:, tf.newaxis]))
    return tf.scatter_nd(order[:, tf.newaxis], h, tf.shape(h))


def partitioned(layer, x):
    parts = tf.cast(x[:, 0] > 0, tf.int32)
    rows = tf.dynamic_partition(tf.range(tf.shape(x)[0]), parts, 2)
    found = tf.dynamic_stitch(rows, [layer(tf.gather(x, r)) for r in rows])
    return tf.ensure_shape(found, [x.shape[0], 4])


SORTING = [sorted_and_back, sorted_in_a_function, sorted_outside, scattered, partitioned]


@pytest.mark.parametrize("how", SORTING)
def test_an_order_that_the_first_examples_do_not_tell(how):
    """They are sorted already, so that a layer that sorts them leaves them where they are."""
    x, y = images(6, (4,))
    model = ready(Calls(how), x)
    classifier = Classifier(model)
    loss_gradient_gram(classifier, x[np.argsort(x[:, 0])], y)
    j = jacobian(model, x, y)
    for chunk_size in (None, 2):
        found = loss_gradient_gram(classifier, x, y, chunk_size=chunk_size)
        np.testing.assert_allclose(xi(found), j @ j.T, rtol=1e-4, atol=1e-6)


def mixed_in_a_branch(layer, x):
    """Examples interact if one is large."""
    h = layer(x)
    return tf.cond(tf.reduce_max(x) > 5, lambda: h + 0.1 * tf.roll(h, 1, axis=0), lambda: h)


def mixed_by_value(layer, x):
    """Only examples that are large are shifted."""
    h = layer(x)
    return tf.where(x[:, :1] > 5, tf.roll(h, 1, axis=0), h)


@pytest.mark.parametrize("how", [mixed_in_a_branch, mixed_by_value])
def test_an_interaction_that_the_first_examples_do_not_tell(how):
    x, y = images(6, (4,))
    classifier = Classifier(ready(Calls(how), x))
    loss_gradient_gram(classifier, x, y)
    x[4, 0] = 6
    with pytest.raises(ValueError, match="interact"):
        loss_gradient_gram(classifier, x, y)


def fused(layer, x):
    ones = tf.ones([4])
    images = layer(x)[:, tf.newaxis, tf.newaxis]
    return tf.compat.v1.nn.fused_batch_norm(images, ones, ones, is_training=True)[0][:, 0, 0]


def rolled(layer, x):
    h = layer(x)
    return h + 0.3 * tf.roll(h, 1, axis=0)


# All examples enter one number, which the graph shows.
REDUCTIONS = {
    "mean": lambda layer, x: layer(x) - tf.reduce_mean(layer(x), axis=0),
    "inputs normalized": lambda layer, x: layer(x / tf.norm(x, axis=0)),
    "fused batch norm": fused,
    "attention to each other": lambda layer, x: tf.nn.softmax(x @ tf.transpose(x)) @ layer(x),
}
# Values show it, as long as outputs differ.
OTHER_INTERACTIONS = {
    "without a derivative": lambda layer, x: layer(x) - tf.stop_gradient(tf.reduce_mean(x)),
    "softmax over examples": lambda layer, x: tf.nn.softmax(layer(x), axis=0),
    "neighbour": rolled,
    "sorted": lambda layer, x: layer(tf.sort(x, axis=0)),
    "sum of those before": lambda layer, x: layer(tf.cumsum(x)),
    "sum of those behind": lambda layer, x: layer(tf.cumsum(x, reverse=True)),
}


def refused(model, x, y):
    with pytest.raises(ValueError, match=r"interact in the model .*\(training=True\)"):
        loss_gradient_gram(model, x, y)
    assert model.predict(x, verbose=0).shape == (5, 3)


@pytest.mark.parametrize(
    "how", (REDUCTIONS | OTHER_INTERACTIONS).values(), ids=[*REDUCTIONS, *OTHER_INTERACTIONS]
)
def test_examples_that_interact_are_refused(how):
    x, y = images(5, (4,))
    refused(ready(Calls(how), x), x, y)


OTHERS = OTHER_INTERACTIONS | {
    "rank": lambda layer, x: layer(x) + tf.cast(tf.argsort(x[:, :1], axis=0), x.dtype),
}


@pytest.mark.parametrize("how", OTHERS.values(), ids=OTHERS)
def test_robustness_is_that_of_each_example(how):
    x, _ = images(5, (4,))
    model = ready(Calls(how), x)
    with pytest.raises(ValueError, match="interact in the model"):
        robustness(model, x)


@pytest.mark.parametrize("how", REDUCTIONS.values(), ids=REDUCTIONS)
def test_interaction_shows_where_all_outputs_are_zero(how):
    x, y = images(5, (4,))
    model = ready(Calls(how), x)
    model.head.set_weights([0 * w for w in model.head.get_weights()])
    refused(model, x, y)


class MomentsOfTheBatch(keras.Model):
    """Normalizes by the moments of the batch in inference mode, too."""

    def __init__(self):
        super().__init__()
        self.inner, self.bn, self.head = (
            layers.Dense(4),
            layers.BatchNormalization(),
            layers.Dense(3),
        )

    def call(self, x):
        return self.head(self.bn(self.inner(x), training=True))


def test_moments_of_the_batch_in_inference_mode():
    """These gradients are those of a batch, and nothing moves."""
    x, y = images(5, (4,))
    model = ready(MomentsOfTheBatch(), x)
    refused(model, x, y)
    before = [np.array(v.value) for v in model.variables]
    found = loss_gradient_gram(model, x, y, training=True)
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v.value, value)
    j = jacobian(model, x, y, batches=[range(5)])
    np.testing.assert_allclose(xi(found), j @ j.T, rtol=1e-3, atol=1e-5)


GENERATOR = tf.random.Generator.from_seed(1)
RANDOM = {
    "dropout": lambda: layers.Dropout(0.5),
    "noise": lambda: layers.GaussianNoise(1.0),
    "flips": lambda: keras.Sequential(
        [layers.Reshape((2, 2, 1)), layers.RandomFlip(), layers.Flatten()]
    ),
    "seed of all layers": lambda: layers.Lambda(lambda x: x + keras.random.normal([4])),
    "of TensorFlow": lambda: layers.Lambda(lambda x: tf.nn.dropout(x, 0.5)),
    "generator": lambda: layers.Lambda(lambda x: x + GENERATOR.normal([4])),
    "function": lambda: layers.Lambda(tf.function(lambda x: x + tf.random.normal([4]))),
    "branch": lambda: layers.Lambda(
        lambda x: tf.cond(x[0, 0] > 9, lambda: x, lambda: tf.random.shuffle(x))
    ),
}


class Random(keras.Model):
    """Draws in inference mode, too."""

    def __init__(self, layer):
        super().__init__()
        self.noisy, self.head = layer, layers.Dense(3)

    def call(self, x):
        if isinstance(self.noisy, layers.Lambda):
            return self.head(self.noisy(x))
        return self.head(self.noisy(x, training=True))


@pytest.mark.parametrize(
    ("metric", "make"), each_value(["gram", "logits", "hessian", "robustness"], RANDOM)
)
def test_random_numbers_in_inference_mode(make, metric):
    """A metric would have one draw of them, whichever that is."""
    x, y = images(5, (4,))
    model = ready(Random(make()), x)
    model.noisy.name = "noisy"
    compute = {
        "gram": lambda: loss_gradient_gram(model, x, y, chunk_size=2),
        "logits": lambda: Classifier(model).logits(x),
        "hessian": lambda: hessian(model, x, y),
        "robustness": lambda: robustness(model, x),
    }[metric]
    with pytest.raises(ValueError, match=r"random numbers in inference mode.* Given: layer"):
        compute()


def test_random_numbers_in_training_mode_alone():
    x, y = images(5, (4,))
    model = shake(keras.Sequential([keras.Input((4,)), layers.Dropout(0.5), layers.Dense(3)]))
    j = jacobian(model, x, y)
    np.testing.assert_allclose(xi(loss_gradient_gram(model, x, y)), j @ j.T, rtol=1e-4, atol=1e-6)


class Counting(keras.Model):
    """Moves a state that Keras does not know of."""

    def __init__(self, move):
        super().__init__()
        self.head, self.move = layers.Dense(3), move
        self.count = tf.Variable(1.0, trainable=False)
        self.seen = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)

    def call(self, x):
        self.move(self, x)
        return self.head(x)


STATES = {
    "variable": lambda model, x: model.count.assign_add(1.0),
    "branch": lambda model, x: tf.cond(
        tf.shape(x)[0] > 0, lambda: model.count.assign_add(1.0), lambda: model.count + 0.0
    ),
    "table": lambda model, x: model.seen.insert(tf.constant([1], tf.int64), x[:1, 0]),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("move", STATES.values(), ids=STATES)
def test_a_state_that_keras_does_not_know_of(move, training):
    x, y = images(5, (4,))
    model = ready(Counting(move), x)
    before = model.count.numpy(), model.seen.size().numpy()
    model.seen.remove(tf.constant([1], tf.int64))
    with pytest.raises(ValueError, match=r"must not change a model.* Given: layer 'counting"):
        loss_gradient_gram(model, x, y, training=training)
    assert model.count.numpy() == before[0]
    assert model.seen.size() == 0


def test_a_map_that_fails_when_it_runs():
    """Vectorized, the numbers of words of the examples would have to be the same."""
    words = np.array([["one two three"], ["three"], ["two two"], ["one one four four"]])
    vectorization = layers.TextVectorization(vocabulary=["one", "two", "three", "four"])
    embedding = layers.Embedding(6, 4, mask_zero=True)
    last = [layers.GlobalAveragePooling1D(), layers.Dense(3)]
    inputs = keras.Input((1,), dtype="string")
    model = keras.Sequential([inputs, vectorization, embedding, *last])
    x, y = tf.constant(words), np.array([0, 1, 2, 0])
    shake(model)
    numbers = vectorization(x)
    same = keras.Sequential([keras.Input((4,), dtype="int64"), *model.layers[1:]])
    expected = loss_gradient_gram(same, numbers, y)
    np.testing.assert_allclose(xi(loss_gradient_gram(model, x, y)), xi(expected), rtol=1e-4)
