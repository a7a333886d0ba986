"""Classifiers and optimizers with a way of their own: trained as by Keras' own fit, or refused."""

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
from closed_forms import algorithm_1
from marks import each_value, nightly

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel
from fisher_keras.regularizer.sub_batches import split_batch

NUM_CLASSES = 3
BINARY = keras.losses.BinaryCrossentropy(from_logits=True)


def sparse_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data(count=12):
    random = np.random.RandomState(0)
    return random.randn(count, 4), random.randint(0, NUM_CLASSES, count)


def network(make=keras.Model, hidden=5):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    features = keras.layers.Dense(hidden, "tanh")(inputs)
    return make(inputs, keras.layers.Dense(NUM_CLASSES, name="out")(features))


def compiled(model, loss=None, optimizer=None, compile_kwargs=None, **kwargs):
    arguments = {"alpha": 0.1, "num_sub_batches": 3, "seed": 5, **kwargs}
    wrapped = FisherRegularizedModel(model, **arguments)
    options = {"jit_compile": False, **(compile_kwargs or {})}
    wrapped.compile(optimizer or keras.optimizers.SGD(0.1), loss or sparse_loss(), **options)
    return wrapped


def plain(model, loss=None, optimizer=None, **kwargs):
    model.compile(
        optimizer or keras.optimizers.SGD(0.1), loss or sparse_loss(), jit_compile=False, **kwargs
    )
    return model


def assert_same_weights(first, second, **kwargs):
    for a, b in zip(first.trainable_variables, second.trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-5, "atol": 1e-7, **kwargs})


# ------------------------------------------------------------------------ gradients accumulate


@pytest.mark.parametrize(("scheduled", "scaled"), each_value([False, True], [False, True]))
def test_the_accumulated_gradient_is_clipped(float64, scheduled, scaled):
    """Three mini-batches, each with a split of its own, and one update with their clipped mean."""
    x, y = data(36)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(NUM_CLASSES)])
    before = model.get_weights()
    batches, gradients = np.split(np.arange(36), 3), []
    for index, rows in enumerate(batches):
        split = split_batch(tf.constant(12), 3, tf.constant([5, index], tf.int64))
        parts = np.split(split.permutation.numpy(), 3)
        gradients.append(algorithm_1(x[rows], y[rows], before, parts, 0.1, 20.0)[2])
    mean = [np.mean(g, axis=0) for g in zip(*gradients, strict=True)]
    norm = np.sqrt(sum(np.sum(g**2) for g in mean))
    optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=3)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
    beta = keras.optimizers.schedules.PiecewiseConstantDecay([0], [20.0, 0.0])
    clip_norm = 0.5 * norm
    wrapped = compiled(
        model, optimizer=optimizer, beta=beta if scheduled else 20.0, clip_norm=clip_norm
    )
    wrapped.fit(x, y, batch_size=12, shuffle=False, verbose=0)
    for now, was, gradient in zip(model.get_weights(), before, mean, strict=True):
        np.testing.assert_allclose(now, was - 0.25 * gradient, rtol=1e-9)
    if not scheduled:
        return
    # From the second update on, beta is 0, and the clipping the same.
    clipped = keras.optimizers.SGD(0.5, global_clipnorm=clip_norm)
    twin = plain(keras.models.clone_model(model), optimizer=clipped)
    twin.set_weights(model.get_weights())
    wrapped.fit(x, y, batch_size=12, shuffle=False, verbose=0)
    twin.train_on_batch(x, y)
    assert_same_weights(model, twin)


@pytest.mark.parametrize("own", [{}, {"clipnorm": 0.05}, nightly({"clipvalue": 0.01})])
def test_accumulation_is_keras_own_but_for_the_regularizer(own):
    """So small a beta changes nothing, and the optimizer clips in its own way afterwards."""
    x, y = data(24)
    twin, model = network(), network()
    optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2, **own)
    compiled(model, optimizer=optimizer, beta=1e-30, clip_norm=0.1).fit(
        x, y, batch_size=12, shuffle=False, verbose=0
    )

    with tf.GradientTape() as tape:
        loss = sparse_loss()(y, twin(x))
    gradient, _ = tf.clip_by_global_norm(tape.gradient(loss, twin.trainable_variables), 0.1)
    optimizer = keras.optimizers.SGD(0.5, **own)
    optimizer.apply(gradient, twin.trainable_variables)
    assert_same_weights(model, twin)


# ------------------------------------------------------------------------- a classifier's own ways


class OwnLoss(keras.Model):
    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return 3 * loss + keras.ops.sum(keras.ops.square(y_pred))


class OldLoss(keras.Model):
    """Without `training`, as Keras allows, and without Keras' own loss."""

    def compute_loss(self, x, y, y_pred, sample_weight=None):
        losses = keras.ops.sparse_categorical_crossentropy(y, y_pred, from_logits=True)
        return 2 * keras.ops.mean(losses)


class OtherNames(keras.Model):
    """Its arguments have names of their own, for Keras gives them by position."""

    def compute_loss(self, inputs, labels, logits, weights=None, training=True):
        return 2 * super().compute_loss(inputs, labels, logits, weights, training)

    def compute_metrics(self, inputs, labels, logits, sample_weight=None):
        return super().compute_metrics(inputs, labels, logits, sample_weight)


class OwnMetrics(keras.Model):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mine = keras.metrics.Mean(name="mine")

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.mine.update_state(keras.ops.mean(y_pred))
        return super().compute_metrics(x, y, y_pred, sample_weight)


@pytest.mark.parametrize("make", [OwnLoss, OldLoss, OtherNames, OwnMetrics])
def test_without_the_regularizer_its_losses_and_metrics_are_those_of_keras(make):
    x, y = data()
    models = plain(network(make)), compiled(network(make), beta=0)
    first, second = (
        m.fit(x, y, batch_size=6, epochs=2, shuffle=False, validation_data=(x, y), verbose=0)
        for m in models
    )
    for name, values in first.history.items():
        np.testing.assert_allclose(second.history[name], values, rtol=1e-5, err_msg=name)
    assert_same_weights(models[0], models[1].model)


def test_sharpness_aware_minimization_descends_its_loss(float64):
    """A step to w + epsilon and a step from w, both of three times Keras' loss."""
    x, y = data()
    model = SharpnessAwareModel(network(OwnLoss), rho=0.3)
    model.compile(keras.optimizers.SGD(1.0), sparse_loss(), jit_compile=False)
    reference = network()
    variables, before = reference.trainable_variables, reference.get_weights()

    def own_loss():
        with tf.GradientTape() as tape:
            outputs = reference(x)
            loss = 3 * sparse_loss()(y, outputs) + tf.reduce_sum(outputs**2)
        return loss, tape.gradient(loss, [v.value for v in variables])

    here, gradient = own_loss()
    norm = tf.linalg.global_norm(gradient)
    for variable, g in zip(variables, gradient, strict=True):
        variable.assign_add(0.3 * g / norm)
    there, gradient = own_loss()
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["loss"] == pytest.approx(float(here))
    assert logs["sharpness"] == pytest.approx(float(there - here))
    for now, was, g in zip(model.get_weights(), before, gradient, strict=True):
        np.testing.assert_allclose(now, was - g, rtol=1e-9, atol=1e-12)


def test_sharpness_aware_minimization_evaluates_and_logs_as_keras_does():
    x, y = data()
    for make in (OwnLoss, OldLoss, OwnMetrics):
        model = SharpnessAwareModel(network(make))
        model.compile("sgd", sparse_loss())
        expected = plain(network(make)).evaluate(x, y, return_dict=True, verbose=0)
        assert model.evaluate(x, y, return_dict=True, verbose=0) == pytest.approx(expected)


@pytest.mark.parametrize(("make", "eager"), each_value([OwnLoss, OldLoss], [False, True]))
def test_its_loss_is_the_loss_and_not_the_regularizer(float64, make, eager):
    """The whole batch is the one sub-batch, so that shared gradients are the same."""
    x, y = data()
    own, keras_own = network(make), network()
    with tf.GradientTape() as tape:
        outputs = own(x)
        losses = keras.ops.sparse_categorical_crossentropy(y, outputs, from_logits=True)
        loss = 2 * tf.reduce_mean(losses)
        if make is OwnLoss:
            loss = 1.5 * loss + tf.reduce_sum(outputs**2)
    expected = tape.gradient(loss, own.trainable_variables)
    bare = compiled(keras_own, num_sub_batches=1, beta=1.0).regularized_gradients(x, y)
    hard = compiled(keras_own, num_sub_batches=1, beta=0).regularized_gradients(x, y)
    for shared in (False, True):
        model = compiled(
            own,
            num_sub_batches=1,
            beta=1.0,
            share_gradients=shared,
            compile_kwargs={"run_eagerly": eager},
        )
        found = model.regularized_gradients(x, y)
        np.testing.assert_allclose(found[1], loss)
        np.testing.assert_allclose(found[2], bare[2])
        for f, e, b, h in zip(found[0], expected, bare[0], hard[0], strict=True):
            np.testing.assert_allclose(f, e + b - h, rtol=1e-9, atol=1e-12)


class NamedLabels(keras.Model):
    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        return super().compute_loss(x, y["label"], y_pred, sample_weight, training)


def test_labels_among_other_tensors():
    """Only the classifier knows which of them the loss takes: Keras' own step may have them."""
    x, y = data()
    several = {"group": 0 * y, "label": y}
    model = compiled(network(NamedLabels))
    expected = tf.nest.flatten(compiled(network()).regularized_gradients(x, y))
    found = tf.nest.flatten(model.regularized_gradients(x, {"label": y}))
    for mine, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"which of several .* Given: .*'group': \(12,\)"):
        model.regularized_gradients(x, several)
    for single in (model := compiled(network(NamedLabels), beta=0), plain(network(NamedLabels))):
        single.train_on_batch(x, several)
    assert_same_weights(model, single)


@pytest.mark.parametrize(
    "step",
    [
        *("train_step", "test_step", "predict_step"),
        *("losses", "trainable_variables", "trainable_weights"),
    ],
)
@pytest.mark.parametrize("method", [FisherRegularizedModel, SharpnessAwareModel])
def test_its_steps_would_not_be_used(method, step):
    member = (lambda self, data: {}) if step.endswith("step") else property(lambda self: [])
    own = type("Own", (keras.Model,), {step: member})
    message = rf"Own.{step} would not be used, for {method.__name__} .*Given: "
    with pytest.raises(ValueError, match=message):
        method(network(own))


# ---------------------------------------------------------------- several dtypes


@pytest.mark.parametrize(("shared", "clip_norm"), [nightly(False, None), (True, 1e-2)])
def test_gradients_of_several_dtypes(shared, clip_norm):
    """A bfloat16 model with float32 adapters, near a float32 one with the same weights."""
    x, y = data()
    keras.config.set_dtype_policy("bfloat16")
    try:
        half = network(hidden=16)
    finally:
        keras.config.set_dtype_policy("float32")
    full = network(hidden=16)
    for model in (half, full):
        model.layers[1].enable_lora(2)
    full.set_weights([np.array(w, "float32") for w in half.get_weights()])
    for matrix in ("lora_kernel_a", "lora_kernel_b"):
        value = np.random.RandomState(2).randn(*getattr(full.layers[1], matrix).shape)
        for model in (half, full):
            getattr(model.layers[1], matrix).assign(value)
    assert len({v.dtype for v in half.trainable_variables}) == 2
    logs = []
    for model in (half, full):
        wrapped = compiled(
            model,
            beta=keras.optimizers.schedules.PiecewiseConstantDecay([9], [5.0, 0.0]),
            gradient="hessian_vector_product",
            share_gradients=shared,
            clip_norm=clip_norm,
        )
        before = [np.array(v, "float32") for v in model.trainable_variables]
        logs.append(wrapped.train_on_batch(x, y, return_dict=True))
        moved = [
            np.array(v, "float32") - b
            for v, b in zip(model.trainable_variables, before, strict=True)
        ]
        logs[-1]["moved"] = np.sqrt(sum(np.sum(m**2) for m in moved[1:3]))
    for name, value in logs[1].items():
        assert logs[0][name] == pytest.approx(value, rel=0.05), name


@pytest.mark.parametrize("method", [FisherRegularizedModel, SharpnessAwareModel])
def test_float8_is_refused(method):
    model = network()
    for layer in model.layers[1:]:
        layer.quantize("float8")
    with pytest.raises(ValueError, match=r"^Models in float8 are not supported.*Given: .*float8"):
        method(model).compile("sgd", sparse_loss())


# ------------------------------------------------------------------- inputs, outputs and losses


@pytest.mark.parametrize(
    ("by_name", "shared"),
    each_value({"dict": {"out": sparse_loss()}, "list": [sparse_loss()]}, [False, True]),
)
def test_one_loss_in_a_structure(by_name, shared):
    x, y = data()
    logs = []
    for loss, metrics in ((sparse_loss(), ["accuracy"]), (by_name, {"out": ["accuracy"]})):
        model = compiled(
            network(), loss, share_gradients=shared, compile_kwargs={"metrics": metrics}
        )
        logs.append(model.train_on_batch(x, y, return_dict=True))
    assert logs[0] == logs[1]
    with pytest.raises(ValueError, match="other"):
        compiled(network(), {"other": sparse_loss()}).train_on_batch(x, y)


@pytest.mark.parametrize("shared", [nightly(False), True])
def test_sparse_inputs(shared):
    x, y = data(11)
    x = x * (x > 0)
    results = []
    for inputs in (x, scipy.sparse.csr_matrix(x)):
        model = compiled(network(), share_gradients=shared, beta=20.0)
        model.fit(inputs, y, batch_size=11, shuffle=False, verbose=0)
        results.append(model)
    assert_same_weights(*results)


@pytest.mark.parametrize("shared", [False, True])
def test_outputs_of_shape_b(shared):
    x, y = data()
    results = []
    for layers in ([], [keras.layers.Reshape(())]):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1), *layers])
        results.append(compiled(model, BINARY, share_gradients=shared, beta=20.0))
        results[-1].train_on_batch(x, (y > 0).astype(float))
    assert_same_weights(*results)


@pytest.mark.parametrize("options", [{}, {"share_gradients": True}, {"beta": 0}])
def test_outputs_that_are_not_of_one_classifier(options):
    """The regularizer refuses them; without it, Keras decides."""
    single, expected = (
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]) for _ in range(2)
    )
    batch = np.ones((12, 4)), np.zeros(12)
    model = compiled(single, **options)
    if options != {"beta": 0}:
        with pytest.raises(ValueError, match=r"shape \(B, K\) or .*, K > 1.*\(None, 1\)"):
            model.train_on_batch(*batch)
        return
    expected.set_weights(single.get_weights())
    for one in (model, plain(expected)):
        one.train_on_batch(*batch)
    assert_same_weights(single, expected)


@pytest.mark.parametrize("layer", [keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN])
def test_stateful_layers(layer):
    inputs = keras.Input(batch_shape=(12, 5, 4))
    recurrent = layer(3, stateful=True, name="recurrent")
    model = keras.Model(inputs, keras.layers.Dense(NUM_CLASSES)(recurrent(inputs)))
    with pytest.raises(ValueError, match=r"Use stateful=False\. Given: layer 'recurrent'"):
        compiled(model).train_on_batch(np.ones((12, 5, 4)), np.zeros(12))


# ------------------------------------------------------------------------------------- it is built


def test_built_as_its_classifier_is(tmp_path):
    x, y = data()
    model = FisherRegularizedModel(network())
    assert model.built
    assert model.count_params() == network().count_params()
    model.save_weights(tmp_path / "model.weights.h5")
    model.load_weights(tmp_path / "model.weights.h5")
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(served.serve(x.astype("float32")), model.model(x), rtol=1e-5)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    compiled(network()).fit(x, y, verbose=0, callbacks=[backup])


def test_not_built_as_long_as_its_classifier_is_not():
    model = FisherRegularizedModel(keras.Sequential([keras.layers.Dense(NUM_CLASSES)]))
    assert not model.built
    model(np.ones((2, 4)))
    assert model.built
    model = compiled(keras.Sequential([keras.layers.Dense(NUM_CLASSES)]))
    gradient, *_ = model.regularized_gradients(*data())  # Builds it, as `fit` does.
    assert [g.shape for g in gradient] == [v.shape for v in model.trainable_variables]
    assert gradient
