"""Training with several predictions an example: losses are Keras' own, on sub-batches too."""

import keras
import numpy as np
import pytest
import several_predictions as several
import tensorflow as tf
from keras import layers
from marks import each_value

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel
from fisher_keras.regularizer.batches import Batch
from fisher_keras.regularizer.replicas import ReplicaWeights
from fisher_keras.regularizer.sub_batches import split_batch

ALPHA, BETA, SEED = 1e-2, 3.0, 5


def loss_of(model):
    activation = model.layers[-1].activation
    if activation is keras.activations.sigmoid:
        return keras.losses.BinaryCrossentropy()
    from_logits = activation is keras.activations.linear
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


def targets(model, y):
    """Keras takes labels of outputs with a last axis of 1 in that shape."""
    return y if model.output_shape[-1] > 1 else y[..., np.newaxis]


def keras_loss(model, weights, x, y, sample_weight=None):
    """Returns Keras' own loss of a batch and its gradient at any weights, in eager mode."""
    before = model.get_weights()
    model.set_weights(weights)
    with tf.GradientTape() as tape:
        loss = loss_of(model)(targets(model, y), model(x), sample_weight)
    gradient = [
        tf.convert_to_tensor(g).numpy() for g in tape.gradient(loss, model.trainable_variables)
    ]
    model.set_weights(before)
    return float(loss), gradient


def slow_algorithm_1(model, batch, parts):
    """Lines 2 to 8 of Algorithm 1 with Keras' loss of each part."""
    weights = model.get_weights()
    loss, gradient = keras_loss(model, weights, *batch)
    regularizer = 0.0
    for part in parts:
        rows = [None if array is None else array[part] for array in batch]
        here, g = keras_loss(model, weights, *rows)
        moved = [w - ALPHA * d for w, d in zip(weights, g, strict=True)]
        there, g_there = keras_loss(model, moved, *rows)
        regularizer += (here - there) / len(parts)
        gradient = [
            total + BETA * (a - b) / len(parts)
            for total, a, b in zip(gradient, g, g_there, strict=True)
        ]
    return loss, regularizer, gradient


def fisher(model, num_sub_batches, **options):
    method = FisherRegularizedModel(
        model, ALPHA, BETA, num_sub_batches, clip_norm=None, seed=SEED, **options
    )
    method.compile("sgd", loss_of(model))
    return method


@pytest.mark.parametrize(("name", "weighted"), each_value(list(several.MODELS), [True, False]))
def test_a_step_weighs_positions_as_keras_does(name, weighted, float64):
    model, x, y, weights = several.case(name, count=6)
    if not weighted:
        weights = None
    elif name.startswith("labels"):  # Keras weighs the mean over the labels.
        weights = weights[..., 0]
    method = fisher(model, 3)
    split = split_batch(tf.constant(6), 3, tf.constant([SEED, 0], tf.int64))
    parts = np.split(split.permutation.numpy(), 3)
    loss, regularizer, expected = slow_algorithm_1(model, (x, y, weights), parts)
    found = method.regularized_gradients(x, targets(model, y), weights)
    np.testing.assert_allclose([found[1], found[2]], [loss, regularizer], rtol=1e-7)
    for a, b in zip(found[0], expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["dense", "u_net"])
def test_gradients_are_shared_where_no_mask_leaves_positions_out(name, float64):
    model, x, y, weights = several.case(name, count=6)
    gradients = {}
    for share in ("auto", False, True):
        method = fisher(model, 3, share_gradients=share)
        gradients[share] = method.regularized_gradients(x, y, weights)[0]
        if share == "auto":
            assert [v for k, v in method._found.items() if k[0] == "decomposes"] == [True]
    for other in (False, True):
        for a, b in zip(gradients["auto"], gradients[other], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)


def test_labels_tell_how_many_positions_there_are():
    model = several.sequential((None, 4), layers.Dense(several.CLASSES))
    method = fisher(model, 2)

    @tf.function(
        input_signature=[tf.TensorSpec([6, None, 4]), tf.TensorSpec([6, several.LENGTH], tf.int64)]
    )
    def loss(x, y):
        return method.regularized_gradients(x, y)[1]

    x, y = np.ones((6, several.LENGTH, 4), "float32"), np.zeros((6, several.LENGTH), int)
    np.testing.assert_allclose(loss(x, y), loss_of(model)(y, model(x)), rtol=1e-6)


def test_a_loss_is_asked_about_probabilities_alone():
    model = several.sequential((several.LENGTH, 4), layers.Dense(several.CLASSES, "softmax"))
    loss = keras.losses.SparseCategoricalCrossentropy()
    of_probabilities = loss.call

    def call(y, outputs):
        tf.debugging.assert_near(tf.reduce_sum(outputs, axis=-1), 1.0, rtol=1e-4)
        return of_probabilities(y, outputs)

    loss.call = call
    method = FisherRegularizedModel(model, ALPHA, BETA, 3, share_gradients=True)
    method.compile("sgd", loss)
    x, y = np.ones((6, several.LENGTH, 4), "float32"), np.zeros((6, several.LENGTH), int)
    method.regularized_gradients(x, y)


@pytest.mark.parametrize("beta", [BETA, "schedule"])
def test_metrics_of_the_training_heed_the_mask(beta):
    """Also out of a branch, which a schedule makes of the step."""
    if beta == "schedule":
        beta = keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.0, BETA])
    model, x, y, _ = several.case("tagger", count=6)
    method = FisherRegularizedModel(model, beta=beta, num_sub_batches=3)
    method.compile("sgd", loss_of(model), metrics=["accuracy"])
    right = np.argmax(model(x), axis=-1) == y
    history = method.fit(x, y, batch_size=6, verbose=0)
    np.testing.assert_allclose(history.history["accuracy"], [right[x != 0].mean()], rtol=1e-6)


def test_sharpness_aware_steps_are_those_of_keras_loss(float64):
    model, x, y, weights = several.case("tagger", count=6)
    start = model.get_weights()
    loss, g = keras_loss(model, start, x, y, weights)
    norm = np.sqrt(sum(np.sum(d**2) for d in g))
    ascended = [w + 0.1 * d / norm for w, d in zip(start, g, strict=True)]
    there, expected = keras_loss(model, ascended, x, y, weights)
    method = SharpnessAwareModel(model, rho=0.1)
    method.compile(keras.optimizers.SGD(1.0), loss_of(model))
    history = method.fit(x, y, sample_weight=weights, verbose=0)
    np.testing.assert_allclose(history.history["sharpness"], [there - loss], rtol=1e-7)
    for before, after, d in zip(start, model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(before - after, d, rtol=1e-6, atol=1e-9)


def of_any_length(count=6):
    model = keras.Sequential(
        [keras.Input((None, 4)), layers.Dense(6, "tanh"), layers.Dense(3, "softmax")]
    )
    return model, np.ones((count, 5, 4)), np.arange(5 * count).reshape(count, 5) % 3


def test_sequences_of_any_length():
    model, x, y = of_any_length()
    for share in (False, "auto", True):
        method = fisher(model, 3, share_gradients=share)
        history = method.fit(x, y, verbose=0)
        assert np.isfinite(history.history["fisher_regularizer"]).all()
    lengths = tf.data.Dataset.from_generator(
        lambda: ((x[:, :k], y[:, :k]) for k in (3, 5)),
        output_signature=(
            tf.TensorSpec([None, None, 4], tf.float32),
            tf.TensorSpec([None, None], tf.int32),
        ),
    )
    history = fisher(model, 3).fit(lengths, verbose=0)
    assert np.isfinite(history.history["fisher_regularizer"]).all()
    with pytest.raises(ValueError, match="number of positions must be known"):
        fisher(model, 3, share_gradients=True).fit(lengths, verbose=0)


@pytest.mark.parametrize(
    ("make", "name", "weights", "message"),
    [
        (lambda m: fisher(m, 3, share_gradients=True), "tagger", None, "Use share_gradients=Fal"),
        (lambda m: SharpnessAwareModel(m, sub_batches=2), "tagger", None, "Use sub_batches=1"),
        (lambda m: fisher(m, 3), "dense", np.ones(6), "sample weights must be those of the pos"),
    ],
)
def test_what_would_be_another_mean_is_refused(make, name, weights, message):
    model, x, y, _ = several.case(name, count=6)
    method = make(model)
    method.compile("sgd", loss_of(model))
    with pytest.raises(ValueError, match=message):
        method.fit(x, y, sample_weight=weights, verbose=0)


def test_masks_on_several_replicas_are_refused():
    model, x, y, _ = several.case("tagger", count=6)
    losses = fisher(model, 3).losses_of(Batch(tf.constant(x), tf.constant(y)))
    one = tf.constant(1.0, tf.float64)
    losses.replica_weights = ReplicaWeights(one, one)
    with pytest.raises(ValueError, match=r"several replicas .* Use one device"):
        losses.part_at(losses.weights)


@pytest.mark.parametrize(
    ("head", "loss", "message"),
    [
        ("softmax", "binary_crossentropy", "softmax of 3 outputs"),
        ("sigmoid", "categorical_crossentropy", "sigmoid of 3 outputs"),
    ],
)
def test_heads_and_losses_of_other_labels(head, loss, message):
    model = FisherRegularizedModel(several.sequential((4,), layers.Dense(3, head)))
    with pytest.raises(ValueError, match=message):
        model.compile("sgd", loss)
