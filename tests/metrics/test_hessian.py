"""The Hessian against closed forms and finite differences; Equation 1 at a trained minimum."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import nightly
from scipy.special import softmax

from fisher_keras.classifier import Classifier
from fisher_keras.metrics import hessian, hessian_log_determinant

pytestmark = pytest.mark.usefixtures("float64")


def network(num_inputs, hidden=(), num_classes=3):
    """A classifier without redundant logits: the last one is always 0."""
    keras.utils.set_random_seed(1)
    inputs = features = keras.Input((num_inputs,))
    for units in hidden:
        features = keras.layers.Dense(units, "tanh")(features)
    z = keras.layers.Dense(num_classes - 1)(features)
    return keras.Model(inputs, keras.ops.pad(z, [[0, 0], [0, 1]]))


def flat_weights(model):
    return np.concatenate([v.numpy().ravel() for v in model.trainable_variables])


def set_flat_weights(model, flat):
    begin = 0
    for v in model.trainable_variables:
        v.assign(flat[begin : begin + v.numpy().size].reshape(v.shape))
        begin += v.numpy().size


class LogProbabilities:
    """ln p(c | x; w) of all examples and classes, (N, K), and its gradients, (N, K, W)."""

    def __init__(self, model, x):
        self._model, self._x = model, x
        self._variables = [v.value for v in model.trainable_variables]

    @tf.function
    def __call__(self):
        with tf.GradientTape() as tape:
            log_p = tf.nn.log_softmax(self._model(self._x, training=False))
        gradients = tape.jacobian(log_p, self._variables)
        flat = [tf.reshape(g, [*log_p.shape, -1]) for g in gradients]
        return log_p, tf.concat(flat, axis=2)


def loss_gradient(gradients, y):
    return -np.einsum("nk,nkw->w", y, gradients) / len(y)


def full_fisher(gradients, y):
    """Equation 2, with its weights y_i."""
    return np.einsum("nk,nkv,nkw->vw", y, gradients, gradients) / len(y)


def train_to_convergence(model, x, y):
    """Levenberg-Marquardt steps on the mean cross-entropy until nothing is gained any more."""
    log_probabilities = LogProbabilities(model, x)
    flat, loss, damping = flat_weights(model), np.inf, 1.0
    while damping < 1e6:
        log_p, gradients = (t.numpy() for t in log_probabilities())
        excess = np.sum(y * (np.log(y) - log_p)) / len(y)
        if excess < loss:
            flat, loss, damping = flat_weights(model), excess, damping / 4
            information = full_fisher(gradients, np.exp(log_p))
            downhill = -loss_gradient(gradients, y)
        else:
            damping *= 16
        step = np.linalg.solve(information + damping * np.eye(len(flat)), downhill)
        set_flat_weights(model, flat + step)
    set_flat_weights(model, flat)
    return loss, full_fisher(log_probabilities()[1].numpy(), y)


def smoothed(labels, num_classes=3, smoothing=0.1):
    return (1 - smoothing) * np.eye(num_classes)[labels] + smoothing / num_classes


@pytest.mark.exactness
def test_softmax_regression_in_closed_form():
    model = network(2, num_classes=2)
    x = np.random.default_rng(0).normal(size=(9, 2))
    p = softmax(model(x).numpy(), axis=1)[:, 0]
    features = np.column_stack([x, np.ones(9)])
    expected = (features * (p * (1 - p))[:, None]).T @ features / 9
    labels = np.arange(9) % 2
    classifier = Classifier(model)
    np.testing.assert_allclose(hessian(classifier, x, labels), expected, rtol=1e-12)
    np.testing.assert_allclose(
        hessian_log_determinant(classifier, x, labels), np.log(np.linalg.det(expected)), rtol=1e-10
    )


@pytest.mark.parametrize("probabilities", [False, True])
def test_finite_differences_of_the_gradient(probabilities):
    """Also through LayerNormalization, whose moments TensorFlow does not differentiate twice."""
    keras.utils.set_random_seed(2)
    layers = [
        keras.Input((4, 4, 1)),
        keras.layers.Conv2D(2, 3, activation="tanh"),
        keras.layers.BatchNormalization(),
        keras.layers.LayerNormalization(),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ]
    model = keras.Sequential(layers)
    given = keras.Sequential([*layers, keras.layers.Softmax()]) if probabilities else model
    random = np.random.default_rng(0)
    x, labels = random.normal(size=(6, 4, 4, 1)), random.integers(0, 3, 6)
    log_probabilities = LogProbabilities(model, x)
    flat, columns = flat_weights(model), []
    for move in 1e-5 * np.eye(len(flat)):
        ends = []
        for sign in (1, -1):
            set_flat_weights(model, flat + sign * move)
            ends.append(loss_gradient(log_probabilities()[1].numpy(), smoothed(labels)))
        columns.append((ends[0] - ends[1]) / 2e-5)
    set_flat_weights(model, flat)
    classifier = Classifier(given)
    result = hessian(classifier, x, labels, label_smoothing=0.1)
    np.testing.assert_allclose(result, np.stack(columns, axis=1), atol=1e-8)
    again = hessian(classifier, x, smoothed(labels))
    # A GPU sums in no fixed order.
    np.testing.assert_allclose(again, result, rtol=1e-12, atol=1e-14)


def test_the_hessian_of_a_classifier_whose_logits_were_traced_before():
    """Its own trace has moments that can be differentiated twice."""
    keras.utils.set_random_seed(2)
    layers = [keras.layers.Dense(3), keras.layers.LayerNormalization(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((2,)), *layers])
    x, labels = np.random.default_rng(0).normal(size=(6, 2)), np.arange(6) % 3
    classifier = Classifier(model)
    classifier.logits(x)
    of_other_labels = hessian(classifier, x, np.zeros(6))
    found = hessian(classifier, x, labels, label_smoothing=0.1)
    np.testing.assert_array_equal(found, hessian(model, x, labels, label_smoothing=0.1))
    assert not np.allclose(found, of_other_labels)


@pytest.mark.exactness
def test_equation_1_for_softmax_regression():
    """Four points in general position and as many parameters a logit: f_w(x) = y is reached."""
    model = network(3)
    random = np.random.default_rng(3)
    x, y = random.normal(size=(4, 3)), smoothed(np.array([0, 1, 2, 1]))
    excess_loss, information = train_to_convergence(model, x, y)
    assert excess_loss < 1e-14
    classifier = Classifier(model)
    np.testing.assert_allclose(hessian(classifier, x, y), information, rtol=1e-6, atol=1e-9)
    sign, expected = np.linalg.slogdet(information)
    assert sign == 1
    np.testing.assert_allclose(hessian_log_determinant(classifier, x, y), expected, rtol=1e-6)


def test_equation_1_for_a_network_with_a_hidden_layer():
    """More parameters than N (K - 1): both are singular, and the same matrix."""
    model = network(2, hidden=(4,))
    classifier = Classifier(model)
    random = np.random.default_rng(4)
    x, y = random.normal(size=(6, 2)), smoothed(np.array([0, 1, 2, 1, 0, 2]))
    gradients = LogProbabilities(model, x)()[1].numpy()
    assert np.abs(hessian(classifier, x, y) - full_fisher(gradients, y)).max() > 1e-2
    excess_loss, information = train_to_convergence(model, x, y)
    assert excess_loss < 1e-14
    np.testing.assert_allclose(hessian(classifier, x, y), information, atol=1e-6)
    # The log-determinant on the part of rank N (K - 1) that is not zero.
    eigenvalues = np.linalg.eigvalsh(hessian(classifier, x, y))[-12:]
    expected = np.linalg.eigvalsh(information)[-12:]
    np.testing.assert_allclose(np.log(eigenvalues).sum(), np.log(expected).sum(), rtol=1e-5)


def test_the_redundant_logit_makes_the_hessian_singular():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(9, 2))
    with pytest.warns(UserWarning, match="3 of the 9 eigenvalues of the Hessian are zero"):
        assert hessian_log_determinant(model, x, np.arange(9) % 3) == -np.inf


def test_a_saddle_is_no_minimum():
    model = network(2, hidden=(2,))
    set_flat_weights(model, np.zeros(len(flat_weights(model))))
    x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    with pytest.warns(UserWarning, match="no local minimum"):
        assert np.isnan(hessian_log_determinant(model, x, np.array([0, 1, 2])))


@tf.custom_gradient
def clipped_in_passing(x):
    return tf.identity(x), lambda upstream: tf.clip_by_value(upstream, -1e-3, 1e-3)


@tf.custom_gradient
def normalized_in_passing(x):
    return tf.identity(x), lambda upstream: tf.clip_by_norm(upstream, 1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", [clipped_in_passing, normalized_in_passing])
def test_a_gradient_that_is_no_derivative_is_refused(function, dtype):
    """Nor is its derivative symmetric; the mean with the transpose would hide that."""
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Dense(3, "tanh", dtype=dtype, name="first"),
        keras.layers.Lambda(function, dtype=dtype),
        keras.layers.Dense(3, dtype=dtype, name="last"),
    ]
    model = keras.Sequential([keras.Input((2,), dtype=dtype), *layers])
    x = np.random.default_rng(0).normal(size=(9, 2))
    with pytest.raises(ValueError, match=r"not symmetric.*'.*first.*in one order") as error:
        hessian(model, x, np.arange(9) % 3)
    assert len(str(error.value)) < 450


def test_a_factor_that_is_held_constant_is_refused():
    """Without its derivative, the Hessian is symmetric all the same."""
    held = keras.layers.Lambda(lambda x: x * tf.stop_gradient(tf.sin(x)), name="held")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), held])
    x = np.random.default_rng(0).normal(size=(9, 2))
    with pytest.raises(ValueError, match="StopGradient in layer 'held'"):
        hessian(model, x, np.arange(9) % 3)


class Attention(keras.layers.Layer):
    """The gradient by the bias of the keys is zero but for rounding."""

    def __init__(self, dtype):
        super().__init__(dtype=dtype)
        self.attention = keras.layers.MultiHeadAttention(2, 3, dtype=dtype)

    def call(self, x):
        return self.attention(x, x)


def with_scales(dtype):
    """Entries of the Hessian from 1e-8 to 1e+8."""
    large = keras.layers.Rescaling(1e4, dtype=dtype)
    small = keras.layers.Rescaling(1e-4, dtype=dtype)
    return [large, keras.layers.Dense(4, "tanh", dtype=dtype), small]


MIDDLES = {
    "convolution": lambda dtype: [
        keras.layers.Conv1D(4, 3, activation="gelu", dtype=dtype),
        keras.layers.LayerNormalization(dtype=dtype),
        keras.layers.MaxPooling1D(dtype=dtype),
    ],
    "recurrent": lambda dtype: [keras.layers.GRU(3, use_cudnn=False, dtype=dtype)],
    "unrolled": lambda dtype: [
        keras.layers.AveragePooling1D(4),
        keras.layers.GRU(3, unroll=True, dtype=dtype),
    ],
    "attention": lambda dtype: [Attention(dtype), keras.layers.UnitNormalization(dtype=dtype)],
    "deep": lambda dtype: [keras.layers.Dense(5, "tanh", dtype=dtype) for _ in range(12)],
    "scales": with_scales,
    "resized": lambda dtype: [
        keras.layers.Reshape((8, 3, 1)),
        keras.layers.Resizing(5, 5, dtype=dtype),
    ],
}


@pytest.mark.parametrize(
    "name", [nightly(name) if name == "recurrent" else name for name in MIDDLES]
)
def test_rounding_is_no_asymmetry(name):
    """A model in float32, whose Hessian is that of the same in float64 to within rounding."""
    found, weights = [], None
    for dtype in ("float64", "float32"):
        keras.utils.set_random_seed(3)
        layers = [
            *MIDDLES[name](dtype),
            keras.layers.Flatten(),
            keras.layers.Dense(3, dtype=dtype),
        ]
        model = keras.Sequential([keras.Input((8, 3), dtype=dtype), *layers])
        if weights is not None:
            model.set_weights(weights)
        weights = model.get_weights()
        x = np.random.default_rng(0).normal(size=(6, 8, 3))
        found.append(hessian(model, x, np.arange(6) % 3))
    truth, rounded = found
    np.testing.assert_allclose(rounded, truth, atol=1e-4 * np.abs(truth).max())


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_rounding_of_half_precision_is_no_curvature(dtype):
    """The loss of softmax regression is convex."""
    x = np.random.default_rng(0).normal(size=(9, 2)).astype("float32")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, dtype=dtype)])
    with pytest.warns(UserWarning, match="zero to rounding"):
        assert hessian_log_determinant(model, x, np.arange(9) % 3) == -np.inf


def test_nan_is_an_error():
    with pytest.raises(ValueError, match="NaN or infinite"):
        hessian(network(2), np.array([[1.0, np.nan]]), np.array([0]))


def test_logits_are_no_probabilities():
    with pytest.raises(ValueError, match=r"no probabilities .* from_logits=False"):
        hessian(network(2), np.ones((1, 2)), np.array([0]), from_logits=False)


def test_labels_that_do_not_fit():
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"0\.\.2.* Given: label 3 for example 1"):
        hessian(network(3), x, np.array([0, 3]))
    with pytest.raises(ValueError, match="same number of examples"):
        hessian(network(3), x, np.array([0, 1, 2]))
    with pytest.raises(ValueError, match=r"\(N, 3\)\. Given: shape \(2, 2\)"):
        hessian(network(3), x, np.array([[0.5, 0.5], [0.5, 0.5]]))


def test_weights_of_several_dtypes():
    """Layers of two precisions: the matrix of all of them in float64, to within float32."""
    model = network(4, [3])
    x, y = np.random.default_rng(0).normal(size=(5, 4)), np.arange(5) % 3
    expected = hessian(model, x, y)
    mixed = keras.models.clone_model(
        model, clone_function=lambda layer: type(layer).from_config(with_dtype(layer))
    )
    mixed.set_weights(model.get_weights())
    assert len({v.dtype for v in mixed.trainable_variables}) == 2
    np.testing.assert_allclose(hessian(mixed, x, y), expected, rtol=1e-4, atol=1e-6)


def with_dtype(layer):
    first = layer.name.startswith("dense") and layer.units == 3
    return layer.get_config() | ({"dtype": "float32"} if first else {})


def test_matrices_beyond_the_memory_are_refused():
    model = keras.Sequential([keras.Input((200,)), keras.layers.Dense(200)])
    with pytest.raises(ValueError, match=r"16384 .* has 40200, takes 12 GiB"):
        hessian(model, np.ones((2, 200)), [0, 1])
