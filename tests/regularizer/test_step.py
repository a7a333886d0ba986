"""A method of a few lines is right in all that Keras asks of it, by `TrainingMethod`."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from closed_forms import examples, softmax_regression
from gradient_norm_penalty import GradientNormPenalty
from marks import each_value
from small_models import (
    NETWORKS,
    NUM_CLASSES,
    assert_close,
    assert_equal,
    conv_net,
    dense_net,
    images,
    softmax_regression_model,
    sparse_loss,
    state_of,
    weights_of,
)
from test_own_ways import OwnLoss, network

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel
from fisher_keras.regularizer.step import TrainingMethod


def compiled(model, optimizer=None, loss=None, **options):
    wrapped = GradientNormPenalty(model, **options)
    optimizer = optimizer or keras.optimizers.SGD(1.0)
    wrapped.compile(optimizer, loss or sparse_loss(), jit_compile=False)
    return wrapped


def penalized(x, y, weights, strength):
    loss, gradient = softmax_regression(x, y, weights)
    return loss + strength * np.sqrt(sum(np.sum(g**2) for g in gradient))


@pytest.mark.parametrize("loss_scaling", [False, True])
def test_its_step_is_the_derivative_of_the_penalized_loss(float64, loss_scaling):
    x, y = examples(12)
    optimizer = keras.optimizers.SGD(1.0)
    if loss_scaling:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
    model = compiled(softmax_regression_model(), optimizer, strength=0.3, step_length=1e-6)
    before = weights_of(model)
    logs = model.train_on_batch(x, y, return_dict=True)
    loss, _ = softmax_regression(x, y, before)
    assert logs["loss"] == pytest.approx(loss)
    assert logs["penalty"] == pytest.approx(penalized(x, y, before, 0.3) - loss)
    for index, (now, was) in enumerate(zip(weights_of(model), before, strict=True)):
        for position in np.ndindex(was.shape):
            values = []
            for step in (1e-6, -1e-6):
                moved = [w.copy() for w in before]
                moved[index][position] += step
                values.append(penalized(x, y, moved, 0.3))
            derivative = (values[0] - values[1]) / 2e-6
            assert was[position] - now[position] == pytest.approx(derivative, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", NETWORKS)
def test_statistics_and_seeds_end_as_in_a_plain_step(name):
    x, y = images()
    plain, wrapped = NETWORKS[name](), compiled(NETWORKS[name]())
    bare = keras.Sequential([plain])
    bare.compile("sgd", sparse_loss())
    bare.train_on_batch(x, y)
    wrapped.train_on_batch(x, y)
    assert_equal(state_of(wrapped.model), state_of(plain))


def test_it_descends_the_classifiers_own_loss(float64):
    """A strength of next to nothing leaves the loss alone."""
    x, y = np.random.RandomState(0).randn(12, 4), np.arange(12) % NUM_CLASSES
    plain, wrapped = network(OwnLoss), compiled(network(OwnLoss), strength=1e-12)
    plain.compile(keras.optimizers.SGD(1.0), sparse_loss())
    for model in (plain, wrapped):
        model.train_on_batch(x, y)
    assert_close(weights_of(wrapped), weights_of(plain), rtol=1e-7)
    own = type("Own", (keras.Model,), {"train_step": lambda self, data: {}})
    with pytest.raises(ValueError, match="train_step would not be used, for GradientNorm"):
        GradientNormPenalty(network(own))


def test_gradients_accumulate():
    """Two mini-batches and one update with the mean, as one batch of both where they are alike."""
    x, y = images()
    model = compiled(
        conv_net(batch_norm=False), keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
    )
    expected = compiled(conv_net(batch_norm=False), keras.optimizers.SGD(0.5))
    for _ in range(2):
        model.train_on_batch(x, y)
    expected.train_on_batch(x, y)
    assert_close(weights_of(model), weights_of(expected), rtol=1e-5, atol=1e-7)


def test_saved_in_the_middle_goes_on_to_the_same_weights(tmp_path):
    x, y = images(40)
    model = compiled(conv_net(dropout=0.4), keras.optimizers.SGD(0.1, momentum=0.9), strength=0.2)
    model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    model.save(tmp_path / "middle.keras")
    loaded = keras.saving.load_model(tmp_path / "middle.keras")
    assert (loaded.strength, loaded.step_length) == (0.2, 1e-2)
    for m in (model, loaded):
        m.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    assert_equal(weights_of(loaded), weights_of(model))


def test_logs_of_training_are_not_those_of_an_evaluation():
    x, y = images()
    history = compiled(conv_net()).fit(x, y, validation_data=(x, y), verbose=0).history
    assert set(history) == {"loss", "penalty", "val_loss"}


class Captured(keras.layers.Layer):
    """Computes in a function that keeps the variable of its first call."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones")
        self.function = tf.function(lambda x: x * self.scale.value)

    def call(self, inputs):
        return self.function(inputs)


@pytest.mark.parametrize(
    ("method", "eager"), each_value([SharpnessAwareModel, GradientNormPenalty], [False, True])
)
def test_a_captured_weight_is_refused(method, eager):
    """At other weights it would be the old one; in eager mode that would be silent."""
    x, y = images()
    layers = [keras.Input((6, 6, 2)), Captured(), keras.layers.Flatten()]
    model = method(keras.Sequential([*layers, keras.layers.Dense(NUM_CLASSES)]))
    model.compile("sgd", sparse_loss(), run_eagerly=eager)
    with pytest.raises(ValueError, match="code that has captured a variable itself"):
        model.train_on_batch(x, y)


def test_a_method_without_a_step():
    model = TrainingMethod(conv_net())
    model.compile("sgd", sparse_loss())
    with pytest.raises(NotImplementedError, match=r"TrainingMethod has no step\(losses\)"):
        model.train_on_batch(*images())


@pytest.mark.parametrize("method", [FisherRegularizedModel, SharpnessAwareModel])
def test_a_config_has_all_arguments_of_the_constructor(method):
    arguments = list(inspect.signature(method).parameters)
    assert sorted(method(conv_net()).get_config()) == sorted(arguments)


# ---------------------------------------------------------- what is promised is what is applied


def spectral_net():
    keras.utils.set_random_seed(7)
    dense = keras.layers.SpectralNormalization(keras.layers.Dense(6))
    layers = [keras.layers.Flatten(), dense, keras.layers.Dense(NUM_CLASSES)]
    return keras.Sequential([keras.Input((6, 6, 2)), *layers])


METHODS = {
    "separate": lambda model: FisherRegularizedModel(model, share_gradients=False),
    "shared": lambda model: FisherRegularizedModel(model, share_gradients=True),
    "sharpness-aware": SharpnessAwareModel,
    "gradient norm": GradientNormPenalty,
    "product": lambda model: FisherRegularizedModel(model, gradient="hessian_vector_product"),
}


@pytest.mark.parametrize(("method", "eager"), each_value(METHODS, [False, True]))
def test_a_model_that_assigns_to_its_weights_is_refused(method, eager):
    """The gradient would be that of other weights than it is applied to."""
    model = method(spectral_net())
    model.compile("sgd", sparse_loss(), run_eagerly=eager)
    with pytest.raises(ValueError, match=r"SpectralNormalization.*Given: weight '.*kernel'"):
        model.train_on_batch(*images())


def test_without_a_regularizer_it_is_a_plain_step():
    x, y = images()
    plain, model = spectral_net(), FisherRegularizedModel(spectral_net(), beta=0)
    for m in (plain, model):
        m.compile(keras.optimizers.SGD(0.1), sparse_loss())
        m.train_on_batch(x, y)
    assert_close(weights_of(model), weights_of(plain), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("shared", "xla"), each_value([False, True], [False, True]))
def test_a_custom_loop_moves_the_state_as_fit_does(shared, xla):
    x, y = images(24)
    models = [
        FisherRegularizedModel(
            dense_net() if xla else conv_net(dropout=0.4), share_gradients=shared, seed=3
        )
        for _ in range(2)
    ]
    for model in models:
        model.compile(keras.optimizers.SGD(0.1), sparse_loss(), jit_compile=xla)
    fitted, looped = models
    for rows in (slice(12), slice(12, 24)):
        fitted.train_on_batch(x[rows], y[rows])
        found = looped.regularized_gradients(x[rows], y[rows], update_state=True)
        gradient, _ = tf.clip_by_global_norm(found[0], looped.clip_norm)
        looped.optimizer.apply(gradient, looped.trainable_variables)
    assert_close(weights_of(looped), weights_of(fitted), rtol=1e-4, atol=1e-6)
    assert_close(state_of(looped.model), state_of(fitted.model), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", [{"loss_scale_factor": 8.0}, None])
def test_a_custom_loop_whose_optimizer_scales_the_loss_is_refused(optimizer):
    """It would divide by the scale a gradient that has none; `fit` multiplies it before."""
    x, y = images()
    sgd = keras.optimizers.SGD(1.0, **optimizer or {})
    model = FisherRegularizedModel(conv_net(), share_gradients=False)
    model.compile(sgd if optimizer else keras.optimizers.LossScaleOptimizer(sgd), sparse_loss())
    unscaled = FisherRegularizedModel(conv_net(), share_gradients=False, seed=model.seed)
    unscaled.compile("sgd", sparse_loss())
    expected = unscaled.regularized_gradients(x, y)[0]
    assert_close(model.regularized_gradients(x, y)[0], expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match=r"by its loss scale.*auto_scale_loss=False"):
        model.regularized_gradients(x, y[:1], update_state=True)  # Before any other check.
