"""Tests that need several devices; test_replicas.py runs them where there are some.

What is marked as nightly differs from its neighbors in a way that they have, too.

R replicas with M sub-batches each are compared with one device that has R M sub-batches, which
are told to be those of the replicas.
"""

import contextlib
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from gradient_norm_penalty import GradientNormPenalty
from marks import nightly

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel
from fisher_keras.regularizer import algorithm
from fisher_keras.regularizer.sub_batches import SubBatches, split_batch

# One for all tests: TensorFlow confuses what strategies of one process reduce.
if "TF_CONFIG" in os.environ:
    STRATEGY = tf.distribute.MultiWorkerMirroredStrategy()
else:
    STRATEGY = tf.distribute.MirroredStrategy(tf.config.list_logical_devices("CPU"))
R = STRATEGY.num_replicas_in_sync
M = 2
VARIANTS = {
    "finite difference": {},
    "finite difference, shared": {"share_gradients": True},
    "product": {"gradient": "hessian_vector_product"},
    "product, shared": {"gradient": "hessian_vector_product", "share_gradients": True},
}
TOLERANCE = {"float16": 1e-4, "float32": 1e-5, "float64": 1e-12}
X = np.random.default_rng(0).normal(size=(64, 6, 6, 2))
Y = np.random.default_rng(1).integers(0, 3, 64)
WEIGHT = np.random.default_rng(2).random(64)


@pytest.fixture
def floatx(request):
    keras.config.set_floatx(request.param)
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


class Levels(keras.layers.Embedding):
    """A table that is looked up by the absolute values of images: its gradient is sparse."""

    def call(self, images):
        rows = keras.ops.floor(keras.ops.abs(images[..., 0]) * 4)
        return super().call(keras.ops.cast(rows, "int32"))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.output_dim)


def network(batch_norm=None, dropout=0.0, table=False):
    """A small network; batch_norm is None, "own" (of each replica) or "synchronized"."""
    keras.utils.set_random_seed(7)
    layers = [keras.Input((6, 6, 2)), *([Levels(40, 2)] * table)]
    layers += [keras.layers.Conv2D(4, 3, kernel_regularizer=_l2())]
    if batch_norm:
        layers += [keras.layers.BatchNormalization(synchronized=batch_norm == "synchronized")]
    layers += [
        keras.layers.Activation("tanh"),
        keras.layers.Dropout(dropout, seed=5),
        keras.layers.Flatten(),
        keras.layers.Dense(3, kernel_regularizer=_l2()),
    ]
    return keras.Sequential(layers)


def _l2():
    return keras.regularizers.L2(2.0**-7)


def regularized(classifier, replicas=1, optimizer=None, **options):
    """The model of a replica, or of one device that stands for several."""
    options = {"alpha": 0.05, "beta": 2.0, "clip_norm": 0.5, "seed": 11} | options
    count = M * replicas
    wrapped = FisherRegularizedModel(classifier, num_sub_batches=count, **options)
    return compiled(wrapped, optimizer, run_eagerly=replicas > 1)


def compiled(model, optimizer=None, **options):
    model.compile(
        optimizer or keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **options,
    )
    return model


def shares_of(size, global_size):
    """Number of examples of a batch on each replica, as TensorFlow splits it."""
    most = global_size // R
    return [min(most, max(0, size - r * most)) for r in range(R)]


@contextlib.contextmanager
def split_as_on(global_size):
    """One device splits its batches as replicas split their shares."""

    def union(batch_size, num_sub_batches, seed):
        size = int(tf.get_static_value(batch_size) or batch_size)
        permutation, sizes, first = [], [], 0
        for r, share in enumerate(shares_of(size, global_size)):
            if share:
                own = tf.stack([seed[0] + r * 2**32, seed[1]])
                split = split_batch(tf.constant(share), num_sub_batches // R, own)
                permutation.append(first + split.permutation)
                small, more = divmod(share, min(M, share))
                sizes += [small + (i < more) for i in range(min(M, share))]
            first += share
        assert sizes == sorted(sizes, reverse=True), sizes
        assert sizes[0] - sizes[-1] <= 1, sizes
        numbers = len(sizes), size // len(sizes), size % len(sizes)
        return SubBatches(tf.concat(permutation, 0), *map(tf.constant, numbers))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithm, "split_batch", union)
        yield


def state_of(model):
    return [v.numpy() for v in model.model.variables if "seed" not in v.path]


def error(mine, right):
    """The largest difference of some arrays, relative to the largest number in them."""
    largest = max(np.max(np.abs(b)) for b in right)
    pairs = zip(mine, right, strict=True)
    return max(float(np.max(np.abs(a - b))) for a, b in pairs) / largest


def assert_close(mine, right, floatx, what):
    found = error(mine, right)
    print(f"\n{what}, {R} replicas, {floatx}: {found:.0e}")  # pytest -s shows it.
    assert found < TOLERANCE[floatx]


def gradients(wrapped, size, weighted=False):
    """Gradients, loss and regularizer of a mini-batch on the replicas of a strategy."""
    dtype = keras.config.floatx()
    data = (X[:size].astype(dtype), Y[:size], *([WEIGHT[:size].astype(dtype)] * weighted))
    per_replica = STRATEGY.experimental_distribute_values_from_function(
        lambda context: tuple(
            tf.constant(np.array_split(a, R)[context.replica_id_in_sync_group]) for a in data
        )
    )

    @tf.function(autograph=False)
    def run(batch):
        return STRATEGY.run(wrapped.regularized_gradients, args=batch)

    results = run(per_replica)
    copies = [STRATEGY.experimental_local_results(v) for v in tf.nest.flatten(results)]
    flat = [[v.numpy() for v in one] for one in zip(*copies, strict=True)]
    for other in flat[1:]:
        for a, b in zip(flat[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    return flat[0]


def gradients_alone(wrapped, size, weighted=False):
    dtype = keras.config.floatx()
    data = (X[:size].astype(dtype), Y[:size], *([WEIGHT[:size].astype(dtype)] * weighted))
    with split_as_on(size):
        results = wrapped.regularized_gradients(*data)
    return [v.numpy() for v in tf.nest.flatten(results)]


# Every variant with each batch normalization; weights and dtypes with some of them.
GRADIENTS = [
    nightly("float64", "finite difference", "synchronized", True),
    ("float64", "finite difference, shared", "synchronized", True),
    nightly("float64", "product", "synchronized", True),
    nightly("float64", "product, shared", "synchronized", True),
    nightly("float64", "finite difference", None, True),
    nightly("float64", "product, shared", None, False),
    ("float32", "finite difference", "synchronized", False),
    nightly("float32", "product", None, False),
    nightly("float32", "finite difference, shared", None, True),
]


@pytest.mark.parametrize(
    ("floatx", "variant", "batch_norm", "weighted"), GRADIENTS, indirect=["floatx"]
)
def test_gradients_are_those_of_one_device(floatx, variant, batch_norm, weighted):
    with STRATEGY.scope():
        wrapped = regularized(network(batch_norm), **VARIANTS[variant])
    alone = regularized(network(batch_norm), R, **VARIANTS[variant])
    mine, right = gradients(wrapped, 16, weighted), gradients_alone(alone, 16, weighted)
    assert_close(mine, right, floatx, f"{variant}, {batch_norm} BN, weights {weighted}")


def fit(model, count, batch_size, weighted=False, epochs=2):
    dtype = keras.config.floatx()
    return model.fit(
        X[:count].astype(dtype),
        Y[:count],
        sample_weight=WEIGHT[:count].astype(dtype) if weighted else None,
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
    ).history


def assert_equal_training(alone, mine, histories, floatx, what):
    """Replicas end with the weights and moving statistics of one device, and equal logs."""
    for other in range(1, R):
        for v in mine.model.variables:
            copies = STRATEGY.experimental_local_results(v.value)
            np.testing.assert_array_equal(copies[0], copies[other])
    assert_close(state_of(mine), state_of(alone), floatx, what)
    assert histories[0].keys() == histories[1].keys()
    for name, values in histories[0].items():
        # Keras holds metrics in float32.
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-4, atol=1e-7, err_msg=name)


def phases():
    return keras.optimizers.schedules.PiecewiseConstantDecay([0, 2], [0.0, 2.0, 0.5])


SGD = keras.optimizers.SGD
# Arguments of `network` and of `regularized`, the optimizer, and those of `fit`.
TRAININGS = {
    "plain": ({}, {}, None, {}),
    "own statistics": ({"batch_norm": "own"}, {"share_gradients": True}, None, {}),
    "schedule, shared, synchronized": (
        {"batch_norm": "synchronized"},
        {"beta": phases, "share_gradients": True},
        None,
        {},
    ),
    "ghost": ({"batch_norm": "own"}, {"beta": 0.0, "share_gradients": True}, None, {}),
    "all options of the step": (
        {"batch_norm": "own", "dropout": 0.5},
        {
            "beta": None,
            "strength": 2.0,
            "interval": 3,
            "step_length": 0.1,
            "direction": "central",
            "share_gradients": True,
        },
        lambda: SGD(0.1, momentum=0.5, gradient_accumulation_steps=2),
        {"count": 64},
    ),
    "a table, shared": ({"table": True}, {"share_gradients": True, "interval": 2}, None, {}),
    "uneven": ({"batch_norm": "synchronized"}, {}, None, {"count": 31, "weighted": True}),
    "uneven, shared": (
        {"batch_norm": "own"},
        {"share_gradients": True},
        None,
        {"count": 31, "weighted": True},
    ),
    "an empty share, product": (
        {"batch_norm": "own"},
        VARIANTS["product, shared"],
        None,
        {"count": 5 * R + 2 * R - 2, "batch_size": 2 * R},
    ),
    "accumulation, schedule": (
        {},
        {"beta": phases},
        lambda: SGD(0.1, gradient_accumulation_steps=2, weight_decay=0.1),
        {"count": 64},
    ),
    "overwriting means": (
        {},
        {},
        lambda: SGD(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3),
        {"count": 64},
    ),
    "AdamW": ({}, {"clip_norm": None}, lambda: keras.optimizers.AdamW(0.01), {}),
    "Nadam": ({}, {}, lambda: keras.optimizers.Nadam(0.01), {}),
    "clipping of the optimizer": (
        {},
        {"clip_norm": None},
        lambda: SGD(0.1, global_clipnorm=0.3),
        {},
    ),
    "loss scaling and accumulation": (
        {},
        {},
        lambda: keras.optimizers.LossScaleOptimizer(SGD(0.1, gradient_accumulation_steps=2)),
        {"count": 64},
    ),
}
# What the others have is in one of these, too, or is Keras' own.
IN_CI = ("plain", "all options of the step", "a table, shared", "accumulation, schedule")
IN_CI += ("an empty share, product",)
# What differs in these is the network: an evaluation knows nothing of the rest.
EVALUATED = ["plain", "own statistics", "schedule, shared, synchronized", "overwriting means"]


@pytest.mark.parametrize("name", [name if name in IN_CI else nightly(name) for name in TRAININGS])
def test_a_training_is_that_of_one_device(float64, name):
    of_network, options, optimizer, of_fit = TRAININGS[name]
    of_fit = {"count": 32, "batch_size": 16} | of_fit

    def model(replicas):
        given = {key: value() if value is phases else value for key, value in options.items()}
        made = optimizer() if optimizer else None
        return regularized(network(**of_network), replicas, made, **given)

    with STRATEGY.scope():
        mine = model(1)
    alone = model(R)
    history = fit(mine, **of_fit)
    with split_as_on(of_fit["batch_size"]):
        expected = fit(alone, **of_fit)
    expected_state = state_of(alone)
    assert any(np.any(v) for v in expected_state)
    assert_equal_training(alone, mine, (history, expected), "float64", name)
    if name == "plain":
        assert max(expected["gradient_norm"]) > alone.clip_norm  # So that clipping has a part.
    if name not in EVALUATED:
        return
    evaluated = mine.evaluate(X[:13], Y[:13], batch_size=8, verbose=0)
    np.testing.assert_allclose(evaluated, alone.evaluate(X[:13], Y[:13], verbose=0), rtol=1e-5)


@pytest.mark.nightly
def test_a_training_in_half_precision(set_policy):
    """With shared gradients, replicas compute what one device does, sub-batch by sub-batch."""
    set_policy("mixed_float16")
    options = VARIANTS["product, shared"]
    with STRATEGY.scope():
        mine = regularized(network("own"), **options)
    alone = regularized(network("own"), R, **options)
    assert isinstance(mine.optimizer, keras.optimizers.LossScaleOptimizer)
    history = fit(mine, 32, 16)
    with split_as_on(16):
        expected = fit(alone, 32, 16)
    assert_equal_training(alone, mine, (history, expected), "float16", "mixed")


def test_overflow_on_one_replica_skips_the_step_on_all(set_policy):
    set_policy("mixed_float16")
    with STRATEGY.scope():
        mine = regularized(network(), **VARIANTS["product"])
    before = state_of(mine)
    x = X[:16].astype("float32")
    x[0] = np.inf  # Of the first replica.
    mine.fit(x, Y[:16], batch_size=16, verbose=0)
    assert error(state_of(mine), before) == 0
    assert float(mine.optimizer.dynamic_scale.numpy()) == 2.0**14


def test_own_moments_of_batch_normalization(float64):
    """L is the mean over the shares, each with its own moments; so are the moving statistics."""
    size, share = 16, 16 // R
    with STRATEGY.scope():
        mine = regularized(network("own"), optimizer=SGD(1e-9))
    alone = regularized(network("own"), R)
    gradient, _, regularizer = _parts(gradients_alone(alone, size), alone)
    right, whole_loss, plain = [], 0.0, [0.0] * len(gradient)
    for part in (slice(0, size), *(slice(r * share, (r + 1) * share) for r in range(R))):
        classifier = network("own")
        compiled(classifier)
        with tf.GradientTape() as tape:
            outputs = classifier(X[part], training=True)
            value = classifier.compute_loss(y=Y[part], y_pred=outputs)
        found = tape.gradient(value, classifier.trainable_variables)
        if not right:  # Of the whole batch: what is left is the regularizer's.
            right = [g - f.numpy() for g, f in zip(gradient, found, strict=True)]
            statistics = [0.0] * len(classifier.non_trainable_variables)
            continue
        plain = [p + f.numpy() / R for p, f in zip(plain, found, strict=True)]
        whole_loss += value.numpy() / R
        moved = [v.numpy() / R for v in classifier.non_trainable_variables]
        statistics = [s + m for s, m in zip(statistics, moved, strict=True)]
    right = [r + p for r, p in zip(right, plain, strict=True)]
    assert_close(gradients(mine, size), [*right, whole_loss, regularizer], "float64", "own BN")
    fit(mine, size, size, epochs=1)
    for v, expected in zip(mine.model.non_trainable_variables, statistics, strict=True):
        if "moving" in v.path:
            np.testing.assert_allclose(v.numpy(), expected, rtol=1e-10, atol=1e-12)


def _parts(flat, wrapped):
    count = len(wrapped.trainable_variables)
    return flat[:count], *flat[count:]


def test_masks_of_dropout_are_those_of_one_device_with_as_many_sub_batches(float64):
    """Those of L are Keras' own, and beside so large a beta, L is nothing."""
    with STRATEGY.scope():
        mine = regularized(network(dropout=0.5), beta=2.0**100)
    alone = regularized(network(dropout=0.5), R, beta=2.0**100)
    (*found, _, r), (*expected, _, r_alone) = gradients(mine, 16), gradients_alone(alone, 16)
    assert_close(found, expected, "float64", "dropout")
    np.testing.assert_allclose(r, r_alone, rtol=1e-12)


@pytest.mark.parametrize("batch_norm", [nightly(None), "own", nightly("synchronized")])
def test_beta_zero_is_a_step_of_keras_to_the_last_bit(batch_norm):
    def model():
        return network(batch_norm, dropout=0.5)

    with STRATEGY.scope():
        mine = regularized(model(), beta=0.0)
        plain = compiled(model())
    fit(mine, 32, 16)
    fit(plain, 32, 16)
    for a, b in zip(mine.model.trainable_variables, plain.trainable_variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.nightly
def test_a_training_goes_on_from_a_file(tmp_path, float64):
    def model(epochs):
        with STRATEGY.scope():
            wrapped = regularized(network("own", dropout=0.5))
        fit(wrapped, 32, 16, epochs=epochs)
        return wrapped

    uninterrupted = model(2)
    model(1).save(tmp_path / "model.keras")
    with STRATEGY.scope():
        resumed = keras.saving.load_model(tmp_path / "model.keras")
    fit(resumed, 32, 16, epochs=1)
    assert error(state_of(resumed), state_of(uninterrupted)) == 0
    # And on one device, or elsewhere.
    assert np.all(np.isfinite(keras.saving.load_model(tmp_path / "model.keras").predict(X[:4])))


# Each pair of a dtype, a number of examples, and adaptive or not.
@pytest.mark.parametrize(
    ("floatx", "count", "adaptive"),
    [
        nightly("float64", 32, False),
        ("float64", 31, True),
        nightly("float64", 16 + R - 1, False),
        nightly("float32", 32, True),
        nightly("float32", 31, False),
        nightly("float32", 16 + R - 1, True),
    ],
    indirect=["floatx"],
)
def test_sharpness_aware_training_is_that_of_one_device(floatx, count, adaptive):
    def model(batch_norm):
        return compiled(SharpnessAwareModel(network(batch_norm), rho=0.1, adaptive=adaptive))

    batch_norm = "synchronized" if count > 16 + R else None
    with STRATEGY.scope():
        mine = model(batch_norm)
    alone = model(batch_norm)
    histories = fit(mine, count, 16), fit(alone, count, 16)
    assert_equal_training(alone, mine, histories, floatx, f"SAM, {count} examples")


@pytest.mark.nightly
def test_another_method_on_replicas_is_that_of_one_device(float64):
    """By its base class alone."""

    def model():
        penalized = GradientNormPenalty(network("synchronized"), strength=0.5, step_length=0.1)
        return compiled(penalized)

    with STRATEGY.scope():
        mine = model()
    alone = model()
    histories = fit(mine, 31, 16), fit(alone, 31, 16)
    assert_equal_training(alone, mine, histories, "float64", "gradient norm")


def test_replicas_split_their_shares_differently(float64):
    """The same examples on each replica: without that, one sub-batch more would be none."""
    with STRATEGY.scope():
        mine = regularized(network())
    alone = regularized(network())
    data = X[:8], Y[:8]

    @tf.function(autograph=False)
    def run():
        return STRATEGY.run(mine.regularized_gradients, args=data)

    regularizer = STRATEGY.experimental_local_results(run()[2])[0]
    assert float(regularizer) != pytest.approx(float(alone.regularized_gradients(*data)[2]), 1e-6)


# ------------------------------------------------------------------------- what is refused


class OwnLoss(keras.Sequential):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)


def own_loss():
    return OwnLoss(network().layers)


class OwnApply(keras.optimizers.SGD):
    def apply(self, grads, trainable_variables=None):
        super().apply(grads, trainable_variables)


class NumberOfAll(keras.losses.SparseCategoricalCrossentropy):
    """Keras divides it by the number of replicas only if there are sample weights."""

    def call(self, y_true, y_pred):
        return keras.ops.mean(super().call(y_true, y_pred))


REFUSED = {
    "a value for each example. Given: loss=.* with reduction='mean'": lambda: loss_of(
        "mean", NumberOfAll
    ),
    "compute_loss": lambda: regularized(own_loss()),
    "reduction='sum_over_batch_size'. Given: reduction='sum'": lambda: loss_of("sum"),
    "reduction='mean_with_sample_weight'": lambda: loss_of("mean_with_sample_weight"),
    "leave apply": lambda: regularized(network(), optimizer=OwnApply(0.1)),
    "Given: Nadam": lambda: regularized(
        network(), optimizer=keras.optimizers.Nadam(gradient_accumulation_steps=2)
    ),
    "jit_compile=True": lambda: compiled(
        FisherRegularizedModel(network(), seed=1), jit_compile=True
    ),
    "steps_per_execution=2": lambda: compiled(
        FisherRegularizedModel(network(), seed=1), steps_per_execution=2
    ),
}


def loss_of(reduction, loss=keras.losses.SparseCategoricalCrossentropy):
    model = regularized(network())
    model.compile("sgd", loss(from_logits=True, reduction=reduction))
    return model


def test_an_empty_share_has_no_label_to_refuse():
    with STRATEGY.scope():
        model = loss_of("mean", keras.losses.CategoricalCrossentropy)
    history = model.fit(X[:17], np.eye(3)[Y[:17]], batch_size=16, verbose=0).history
    assert np.isfinite(history["fisher_trace"]).all()


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_be_wrong_is_refused(message):
    with STRATEGY.scope():
        model = REFUSED[message]()
    with pytest.raises(ValueError, match=f"(?s)^[^\\n]*eplicas.*{message}"):
        fit(model, 16, 16)


def test_a_model_made_outside_of_the_scope_is_refused():
    classifier = network()
    with STRATEGY.scope():
        model = regularized(classifier)
    batch = X[:4].astype("float32"), Y[:4]
    for train in (
        lambda: fit(model, 16, 16),
        lambda: STRATEGY.run(model.regularized_gradients, batch),
    ):
        with pytest.raises(ValueError, match=r"in strategy\.scope"):
            train()


def test_gradients_outside_of_replicas_are_refused():
    with STRATEGY.scope():
        model = regularized(network())
        with pytest.raises(ValueError, match=r"strategy\.run"):
            model.regularized_gradients(X[:4].astype("float32"), Y[:4])


def test_an_empty_share_of_synchronized_batch_normalization_is_refused():
    with STRATEGY.scope():
        model = regularized(network("synchronized"))
    with pytest.raises(tf.errors.InvalidArgumentError, match="A replica got no example"):
        fit(model, 17, 16)
