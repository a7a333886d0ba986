"""Losses, outputs and inputs of a regularized classifier."""

import contextlib
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import each_value, nightly
from small_models import (
    NUM_CLASSES,
    Subclassed,
    assert_close,
    assert_equal,
    compiled,
    conv_net,
    images,
    smoothed_loss,
    sparse_loss,
)

from fisher_keras import SharpnessAwareModel


@pytest.mark.parametrize(
    ("loss", "activation", "one_hot"),
    [
        ("sparse_categorical_crossentropy", "softmax", False),
        nightly("SparseCategoricalCrossentropy", "softmax", False),
        nightly("categorical_crossentropy", "softmax", True),
        nightly(keras.losses.sparse_categorical_crossentropy, "softmax", False),
        nightly(keras.losses.SparseCategoricalCrossentropy(), "softmax", False),
        nightly(keras.losses.CategoricalCrossentropy(label_smoothing=0.1), "softmax", True),
        (keras.losses.CategoricalFocalCrossentropy(from_logits=True), None, True),
        (smoothed_loss(), None, True),
    ],
)
def test_losses_by_name_and_object(loss, activation, one_hot):
    x, y = images()
    labels = np.eye(NUM_CLASSES)[y] if one_hot else y
    for shared in (False, True):
        model = compiled(conv_net(activation=activation), loss, alpha=0.1, share_gradients=shared)
        _, _, regularizer = model.regularized_gradients(x, labels)
        assert float(regularizer) == pytest.approx(hard_label_regularizer(), rel=1e-3)
    model.fit(x, labels, verbose=0)


@functools.cache
def hard_label_regularizer():
    """R_alpha of the sparse cross-entropy from logits, which all classifiers here have."""
    return float(compiled(conv_net(), alpha=0.1).regularized_gradients(*images())[2])


def test_softmax_and_logits_give_the_same_gradients(float64):
    x, y = images()
    logits = compiled(conv_net(), alpha=0.1).regularized_gradients(x, y)
    softmax = compiled(
        conv_net(activation="softmax"), "sparse_categorical_crossentropy", alpha=0.1
    ).regularized_gradients(x, y)
    assert_close(logits[0], softmax[0], rtol=1e-7, atol=1e-9)


def test_a_single_sigmoid_unit_equals_two_logits(float64):
    random = np.random.RandomState(1)
    x, y = random.randn(8, 5), random.randint(0, 2, 8)
    kernel = random.randn(5, 1)
    results = []
    for from_logits, activation in ((True, None), (False, "sigmoid")):
        single = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, activation)])
        model = compiled(
            single, keras.losses.BinaryCrossentropy(from_logits=from_logits), alpha=0.1
        )
        model.set_weights([kernel, np.zeros(1)])
        results.append(model.regularized_gradients(x, y))
    double = compiled(
        keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, use_bias=False)]), alpha=1e-9
    )
    double.set_weights([np.hstack([np.zeros((5, 1)), kernel])])
    np.testing.assert_allclose(results[0][1], double.regularized_gradients(x, y)[1])
    assert_close(results[0][0], results[1][0], rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "activation", "message"),
    [
        ("sparse_categorical_crossentropy", None, "from_logits=True"),
        (sparse_loss(), "softmax", "from_logits=False"),
        ("mse", None, "cross-entropy"),
        (lambda y, p: 0.0, None, "cross-entropy"),
        (sparse_loss(ignore_class=0), None, "ignore_class"),
        (sparse_loss(axis=1), None, "classes on the last axis"),
    ],
)
def test_losses_that_do_not_fit_raise_at_compile(loss, activation, message):
    with pytest.raises(ValueError, match=message):
        compiled(conv_net(activation=activation), loss)


class WithoutTraining(Subclassed):
    def call(self, inputs):
        return self.head(self.hidden(inputs))


TRAINED_BY = {
    "separate": {"share_gradients": False},
    "shared": {"share_gradients": True},
    "sharpness-aware": {"method": SharpnessAwareModel},
}


@pytest.mark.parametrize(
    ("network", "options", "eager"),
    each_value([Subclassed, WithoutTraining], TRAINED_BY, [False, True]),
)
def test_subclassed_models_train_unbuilt(network, options, eager):
    random = np.random.RandomState(1)
    x, y = random.randn(30, 5), random.randint(0, NUM_CLASSES, 30)
    model = compiled(network(), compile_kwargs={"run_eagerly": eager}, **options)
    history = model.fit(x, y, batch_size=8, epochs=5, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


class Scaled(Subclassed):
    """Ends in a product, of which only the values tell that it is none of probabilities."""

    def call(self, inputs, training=None):
        return 1.0 * super().call(inputs, training)


@pytest.mark.parametrize(("softmax", "eager"), each_value([False, True], [False, True]))
def test_outputs_that_only_values_tell_apart_raise_when_the_first_step_runs(softmax, eager):
    random = np.random.RandomState(1)
    x, y = random.randn(8, 5), random.randint(0, NUM_CLASSES, 8)
    wrong = sparse_loss() if softmax else "sparse_categorical_crossentropy"
    # Keras' "auto" is XLA on a GPU, and XLA leaves assertions out.
    options = {"run_eagerly": eager, "jit_compile": False}
    model = compiled(Scaled(softmax), wrong, compile_kwargs=options)
    with pytest.raises(tf.errors.InvalidArgumentError, match="from_logits"):
        model.fit(x, y, verbose=0)


@pytest.mark.parametrize("softmax", [False, True])
def test_outputs_that_do_not_fit_the_loss_are_refused_by_the_graph(softmax):
    """Before XLA compiles the step, and leaves assertions out."""
    random = np.random.RandomState(1)
    x, y = random.randn(8, 5), random.randint(0, NUM_CLASSES, 8)
    right = "sparse_categorical_crossentropy" if softmax else sparse_loss()
    wrong = sparse_loss() if softmax else "sparse_categorical_crossentropy"
    compiled(Subclassed(softmax), right).fit(x, y, verbose=0)
    model = compiled(Subclassed(softmax), wrong, compile_kwargs={"jit_compile": True})
    with pytest.raises(ValueError, match="from_logits"):
        model.fit(x, y, verbose=0)


ONE_HOT = np.eye(NUM_CLASSES)[np.arange(8) % NUM_CLASSES]
NO_DISTRIBUTIONS = {
    "void": np.where(np.arange(8)[:, np.newaxis] == 5, 0, ONE_HOT),
    "weights": np.where(np.arange(8)[:, np.newaxis] == 5, 2, 1) * ONE_HOT,
    "several": np.where(np.arange(8)[:, np.newaxis] == 5, 1, ONE_HOT),
}


@pytest.mark.parametrize("labels", NO_DISTRIBUTIONS)
def test_one_hot_labels_that_are_no_distributions_are_refused(labels):
    model = compiled(conv_net(batch_norm=False), smoothed_loss(), num_sub_batches=2)
    x, y = images(8)[0], NO_DISTRIBUTIONS[labels]
    with pytest.raises(tf.errors.InvalidArgumentError, match="must add up to 1"):
        model.regularized_gradients(x, y)
    # With a weight of 0, they may be anything.
    weights = (np.arange(8) != 5).astype("float32")
    found = model.regularized_gradients(x, y, weights)
    assert_equal(found[1:], model.regularized_gradients(x, ONE_HOT, weights)[1:])


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_soft_labels_are_distributions_in_any_dtype(dtype):
    """One-hot ones, mixtures and smoothed ones, to rounding."""
    y = ONE_HOT if dtype == "uint8" else 0.61 * ONE_HOT + 0.29 * ONE_HOT[::-1] + 0.1 / 3
    model = compiled(conv_net(), smoothed_loss(), compile_kwargs={"jit_compile": False})
    logs = model.train_on_batch(images(8)[0], y.astype(dtype), return_dict=True)
    assert np.isfinite(logs["fisher_trace"])


def test_two_inputs():
    first, second = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    joined = keras.layers.Concatenate()([first, second])
    model = compiled(keras.Model([first, second], keras.layers.Dense(NUM_CLASSES)(joined)))
    random = np.random.RandomState(1)
    x = [random.randn(20, 4), random.randn(20, 3)]
    history = model.fit(x, random.randint(0, 3, 20), batch_size=8, epochs=2, verbose=0).history
    assert np.isfinite(history["fisher_trace"]).all()


class Text(keras.Model):
    """Has a layer that it does not use."""

    def __init__(self):
        super().__init__()
        self.embedding = keras.layers.Embedding(20, 4)
        self.head = keras.layers.Dense(NUM_CLASSES)
        self.unused = keras.layers.Dense(2)

    def build(self, shape):
        self.embedding.build(shape)
        self.head.build((None, 4))
        self.unused.build((None, 4))

    def call(self, inputs):
        return self.head(keras.ops.mean(self.embedding(inputs), axis=1))


BETAS = {
    "constant": 1.0,
    "schedule": keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.0, 1.0]),
}


@pytest.mark.parametrize(("beta", "shared"), each_value(BETAS, [False, True]))
def test_embeddings_and_variables_that_the_loss_does_not_reach(beta, shared):
    random = np.random.RandomState(1)
    x, y = random.randint(0, 20, (16, 6)), random.randint(0, NUM_CLASSES, 16)
    model = compiled(Text(), beta=beta, share_gradients=shared)
    model(x)
    unused = [v.numpy() for v in model.model.unused.variables]
    warned = pytest.warns(UserWarning, match="Gradients do not exist")
    with contextlib.nullcontext() if shared else warned:
        model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert_equal(unused, [v.numpy() for v in model.model.unused.variables])


def test_the_loss_of_another_compilation_is_forgotten():
    """Keras has taken the other loss for L."""
    x, y = images()
    model = compiled(conv_net())
    with pytest.raises(ValueError, match="needs the cross-entropy"):
        model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"has no loss\. Call compile"):
        model.train_on_batch(x, y)


def test_a_subclass_whose_config_leaves_out_its_logits():
    class Terse(keras.losses.SparseCategoricalCrossentropy):
        def get_config(self):
            return {"name": self.name, "reduction": self.reduction}

    x, y = images()
    gradients = [
        compiled(conv_net(), make(from_logits=True), seed=1).regularized_gradients(x, y)[0]
        for make in (Terse, keras.losses.SparseCategoricalCrossentropy)
    ]
    assert_close(*gradients, rtol=1e-4, atol=1e-6)
