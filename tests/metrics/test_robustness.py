"""The robustness metric against Jacobians by finite differences and in closed form."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax

from fisher_keras.metrics import robustness

# The module has the name of its function.
robustness_module = sys.modules["fisher_keras.metrics.robustness"]


def mean_squared_norm(probabilities, x, step=1e-6):
    """The metric by central differences; examples must be independent of each other."""
    flat = x.reshape(len(x), -1)
    columns = []
    for j in range(flat.shape[1]):
        move = np.zeros_like(flat)
        move[:, j] = step
        up, down = ((flat + s * move).reshape(x.shape) for s in (1, -1))
        columns.append((probabilities(up) - probabilities(down)) / (2 * step))
    jacobians = np.stack(columns, axis=-1)
    return np.mean([np.linalg.norm(j, 2) ** 2 for j in jacobians])


def conv_net(num_classes=4, activation=None):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            keras.layers.Conv2D(3, 3, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(num_classes, activation),
        ]
    )
    model.layers[1].moving_mean.assign([0.1, -0.2, 0.3])
    return model


def linear(weights, **kwargs):
    """A model with logits W x."""
    layer = keras.layers.Dense(weights.shape[0], use_bias=False, **kwargs)
    model = keras.Sequential([keras.Input((weights.shape[1],)), layer])
    layer.set_weights([weights.T])
    return model


@pytest.mark.exactness
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_finite_differences(float64, activation):
    model = conv_net(activation=activation)
    x = np.random.default_rng(0).normal(size=(7, 5, 5, 2))

    def probabilities(x):
        outputs = model(x, training=False).numpy()
        return outputs if activation else softmax(outputs, axis=1)

    before = [v.numpy() for v in model.variables]
    expected = mean_squared_norm(probabilities, x)
    np.testing.assert_allclose(robustness(model, x, batch_size=3), expected, rtol=1e-7)
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())


def test_a_hundred_classes_exactly():
    random = np.random.default_rng(1)
    weights = random.normal(size=(100, 12)).astype("float32")
    x = random.normal(size=(6, 12)).astype("float32")
    p = softmax(x.astype(float) @ weights.T, axis=1)
    expected = np.mean(
        [np.linalg.norm((np.diag(row) - np.outer(row, row)) @ weights, 2) ** 2 for row in p]
    )
    np.testing.assert_allclose(robustness(linear(weights), x), expected, rtol=1e-5)


@pytest.mark.exactness
def test_a_saturated_softmax_in_float32():
    weights = np.array([[1.0, 2.0], [-1.0, 0.5], [0.5, -1.0]], "float32")
    x = np.array([[40.0, 50.0], [60.0, 70.0]], "float32")
    z = x.astype(float) @ weights.T
    assert (softmax(z.astype("float32"), axis=1) == np.float32([1, 0, 0])).all()
    expected = []
    for row in z:
        # To first order in the small p_k: dp_k = p_k (w_k - w_0) and dp_0 = -sum of those.
        small = np.exp(row[1:] - row[0])[:, None] * (weights[1:] - weights[0])
        expected.append(np.linalg.norm(np.vstack([-small.sum(axis=0), small]), 2) ** 2)
    assert max(expected) < 1e-45
    np.testing.assert_allclose(robustness(linear(weights), x), np.mean(expected), rtol=1e-5)


def test_normalized_logits(float64):
    random = np.random.default_rng(2)
    weights, x = random.normal(size=(3, 4)), random.normal(size=(5, 4))

    def probabilities(x):
        z = x @ weights.T
        return softmax(z / (0.3 * np.linalg.norm(z, axis=1, keepdims=True)), axis=1)

    result = robustness(linear(weights), x, normalize_logits=0.3)
    np.testing.assert_allclose(result, mean_squared_norm(probabilities, x), rtol=1e-7)


def test_logits_that_are_all_zero():
    """There S is (I - 1/K) / K, and the projection leaves the weights' differences."""
    weights = np.array([[1.0, 2.0], [3.0, -1.0], [0.0, 1.0]], "float32")
    expected = np.linalg.norm((weights - weights.mean(axis=0)) / 3, 2) ** 2
    result = robustness(linear(weights), np.zeros((4, 2), "float32"))
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_several_inputs_are_one_vector(float64):
    random = np.random.default_rng(4)
    weights, x = random.normal(size=(3, 6)), random.normal(size=(5, 6))
    inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((4,), name="b")}
    joined = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    inner = linear(weights)
    model = keras.Model(inputs, inner(joined))
    result = robustness(model, {"a": x[:, :2], "b": x[:, 2:]})
    np.testing.assert_allclose(result, robustness(inner, x), rtol=1e-12)


@pytest.mark.parametrize("max_entries", [1, 3 * 4 * 50, 2**25])
def test_pieces_of_any_size(monkeypatch, max_entries):
    """As many examples at once as their Jacobians fit into the memory allowed."""
    x = np.random.default_rng(0).normal(size=(7, 5, 5, 2)).astype("float32")
    model, sizes = conv_net(), []
    expected = robustness(model, x, batch_size=7)
    original = robustness_module.trace_for_any_batch_size

    def recording(function):
        traced = original(function)
        return lambda x: sizes.append(len(x)) or traced(x)

    monkeypatch.setattr(robustness_module, "trace_for_any_batch_size", recording)
    monkeypatch.setattr(robustness_module, "_MAX_ENTRIES", max_entries)
    assert robustness(model, x, batch_size=7) == pytest.approx(expected, rel=1e-6)
    assert sizes == {1: [1] * 7, 600: [3, 3, 1], 2**25: [7]}[max_entries]


def test_a_model_that_is_not_built_yet():
    model = keras.Sequential([keras.layers.Dense(3)])
    assert robustness(model, np.ones((2, 4), "float32")) > 0


def test_integer_inputs_are_refused():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Embedding(5, 4), keras.layers.Flatten()]
    )
    with pytest.raises(ValueError, match=r"derivatives by the inputs, .* Given: inputs of int64"):
        robustness(model, np.ones((2, 3), "int64"))
    with pytest.raises(ValueError, match=r"Embedding.* Given: inputs of float32"):
        robustness(model, np.ones((2, 3), "float32"))
    # What is refused while it is traced leaves nothing behind.
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        assert keras.Variable([1.0]).value.numpy() == [1.0]


@pytest.mark.parametrize("batch_size", [0, -1, 1.5])
def test_batches_have_examples(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must .* Given: {batch_size}"):
        robustness(linear(np.eye(2)), np.ones((2, 2), "float32"), batch_size=batch_size)


def test_nan_is_an_error():
    weights = np.array([[1.0, np.nan], [0.0, 1.0]])
    with pytest.raises(ValueError, match="NaN or infinite for 2 of 2 examples"):
        robustness(linear(weights), np.ones((2, 2), "float32"))
    x = np.random.default_rng(0).normal(size=(9, 5, 5, 2)).astype("float32")
    x[[4, 7], 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"for 2 of 9 examples, the first at \[4, 7\]"):
        robustness(conv_net(), x, batch_size=3)


def test_outputs_that_are_not_what_was_said():
    x = np.ones((2, 4), "float32")
    model = linear(np.eye(3, 4, dtype="float32") - 1)
    z = model.outputs[0]
    exponentials = keras.ops.exp(z)
    total = keras.ops.sum(exponentials, axis=1, keepdims=True)
    probabilities = keras.Model(model.inputs, exponentials / total)
    assert robustness(probabilities, x) == pytest.approx(robustness(model, x), rel=1e-5)
    with pytest.raises(ValueError, match=r"normalize_logits=0\.3 needs logits"):
        robustness(probabilities, x, normalize_logits=0.3)
    single = keras.Model(model.inputs, keras.ops.sigmoid(z[:, :1]))
    with pytest.raises(ValueError, match="a logit for each class"):
        robustness(single, x, normalize_logits=0.3)
    for outputs in (z, exponentials):
        with pytest.raises(ValueError, match=r"no probabilities .* from_logits=False"):
            robustness(keras.Model(model.inputs, outputs), x, from_logits=False)
    with pytest.raises(ValueError, match="from_logits must be"):
        robustness(model, x, from_logits="maybe")
    with pytest.raises(ValueError, match="normalize_logits must be"):
        robustness(model, x, normalize_logits=0)


def test_inputs_of_several_dtypes(float64):
    inputs = [keras.Input((2,), dtype="float32"), keras.Input((3,), dtype="float64")]
    x = np.random.default_rng(0).normal(size=(4, 5))
    head = keras.layers.Dense(3)
    model = keras.Model(inputs, head(keras.layers.Concatenate()(inputs)))
    one = keras.Sequential([keras.Input((5,)), head])
    parts = [x[:, :2].astype("float32"), x[:, 2:]]
    np.testing.assert_allclose(robustness(model, parts), robustness(one, x), rtol=1e-6)


def test_a_data_frame():
    pandas = pytest.importorskip("pandas")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    assert robustness(model, pandas.DataFrame(x)) == robustness(model, x)
    columns = {"a": pandas.Series(x[:, 0]), "b": x[:, 1:]}
    inputs = {"a": keras.Input(()), "b": keras.Input((2,))}
    both = keras.layers.Concatenate()([keras.ops.expand_dims(inputs["a"], -1), inputs["b"]])
    named = keras.Model(inputs, model.layers[-1](both))
    np.testing.assert_allclose(robustness(named, columns), robustness(model, x), rtol=1e-6)
