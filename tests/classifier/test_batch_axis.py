"""The batch axis of tensors in a graph, against the values for batches of other examples."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fisher_keras.classifier.batch_axis import call_graph
from fisher_keras.graph.tracing import specs
from fisher_keras.models import build_model

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(6, 4, 4, 2)).astype(np.float32)
TABLE = tf.constant(RANDOM.normal(size=(9, 3)), tf.float32)
MATRIX = tf.constant(RANDOM.normal(size=(2, 3)), tf.float32)
FILTERS = tf.constant(RANDOM.normal(size=(2, 2, 2, 3)), tf.float32)


def rows(x):
    return tf.reshape(x, [-1, 32])


def whole(x):
    return tf.cast(tf.round(tf.abs(rows(x))[:, :3]), tf.int32)


APART = {
    "product": lambda x: x @ MATRIX,
    "product of flat rows": lambda x: tf.reshape(tf.reshape(x, [-1, 2]) @ MATRIX, [-1, 4, 4, 3]),
    "product of examples": lambda x: tf.matmul(x, x, transpose_b=True),
    "einsum": lambda x: (
        tf.einsum("nhwc,nhvc->nhwv", x, x) + tf.einsum("nhwc,cd->nhwd", x, MATRIX)[..., :1]
    ),
    "convolution": lambda x: tf.nn.conv2d(x, FILTERS, 1, "SAME"),
    "transposed": lambda x: tf.nn.conv2d_transpose(
        x, tf.transpose(FILTERS, [0, 1, 3, 2]), [tf.shape(x)[0], 8, 8, 3], 2
    ),
    "depthwise": lambda x: tf.nn.depthwise_conv2d(x, FILTERS, [1, 1, 1, 1], "SAME"),
    "pools": lambda x: tf.nn.max_pool2d(x, 2, 1, "SAME") + tf.nn.avg_pool2d(x, 3, 1, "SAME"),
    "moments": lambda x: (
        (x - tf.reduce_mean(x, [1, 2], True)) / tf.norm(x, axis=-1, keepdims=True)
    ),
    "softmax": lambda x: tf.nn.softmax(x) + tf.nn.log_softmax(x),
    "normalization": lambda x: tf.compat.v1.nn.fused_batch_norm(
        x, [1.0, 2.0], [0.0, 1.0], [0.5, 0.5], [1.0, 2.0], is_training=False
    )[0],
    "concatenation": lambda x: tf.concat([x, tf.zeros_like(x), x[:, ::-1]], axis=-1),
    "with zeros": lambda x: tf.concat([x, tf.zeros([tf.shape(x)[0], 4, 4, 1])], axis=-1),
    "stack": lambda x: tf.stack([x, 2 * x], axis=1)[:, 0] + tf.unstack(x, axis=1)[0][:, None],
    "split": lambda x: sum(tf.split(x, 2, axis=1)) + tf.split(x, [1, 3], axis=2)[0][:, :2],
    "slices": lambda x: x[..., 0] + x[:, :, 1:3][..., 0][:, :, :1] + x[:, 1:][:, -1:, :, 1],
    "new axis": lambda x: tf.squeeze(x[:, tf.newaxis], 1) + tf.expand_dims(x[..., 0], -1),
    "padding": lambda x: tf.pad(x, [[0, 0], [1, 0], [0, 2], [0, 0]], "REFLECT"),
    "table": lambda x: tf.gather(TABLE, whole(x)),
    "entries": lambda x: tf.gather(x, [2, 0], axis=2),
    "entries of each": lambda x: tf.gather(rows(x), whole(x), batch_dims=1),
    "places of a table": lambda x: tf.gather_nd(TABLE, whole(x)[:, :, None] % 9),
    "one hot": lambda x: tf.one_hot(whole(x), 4),
    "scan": lambda x: tf.cumsum(x, axis=1) + tf.reverse(x, [2]) + tf.roll(x, 1, axis=1),
    "largest": lambda x: tf.math.top_k(rows(x), 3)[0] + tf.sort(rows(x), axis=1)[:, :3],
    "tiles": lambda x: tf.tile(x, [1, 2, 1, 1]) + tf.repeat(x[:, :1], 8, axis=1),
    "choice": lambda x: tf.where(x > 0, x, tf.zeros_like(x)) + tf.where(x > 1, 1.0, 2.0),
    "transposition": lambda x: tf.transpose(x, [0, 3, 1, 2]),
    "resized": lambda x: tf.image.resize(x, [3, 5]) + tf.image.resize(x, [3, 5], "nearest"),
    "blocks": lambda x: tf.nn.depth_to_space(tf.nn.space_to_depth(x, 2), 2),
    "swish": tf.nn.silu,
}


def permuted(x):
    order = tf.argsort(rows(x)[:, 0])
    return tf.gather(tf.gather(x, order) ** 2, tf.argsort(order))


# Some give each example the same as alone, which their graph does not show, and some do not.
NOT_SHOWN = {
    "permuted": permuted,
    "permuted by gather_nd": lambda x: tf.gather_nd(x, tf.argsort(rows(x)[:, :1], axis=0)),
    "sorted": lambda x: tf.sort(x, axis=0),
    "reversed": lambda x: tf.reverse(x, [0]) + x[::-1],
    "rolled": lambda x: tf.roll(x, 1, axis=0),
    "added up": lambda x: tf.cumsum(x, axis=0),
    "mean": lambda x: x - tf.reduce_mean(x, axis=0),
    "norm": lambda x: x / tf.norm(x),
    "softmax": lambda x: tf.transpose(tf.nn.softmax(tf.transpose(rows(x)))),
    "product with all": lambda x: tf.matmul(
        rows(x), tf.matmul(rows(x), rows(x), transpose_a=True)
    ),
    "einsum with all": lambda x: tf.einsum("nhwc,mhwc,mhwc->nh", x, x, x),
    "normalization": lambda x: tf.compat.v1.nn.fused_batch_norm(
        x, [1.0, 2.0], [0.0, 1.0], is_training=True
    )[0],
    "next one": lambda x: tf.concat([x[1:], x[:1]], axis=0),
    "number of examples": lambda x: x / tf.cast(tf.shape(x)[0], x.dtype),
    "number of examples in Python": lambda x: x * (1 / x.shape[0]),
    "number of examples as a row": lambda x: x / tf.fill([1, 1, 1, 2], 1.0 * x.shape[0]),
    "share of the batch": lambda x: x * tf.sqrt(1 / tf.cast(tf.size(x), x.dtype)),
    "padded": lambda x: tf.pad(x, [[1, 0], [0, 0], [0, 0], [0, 0]])[:-1],
    "positions": lambda x: x + tf.reshape(tf.range(tf.shape(x)[0], dtype=x.dtype), [-1, 1, 1, 1]),
    "pools": lambda x: tf.transpose(
        tf.nn.max_pool2d(tf.transpose(x, [1, 0, 2, 3]), 3, 1, "SAME"), [1, 0, 2, 3]
    ),
    "other axes": lambda x: tf.transpose(x, [1, 0, 2, 3])[:, :, ::-1] ** 2,
    "function": tf.function(lambda x: tf.roll(x, 1, axis=0)),
    "branch": lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: x[::-1], lambda: x),
    "numpy": lambda x: tf.ensure_shape(tf.numpy_function(np.sort, [x], tf.float32), x.shape),
}


def graph_of(function):
    model = keras.Sequential([keras.Input(X.shape[1:]), keras.layers.Lambda(function)])
    return call_graph(model, specs(tf.constant(X)), training=True)


@pytest.mark.parametrize("function", APART.values(), ids=APART)
def test_what_keeps_examples_apart(function):
    order = np.array([3, 0, 5])
    together, others = function(tf.constant(X)), function(tf.constant(X[order]))
    np.testing.assert_allclose(np.asarray(together)[order], others, rtol=1e-4, atol=1e-5)
    assert graph_of(function).established


@pytest.mark.parametrize("function", NOT_SHOWN.values(), ids=NOT_SHOWN)
def test_what_is_not_shown_to_keep_examples_apart(function):
    graph = graph_of(function)
    assert not graph.established
    assert not graph.independent


def test_a_custom_gradient_may_take_examples_together():
    @tf.custom_gradient
    def mean_behind(x):
        return tf.identity(x), lambda upstream: upstream - tf.reduce_mean(upstream, axis=0)

    graph = graph_of(mean_behind)
    assert graph.established
    assert not graph.independent
    assert graph_of(APART["convolution"]).independent


def attention(width=8):
    inputs = keras.Input((7,), dtype="int32")
    h = keras.layers.Embedding(9, width, mask_zero=True)(inputs)
    h = keras.layers.LayerNormalization()(h + keras.layers.MultiHeadAttention(2, 4)(h, h))
    h = keras.layers.GlobalAveragePooling1D()(keras.layers.EinsumDense("nlc,cd->nld", (7, 5))(h))
    return keras.Model(inputs, keras.layers.Dense(3)(h))


def mobile():
    layers = [
        keras.layers.Rescaling(1 / 255),
        keras.layers.SeparableConv2D(4, 3, padding="same", activation="swish"),
        keras.layers.BatchNormalization(),
        keras.layers.UpSampling2D(interpolation="bilinear"),
        keras.layers.ZeroPadding2D(),
        keras.layers.GlobalMaxPooling2D(keepdims=True),
        keras.layers.Flatten(),
        keras.layers.UnitNormalization(),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(3, activation="softmax"),
    ]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers])


NETWORKS = {
    **{
        name: lambda name=name: build_model(name, input_shape=(32, 32, 3), num_classes=10)
        for name in ("cnn", "resnet", "wide_resnet")
    },
    "attention": attention,
    "mobile": mobile,
}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_networks_of_layers_of_keras_are_established(make):
    """So that each call does not verify their gradients anew."""
    model = make()
    inputs = [tf.TensorSpec([5, *t.shape[1:]], t.dtype) for t in model.inputs]
    assert call_graph(model, inputs[0], training=False).established
