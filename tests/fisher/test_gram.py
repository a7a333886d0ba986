"""The Gram matrix of loss gradients against one slow backward pass an example."""

import contextlib
import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from marks import nightly, of_products
from slow_jacobian import IMAGES, images, jacobian, shake, xi

from fisher_keras.classifier import Classifier
from fisher_keras.fisher import gram, loss_gradient_gram, verification
from fisher_keras.fisher.gram_function import GramFunction
from fisher_keras.fisher.per_example import TracedBatch
from fisher_keras.fisher.rules import RULES, WeightUse
from fisher_keras.models import build_model


def network(*middle, ends_in=()):
    ends = [layers.Flatten(), layers.Dense(3), *ends_in]
    return shake(keras.Sequential([keras.Input(IMAGES), *middle, *ends]))


@keras.saving.register_keras_serializable("tests")
class Own(layers.Layer):
    """An operation of one's own on the inputs and a weight."""

    def __init__(self, operation, weight_shape):
        super().__init__()
        self._operation = operation
        self.weight = self.add_weight(shape=weight_shape)

    def call(self, x):
        return self._operation(x, self.weight.value)


@keras.saving.register_keras_serializable("tests")
class SelfAttention(layers.Layer):
    def __init__(self, attention):
        super().__init__()
        self._attention = attention

    def call(self, x):
        return self._attention(x, x)


@keras.saving.register_keras_serializable("tests")
class LearnedQueries(layers.Layer):
    """Has a weight that is repeated for the examples before other weights meet it."""

    def __init__(self):
        super().__init__()
        self.queries = self.add_weight(shape=(1, 4, 16))
        self.attention = layers.MultiHeadAttention(2, 3)

    def call(self, x):
        queries = tf.repeat(self.queries.value, tf.shape(x)[0], axis=0)
        return self.attention(queries, x)


KERNEL = (3, 2, IMAGES[-1], 5)
STRUCTURED = {
    "dense": lambda: [layers.Flatten(), layers.Dense(6, "tanh")],
    "dense on sequences": lambda: [layers.Reshape((16, 16)), layers.Dense(6, "gelu")],
    "convolution": lambda: [layers.Conv2D(5, 3, padding="same", activation="relu")],
    "valid": lambda: [layers.Conv2D(5, (3, 2), padding="valid", use_bias=False)],
    "strided": lambda: [layers.Conv2D(5, 3, strides=2, padding="same")],
    "strided, one axis": lambda: [layers.Conv2D(5, (1, 3), strides=(2, 1), padding="valid")],
    "even kernel": lambda: [layers.Conv2D(5, (4, 2), padding="same")],
    "explicit padding": lambda: [
        Own(lambda x, w: tf.tanh(tf.nn.conv2d(x, w, 1, [[0, 0], [2, 1], [0, 1], [0, 0]])), KERNEL)
    ],
    "standardized kernel": lambda: [
        Own(lambda x, w: tf.tanh(tf.nn.conv2d(x, w - tf.reduce_mean(w, 0), 1, "SAME")), KERNEL)
    ],
    "pointwise": lambda: [layers.Conv2D(5, 1)],
    "depthwise": lambda: [layers.DepthwiseConv2D((3, 2), depth_multiplier=2, padding="same")],
    "depthwise, strided": lambda: [layers.DepthwiseConv2D(3, strides=2, padding="same")],
    "separable": lambda: [layers.SeparableConv2D(5, 3, strides=2, padding="valid")],
    "1D": lambda: [layers.Reshape((16, 16)), layers.Conv1D(5, 3, strides=2, padding="same")],
    "batch norm": lambda: [layers.BatchNormalization(), layers.ReLU()],
    "batch norm, no scale": lambda: [layers.BatchNormalization(scale=False), layers.ReLU()],
    "matmul, transposed": lambda: [
        layers.Reshape((4, 4, 16)),
        Own(lambda x, w: tf.tanh(tf.matmul(x, w, transpose_b=True)), (5, 16)),
    ],
    "einsum": lambda: [
        layers.Reshape((16, 16)),
        layers.EinsumDense("abc,cde->abde", (16, 2, 3), "tanh", bias_axes="de"),
    ],
    "attention": lambda: [
        layers.Reshape((16, 16)),
        SelfAttention(layers.MultiHeadAttention(2, 3)),
    ],
    "grouped attention": lambda: [
        layers.Reshape((16, 16)),
        SelfAttention(layers.GroupQueryAttention(3, 4, 2)),
    ],
}
OTHERS = {
    # Without a GPU, TensorFlow makes positions of one example into several examples.
    "dilated": lambda: [layers.Conv2D(5, 3, dilation_rate=2, padding="same")],
    "depthwise, dilated": lambda: [layers.DepthwiseConv2D(3, dilation_rate=2)],
    "grouped": lambda: [layers.Conv2D(6, 3, groups=2, padding="same")],
    "transposed": lambda: [layers.Conv2DTranspose(3, 3, strides=2)],
    "layer norm": lambda: [layers.LayerNormalization()],
    "group norm": lambda: [layers.GroupNormalization(2)],
    "dropout": lambda: [layers.Dropout(0.5), layers.Conv2D(3, 3)],
    "attention and an operation without a rule": lambda: [
        layers.Reshape((16, 16)),
        SelfAttention(layers.MultiHeadAttention(2, 3)),
        Own(tf.maximum, (16, 16)),
    ],
    "attention with queries of its own": lambda: [
        layers.Reshape((16, 16)),
        LearnedQueries(),
    ],
    "positions that are projected": lambda: [
        layers.Reshape((16, 16)),
        Own(lambda x, w: tf.tanh(x + tf.matmul(w[:, :16], w[0, 16:])), (1, 32, 16)),
    ],
}
EINSUMS = {
    "abc,cde->abde": (3, 2, 2),
    "abc,bcd->abd": (4, 3, 2),
    "abc,cd->ad": (3, 2),
    "cd,abc->abd": (3, 2),
}
EINSUMS_WITHOUT_RULE = {
    "abc,cde->abd": (3, 2, 2),
    "abc,cc->ab": (3, 3),
    "abc,cd->bad": (3, 2),
    "...c,cd->...d": (3, 2),
}


# Of each rule one, whose fallback is traced each time; the others' is nightly.
WITH_FALLBACK = ("dense on sequences", "strided", "depthwise", "batch norm", "attention")


@pytest.fixture(scope="module")
def case(request):
    """A network with the layers of that name, traced, with its examples and their Gram matrix."""
    classifier = Classifier(network(*(STRUCTURED | OTHERS)[request.param]()))
    x, y = images()
    with one_by_one() as weights:
        found = loss_gradient_gram(classifier, x, y)
    assert not (weights and request.param in STRUCTURED)
    return classifier, x, y, found


@contextlib.contextmanager
def one_by_one():
    """Gives the list of the weights whose gradients are taken example by example."""
    weights, original = [], TracedBatch.by_vectorized_map
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            TracedBatch,
            "by_vectorized_map",
            lambda self, indices: weights.extend(indices) or original(self, indices),
        )
        yield weights


@pytest.mark.parametrize("case", [*STRUCTURED, *OTHERS], indirect=True)
def test_gram_is_that_of_the_slow_jacobian(case):
    classifier, x, y, found = case
    j = jacobian(classifier.model, x, y)
    np.testing.assert_allclose(xi(found), j @ j.T, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("case", STRUCTURED, indirect=True)
def test_these_layers_need_no_fallback(case):
    assert not case[0].cached(GramFunction, False).fallback_weights


@pytest.mark.parametrize(
    "case",
    [name if name in WITH_FALLBACK else nightly(name) for name in STRUCTURED],
    indirect=True,
)
def test_structured_gradients_agree_with_the_fallback(case):
    classifier, x, y, structured = case
    other = Classifier(classifier.model)
    other.cached(GramFunction, False).take_fallback(range(len(other.model.trainable_variables)))
    found = loss_gradient_gram(other, x, y)
    np.testing.assert_allclose(xi(structured), xi(found), rtol=1e-4, atol=1e-6)


def einsum(equation, x, weight):
    """The operation, whichever of its factors is the weight."""
    return tf.einsum(equation, *((x, weight) if equation[0] in "a." else (weight, x)))


@pytest.mark.parametrize("equation", ["abc,bcd->abd", "cd,abc->abd", *EINSUMS_WITHOUT_RULE])
def test_einsum(equation):
    def operation(x, weight):
        y = tf.tanh(einsum(equation, x, weight))
        return tf.transpose(y, [1, 0, 2]) if equation.endswith("->bad") else y

    shape = (EINSUMS | EINSUMS_WITHOUT_RULE)[equation]
    model = keras.Sequential(
        [keras.Input((4, 3)), Own(operation, shape), layers.Flatten(), layers.Dense(3)]
    )
    x, y = images(5, (4, 3))
    j = jacobian(shake(model), x, y)
    np.testing.assert_allclose(xi(loss_gradient_gram(model, x, y)), j @ j.T, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("equation", [*EINSUMS, *EINSUMS_WITHOUT_RULE])
def test_rule_for_einsum(equation):
    """Of a linear operation, a weight's gradient holds its values at the unit weights."""
    generator = np.random.default_rng(0)
    shape = (EINSUMS | EINSUMS_WITHOUT_RULE)[equation]
    x, weight = generator.normal(size=(5, 4, 3)), generator.normal(size=shape)
    delta = generator.normal(size=einsum(equation, x, weight).shape)
    with tf.Graph().as_default():
        op = einsum(equation, tf.constant(x), tf.constant(weight)).op
        use = WeightUse(
            op, 1 if equation[0] in "a." else 0, {tensor.ref() for tensor in op.inputs}
        )
        found = RULES["Einsum"](use, tf.constant(delta), 5)
        assert (found is None) == (equation in EINSUMS_WITHOUT_RULE)
        if found is None:
            return
        with tf.compat.v1.Session() as session:
            found = session.run(found.explicit())
    for place in np.ndindex(shape):
        unit = np.zeros(shape)
        unit[place] = 1
        expected = einsum(equation, x, unit).numpy() * delta
        expected = np.sum(expected, axis=tuple(range(1, delta.ndim)))
        np.testing.assert_allclose(found[:, *place], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("arch", ["cnn", "resnet", nightly("wide_resnet"), "densenet"])
def test_the_networks_need_no_fallback(arch):
    sizes = {
        "cnn": {"width": 0.1},
        "resnet": {"depth": 8, "width": 4},
        "wide_resnet": {"depth": 10, "width": 1},
        "densenet": {"depth": 10, "width": 4},
    }
    model = shake(build_model(arch, 10, (16, 16, 3), **sizes[arch]))
    x, y = images(6, (16, 16, 3), 10)
    j = jacobian(model, x, y)
    with one_by_one() as weights:
        found = xi(loss_gradient_gram(model, x, y))
    np.testing.assert_allclose(found, j @ j.T, rtol=1e-3, atol=1e-5 * np.max(j @ j.T))
    assert not weights


@pytest.mark.parametrize("vocabulary", [11, 200])  # Fewer and more than the examples' 35 tokens.
def test_text_with_embedding_and_attention(vocabulary):
    inputs = keras.Input((7,), dtype="int32")
    h = layers.Embedding(vocabulary, 6)(inputs)
    h = h + layers.MultiHeadAttention(2, 3)(h, h)
    h = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(h))
    model = shake(keras.Model(inputs, layers.Dense(3)(h)))
    generator = np.random.default_rng(0)
    x = generator.integers(0, vocabulary, (5, 7)).astype(np.int32)
    x[:, 1] = x[:, 0]  # A token that comes again in its sentence.
    y = generator.integers(0, 3, 5)
    j = jacobian(model, x, y)
    np.testing.assert_allclose(xi(loss_gradient_gram(model, x, y)), j @ j.T, rtol=2e-4, atol=1e-5)


def test_a_table_of_which_each_example_looks_up_rows_and_columns():
    """Twice, so that the gradients of the two are added up as tables."""
    inputs = keras.Input((2, 3), dtype="int32")
    table = layers.Embedding(7, 4)
    h = table(inputs) * keras.ops.tanh(table(6 - inputs))
    model = shake(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(h))))
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 7, (5, 2, 3)), generator.integers(0, 3, 5)
    j = jacobian(model, x, y)
    with one_by_one() as weights:
        found = xi(loss_gradient_gram(model, x, y))
    np.testing.assert_allclose(found, j @ j.T, rtol=2e-4, atol=1e-5)
    assert not weights


def test_shared_layers_add_up():
    shared = layers.Conv2D(4, 3, padding="same", activation="tanh")
    model = network(shared, layers.BatchNormalization(), shared)
    x, y = images()
    j = jacobian(model, x, y)
    np.testing.assert_allclose(xi(loss_gradient_gram(model, x, y)), j @ j.T, rtol=2e-4, atol=1e-5)


def saturated(scale):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4)])
    generator = np.random.default_rng(0)
    weights = [generator.normal(size=(6, 4)) * scale, np.zeros(4)]
    model.set_weights(weights)
    x = generator.normal(size=(3, 6)).astype(np.float32)
    logits = x.astype(np.float64) @ weights[0].astype(np.float32)
    return model, x, logits, np.argmax(logits, axis=1)


@pytest.mark.exactness
@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("scale", [1.0, 20.0, 3000.0])
def test_saturated_softmax_has_its_exact_determinant(scale):
    """Closed form of softmax regression: g_i is (p - e_c) times (x, 1); all in logarithms."""
    model, x, logits, y = saturated(scale)
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    log_p[np.arange(3), y] = -np.inf
    largest = log_p.max(axis=1, keepdims=True)
    cotangents = np.exp(log_p - largest)
    cotangents[np.arange(3), y] = -cotangents.sum(axis=1)
    ones = np.concatenate([x, np.ones((3, 1))], axis=1).astype(np.float64)
    unscaled = (cotangents @ cotangents.T) * (ones @ ones.T)
    expected = 2 * largest.sum() + np.linalg.slogdet(unscaled)[1]
    gram = loss_gradient_gram(model, x, y)
    found = float(2 * tf.reduce_sum(gram.log_scale) + tf.linalg.slogdet(gram.matrix)[1])
    # The model's logits are float32: their error is in the exponent.
    assert found == pytest.approx(expected, rel=1e-6, abs=of_products(1e-4))
    assert scale == 1 or np.isfinite(expected)


def test_softmax_outputs_give_the_same_as_logits():
    model, x, _, y = saturated(20.0)
    with_softmax = keras.Sequential([model, layers.Softmax()])
    for from_logits in ("auto", False):
        gram = loss_gradient_gram(with_softmax, x, y, from_logits)
        expected = loss_gradient_gram(model, x, y, True)
        np.testing.assert_allclose(gram.log_scale, expected.log_scale, rtol=1e-12)
        np.testing.assert_allclose(gram.matrix, expected.matrix, atol=1e-12)
        np.testing.assert_allclose(gram.logits, model(x), rtol=1e-6)


def test_probabilities_of_a_layer_of_ones_own():
    inner = layers.Dense(3)
    inputs = keras.Input((4,))
    z = inner(inputs)
    outputs = keras.ops.exp(z) / keras.ops.sum(keras.ops.exp(z), axis=-1, keepdims=True)
    x, y = images(5, (4,))
    found = loss_gradient_gram(keras.Model(inputs, outputs), x, y)
    expected = loss_gradient_gram(keras.Model(inputs, z), x, y)
    np.testing.assert_allclose(xi(found), xi(expected), rtol=1e-4)
    np.testing.assert_allclose(found.logits, tf.nn.log_softmax(expected.logits), atol=1e-6)
    with pytest.raises(ValueError, match=r"normalize_logits=0\.3 needs logits"):
        loss_gradient_gram(keras.Model(inputs, outputs), x, y, normalize_logits=0.3)


@pytest.mark.parametrize(
    ("activation", "from_logits"),
    [("sigmoid", "auto"), (lambda z: 1 / (1 + keras.ops.exp(-z)), False)],
)
def test_single_sigmoid_unit(activation, from_logits):
    """Keras' own, which hands over its logits, and one that gives nothing but probabilities."""
    hidden = [keras.Input((4,)), layers.Dense(5, "tanh")]
    model = shake(keras.Sequential([*hidden, layers.Dense(1, activation)]))
    x, y = images(5, (4,), 2)

    def loss(p, label):
        return -tf.math.log(p[0] if label else 1 - p[0])

    j = jacobian(model, x, y, loss=loss)
    found = loss_gradient_gram(model, x, y, from_logits)
    np.testing.assert_allclose(xi(found), j @ j.T, rtol=1e-4)
    p = model(x).numpy()
    np.testing.assert_allclose(found.logits, np.log(p / (1 - p)) * [0, 1], rtol=1e-5, atol=1e-7)
    column = loss_gradient_gram(model, x, y[:, np.newaxis].astype(np.float32), from_logits)
    np.testing.assert_allclose(xi(column), j @ j.T, rtol=1e-4)
    with pytest.raises(ValueError, match="a logit for each class"):
        loss_gradient_gram(model, x, y, from_logits, normalize_logits=0.3)


def test_normalized_logits():
    model = network(layers.Conv2D(3, 3))
    x, y = images()

    def loss(z, label):
        return -tf.nn.log_softmax(z / (0.04 * tf.norm(z)))[label]

    j = jacobian(model, x, y, loss=loss)
    found = loss_gradient_gram(model, x, y, normalize_logits=0.04)
    np.testing.assert_allclose(found.logits, model(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(xi(found), j @ j.T, rtol=1e-3, atol=1e-6 * np.max(j @ j.T))


def test_training_mode_takes_the_moments_of_chunks():
    model = network(layers.Conv2D(3, 3), layers.BatchNormalization(), layers.ReLU())
    x, y = images(7)
    chunks = [[0, 1, 2], [3, 4, 5], [6]]
    before = [np.array(v) for v in model.variables]
    j = jacobian(model, x, y, batches=chunks)
    for v, value in zip(model.variables, before, strict=True):
        v.assign(value)
    found = xi(loss_gradient_gram(model, x, y, training=True, chunk_size=3))
    np.testing.assert_allclose(found, j @ j.T, rtol=1e-3, atol=1e-5 * np.max(j @ j.T))
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(v, value)


@pytest.fixture(scope="module")
def seven():
    """A network, seven examples and their Gram matrix."""
    model = network(layers.Conv2D(3, 3), layers.BatchNormalization())
    x, y = images(7)
    return model, x, y, loss_gradient_gram(model, x, y)


@pytest.mark.parametrize("size", [1, np.int64(3), *map(nightly, (2.0, 7))])
def test_chunks_change_nothing(seven, size):
    model, x, y, expected = seven
    found = loss_gradient_gram(model, x, y, chunk_size=size)
    np.testing.assert_allclose(xi(found), xi(expected), rtol=1e-5)
    np.testing.assert_allclose(found.logits, model(x), rtol=1e-5, atol=1e-6)


def test_each_number_of_examples_is_verified_once(monkeypatch):
    classifier, verified = Classifier(network()), []
    original = verification.wrong_weights
    monkeypatch.setattr(
        verification, "wrong_weights", lambda errors: verified.append(errors) or original(errors)
    )
    x, y = images()
    for count, times in ((len(x), 1), (len(x), 1), (3, 2), (3, 2), (len(x), 2)):
        loss_gradient_gram(classifier, x[:count], y[:count])
        assert len(verified) == times


def test_one_example():
    model = network(layers.Conv2D(3, 3))
    x, y = images(1)
    gram = loss_gradient_gram(model, x, y)
    assert gram.matrix.numpy() == [[1.0]]
    assert float(gram.log_scale[0]) == pytest.approx(np.log(np.linalg.norm(jacobian(model, x, y))))


def test_repeated_image_and_dead_network():
    model = network(layers.Conv2D(3, 3))
    x, y = images()
    x[3], y[3] = x[1], y[1]
    gram = loss_gradient_gram(model, x, y)
    assert float(gram.matrix[1, 3]) == pytest.approx(1, abs=1e-12)
    dead = keras.Sequential([keras.Input((4,)), layers.Dense(3, use_bias=False)])
    dead_x = np.zeros((2, 4), np.float32)
    gram = loss_gradient_gram(dead, dead_x, [0, 1])
    np.testing.assert_array_equal(gram.log_scale, [-np.inf, -np.inf])
    np.testing.assert_array_equal(gram.matrix, np.eye(2))


def test_almost_dependent_gradients_are_multiplied_in_float64():
    """Of two images that differ by 1e-4, float32 products would lose the smallest eigenvalue."""
    model = network(layers.Conv2D(3, 3))
    x, y = images()
    x[3], y[3] = x[1] + 1e-4, y[1]
    j = jacobian(model, x, y)
    unit = j / np.linalg.norm(j, axis=1, keepdims=True)
    smallest = np.linalg.svd(unit)[1][-1] ** 2
    found = np.linalg.eigvalsh(loss_gradient_gram(model, x, y).matrix.numpy())[0]
    assert smallest < 1e-7
    assert found == pytest.approx(smallest, rel=0.05)


def test_a_result_depends_on_its_examples_alone():
    """Whatever came before, and whether that needed products in float64."""
    model = network(layers.Conv2D(3, 3))
    samples = [images(seed=seed) for seed in range(4)]
    for x, y in samples[::2]:
        x[3], y[3] = x[1] + 1e-4, y[1]
    alone = [loss_gradient_gram(model, *sample) for sample in samples]
    smallest = [np.linalg.eigvalsh(found.matrix.numpy())[0] for found in alone]
    assert [value < 1e-3 for value in smallest] == [True, False, True, False]
    classifier = Classifier(model)
    for index in (0, 2, 1, 3, 0, 1, 2, 2, 3, 3):
        found = loss_gradient_gram(classifier, *samples[index])
        np.testing.assert_array_equal(found.matrix, alone[index].matrix)
        np.testing.assert_array_equal(found.log_scale, alone[index].log_scale)


class Remembering:
    """Stands for a GramFunction."""

    def __init__(self, needed_float64):
        self.needed_float64 = np.array([needed_float64])


@pytest.mark.parametrize(
    ("fast", "exact", "is_exact", "calls_after_fast", "calls_after_exact"),
    [
        (2e-3, 2.001e-3, False, "f", "ef"),
        (1.001e-3, 0.999e-3, False, "f", "ef"),
        (0.999e-3, 1.001e-3, True, "fe", "ef"),
        (0.6e-3, 0.599e-3, True, "fe", "ef"),
        (0.4e-3, 0.401e-3, True, "fe", "e"),
    ],
)
def test_exact_products_where_they_are_needed(
    fast, exact, is_exact, calls_after_fast, calls_after_exact
):
    """The needs of the last examples are tried first, and decide nothing."""
    for needed_float64, expected_calls in ((False, calls_after_fast), (True, calls_after_exact)):
        calls = []

        def make(wants_exact, calls=calls):
            calls.append("e" if wants_exact else "f")
            cosine = 1 - (exact if wants_exact else fast)
            matrix = np.array([[1.0, cosine], [cosine, 1.0]])
            return [gram._Group(matrix, (np.zeros(2), np.zeros([2, 3]), bool(wants_exact)))]

        function = Remembering(needed_float64)
        assert gram._float64_where_needed(function, make)[0].gram.epsilon == is_exact
        assert "".join(calls) == expected_calls
        assert function.needed_float64 == is_exact


SCALED = {
    "positions": lambda: [layers.Dense(3, use_bias=False), layers.GlobalAveragePooling1D()],
    "convolution": lambda: [layers.Conv1D(3, 2, use_bias=False), layers.GlobalAveragePooling1D()],
    "einsum": lambda: [
        layers.EinsumDense("nlc,ck->nlk", (None, 3)),
        layers.GlobalAveragePooling1D(),
    ],
    "rows": lambda: [layers.Flatten(), layers.Dense(3, use_bias=False)],
}


@pytest.mark.exactness
@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("make", SCALED.values(), ids=SCALED)
def test_gradients_whose_squares_leave_float32(make):
    """Inputs that are scaled, with weights that undo it, give the same and a logarithm."""
    x, y = images(6, (6, 5))
    classifier = Classifier(shake(keras.Sequential([keras.Input((6, 5)), *make()])))
    expected = loss_gradient_gram(classifier, x, y)
    (kernel,) = classifier.model.trainable_variables
    unscaled = kernel.numpy()
    for exponent in (-100, -66, 66, 100):
        kernel.assign(unscaled * 2.0**-exponent)
        found = loss_gradient_gram(classifier, np.float32(2.0**exponent) * x, y)
        np.testing.assert_allclose(found.matrix, expected.matrix, atol=of_products(1e-6))
        log_scale = expected.log_scale + exponent * np.log(2)
        np.testing.assert_allclose(found.log_scale, log_scale, rtol=of_products(1e-6))


def test_a_layer_that_is_used_often_keeps_its_factors():
    """As explicit gradients, 8 uses take 8 times the memory of one."""
    cell, sizes = layers.Dense(64, "tanh"), []
    for uses in (1, 8):
        model = keras.Sequential([keras.Input((64,)), *[cell] * uses, layers.Dense(3)])
        classifier = Classifier(model)

        def trace(x, classifier=classifier):
            labels, weights = tf.zeros([50], tf.int32), tf.ones([50], tf.bool)
            batch = TracedBatch(classifier, False, x, labels, weights)
            sizes.append(batch.structured()[0].size)

        tf.function(trace, autograph=False).get_concrete_function(tf.TensorSpec([50, 64]))
    assert sizes == [(50, 1, 64, 64), (50, 8, 64, 64)]


@pytest.mark.exactness
@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize(
    "middle",
    [
        lambda: [layers.Conv2D(3, 3), layers.BatchNormalization()],
        # The gradient of the keys' bias is zero, but for rounding.
        lambda: [layers.Reshape((16, 16)), SelfAttention(layers.MultiHeadAttention(2, 3))],
    ],
    ids=["convolution", "attention"],
)
def test_float64_and_half_precision(middle):
    x, y = images()
    policy = keras.config.dtype_policy()
    grams = {}
    try:
        for name in ("float64", "float32", "mixed_bfloat16", "mixed_float16"):
            keras.config.set_dtype_policy(name)
            model = network(*middle())
            grams[name] = xi(loss_gradient_gram(model, x, y))
    finally:
        keras.config.set_dtype_policy(policy)
    tolerances = {"float32": of_products(1e-4), "mixed_bfloat16": 0.1, "mixed_float16": 0.02}
    for name, tolerance in tolerances.items():
        scale = np.max(grams["float64"])
        np.testing.assert_allclose(grams[name], grams["float64"], atol=tolerance * scale)


def test_labels_come_in_every_form():
    model = Classifier(network(layers.Conv2D(3, 3)))
    x, y = images()
    expected = xi(loss_gradient_gram(model, x, y))
    soft = 0.9 * np.eye(3)[y] + 0.1 / 3
    for labels in (list(y), y[:, np.newaxis], np.eye(3)[y], soft, tf.constant(y)):
        np.testing.assert_array_equal(xi(loss_gradient_gram(model, x, labels)), expected)


def test_weights_of_the_moment_count_and_frozen_ones_do_not():
    model = network(layers.Conv2D(3, 3, name="conv"))
    classifier = Classifier(model)
    x, y = images()
    before = xi(loss_gradient_gram(classifier, x, y))
    shake(model, seed=1)
    assert not np.allclose(xi(loss_gradient_gram(classifier, x, y)), before)
    model.get_layer("conv").trainable = False
    j = jacobian(model, x, y)
    np.testing.assert_allclose(xi(loss_gradient_gram(classifier, x, y)), j @ j.T, rtol=1e-4)


def test_models_are_not_kept_alive():
    model = network(layers.Conv2D(3, 3))
    loss_gradient_gram(model, *images())
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_eager_functions():
    model = network(layers.Conv2D(3, 3))
    x, y = images()
    expected = xi(loss_gradient_gram(model, x, y))
    tf.config.run_functions_eagerly(True)
    try:
        found = xi(loss_gradient_gram(network(layers.Conv2D(3, 3)), x, y))
    finally:
        tf.config.run_functions_eagerly(False)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": [0, 1, 2, 3, 0]}, r"0\.\.2 .* Given: label 3 for example 3"),
        ({"y": [0, 1, 2, 0, -1]}, "label -1 for example 4"),
        ({"y": [0, 1, 2, 0]}, "same number of examples"),
        ({"y": [0.5, 1, 2, 0, 0]}, "label 0.5 for example 0"),
        ({"y": np.zeros((5, 4))}, r"\(N, 3\)\. Given: shape \(5, 4\)"),
        ({"y": np.ones((5, 3))}, r"label \[1\. 1\. 1\.\] for example 0"),
        ({"from_logits": "maybe"}, "from_logits must be"),
        ({"chunk_size": 0}, "chunk_size must be"),
        ({"normalize_logits": -1.0}, "normalize_logits must be"),
    ],
)
def test_bad_input_is_named(change, message):
    x, y = images()
    with pytest.raises(ValueError, match=message):
        loss_gradient_gram(**{"model": network(layers.Conv2D(3, 3)), "x": x, "y": y} | change)


def test_examples_without_a_finite_gradient_are_named():
    x, y = images()
    x[2, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"1 of 5 examples.*\[2\]"):
        loss_gradient_gram(network(layers.Conv2D(3, 3)), x, y)


def test_outputs_that_are_not_what_was_said():
    x, y = images()
    with pytest.raises(ValueError, match="end in softmax"):
        loss_gradient_gram(network(layers.Conv2D(3, 3), ends_in=[layers.Softmax()]), x, y, True)
    with pytest.raises(ValueError, match=r"no probabilities .* from_logits=False"):
        loss_gradient_gram(network(layers.Conv2D(3, 3)), x, y, from_logits=False)
    several = network(layers.Conv2D(3, 3), ends_in=[Own(lambda x, w: tf.exp(x) / w, (1,))])
    several.layers[-1].weight.assign([1e9])
    with pytest.raises(ValueError, match="not 1, by up to 1"):
        loss_gradient_gram(several, x, y, from_logits=False)
    no_head = keras.Sequential([keras.Input(IMAGES), layers.Conv2D(3, 3)])
    with pytest.raises(ValueError, match=r"shape \(N, 6, 6\), or .* Given: shape \(5,\)"):
        loss_gradient_gram(no_head, x, y)
