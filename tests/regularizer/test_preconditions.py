"""A classifier that Algorithm 1 cannot evaluate at other weights is refused, and still works."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import each_value, nightly

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel

NUM_CLASSES = 3
MODES = {
    "graph": {"compile_kwargs": {}},
    "eager": {"compile_kwargs": {"run_eagerly": True}},
    "xla": {"compile_kwargs": {"jit_compile": True}},
    "shared": {"share_gradients": True},
    "hessian": {"gradient": "hessian_vector_product"},
    "shared hessian": {"share_gradients": True, "gradient": "hessian_vector_product"},
}


def data(count=8, features=4):
    random = np.random.RandomState(0)
    x = random.randn(count, features).astype("float32")
    return x, random.randint(0, NUM_CLASSES, count)


def sequential(*layers, units=6):
    keras.utils.set_random_seed(1)
    first = [keras.Input((4,)), keras.layers.Dense(units, "tanh", name="first")]
    return keras.Sequential([*first, *layers, keras.layers.Dense(NUM_CLASSES)])


def compiled(model, compile_kwargs=None, **kwargs):
    wrapped = FisherRegularizedModel(
        model, **{"alpha": 0.1, "num_sub_batches": 2, "seed": 3, **kwargs}
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options = {"jit_compile": False, **(compile_kwargs or {})}
    if options.get("run_eagerly"):
        del options["jit_compile"]
    wrapped.compile(keras.optimizers.SGD(0.1), loss, **options)
    return wrapped


def plain_fit(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
    return model.fit(*data(), verbose=0).history["loss"][0]


def assert_refused(make, match, **kwargs):
    """A step raises one clear error, before anything changes."""
    model = make()
    model(data()[0])
    before = model.get_weights()
    wrapped = compiled(model, **kwargs)
    with pytest.raises(ValueError, match=match) as error:
        wrapped.train_on_batch(*data())
    message = str(error.value)
    assert len(message) < 400
    assert "Given: " in message
    for value, was in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, was)
    return model


def assert_works(model, make):
    """A model that was refused trains as one that was never given."""
    twin = make()
    twin(data()[0])
    twin.set_weights(model.get_weights())
    assert plain_fit(model) == pytest.approx(plain_fit(twin), rel=1e-6)


# ------------------------------------------------------------------------------------ randomness


class Noise(keras.layers.Layer):
    """Adds noise of its own making, which changes nothing."""

    def __init__(self, draw, **kwargs):
        super().__init__(**kwargs)
        self.draw = draw

    def call(self, inputs, training=None):
        return inputs + 0.0 * self.draw(inputs) if training else inputs


def seeded_by_the_clock(x):
    seed = tf.cast(tf.stack([1e6 * tf.timestamp(), 0.0]), tf.int64)
    return tf.random.stateless_normal(tf.shape(x), seed)


def from_a_data_set(x):
    random = tf.data.Dataset.random(seed=1, rerandomize_each_iteration=True)
    return tf.cast(next(iter(random.batch(6))), x.dtype)


GENERATOR = tf.random.Generator.from_seed(1)
DRAWS = {
    "clock": seeded_by_the_clock,
    "data set": from_a_data_set,
    "not deterministic": lambda x: tf.cast(
        tf.raw_ops.NonDeterministicInts(shape=tf.shape(x), dtype=tf.int64), x.dtype
    ),
    "normal": lambda x: tf.random.normal(tf.shape(x)),
    "truncated": lambda x: tf.random.truncated_normal(tf.shape(x)),
    "integers": lambda x: tf.cast(
        tf.random.uniform(tf.shape(x), maxval=9, dtype=tf.int32), x.dtype
    ),
    "gamma": lambda x: tf.random.gamma(tf.shape(x), 1.0),
    "poisson": lambda x: tf.random.poisson(tf.shape(x), 1.0),
    "categorical": lambda x: tf.cast(tf.random.categorical(x, 1), x.dtype),
    "shuffle": lambda x: tf.random.shuffle(x),
    "dropout": lambda x: tf.nn.dropout(x, 0.5),
    "generator": lambda x: GENERATOR.normal(tf.shape(x)),
    "generator's uniform": lambda x: GENERATOR.uniform(tf.shape(x)),
    "in a loop": lambda x: tf.map_fn(lambda row: row + tf.random.normal([6]), x),
    "in a branch": lambda x: tf.cond(
        tf.reduce_sum(x) > 1e9, lambda: x, lambda: tf.random.normal(tf.shape(x))
    ),
    "in a function": tf.function(lambda x: tf.random.normal(tf.shape(x)), autograph=False),
    "python": lambda x: tf.reshape(
        tf.py_function(lambda v: v + tf.random.normal(v.shape), [x], tf.float32), tf.shape(x)
    ),
    "numpy": lambda x: tf.reshape(tf.numpy_function(np.sin, [x], tf.float32), tf.shape(x)),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_random_numbers_that_cannot_be_repeated(draw):
    assert_refused(lambda: sequential(Noise(draw, name="noisy")), "keras.random.*'noisy'")


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_random_numbers_in_every_mode(mode):
    assert_refused(
        lambda: sequential(Noise(DRAWS["dropout"], name="noisy")), "keras.random.*'noisy'", **mode
    )


class Drawing(keras.layers.Layer):
    """Changes with each call, which Keras freezes at its one trace."""

    def __init__(self, way):
        super().__init__()
        self.way, self.calls = way, 0

    def call(self, x):
        self.calls += 1
        return self.way(x, self.calls)


PYTHON_WAYS = {
    "numbers": lambda x, calls: x + np.random.normal(size=6).astype("float32"),
    "shift": lambda x, calls: tf.roll(x, calls % 6, axis=1),
    "depth": lambda x, calls: tf.add_n([tf.tanh(x) for _ in range(calls)]),
}


@pytest.mark.parametrize(
    ("way", "mode"), each_value(PYTHON_WAYS, ["graph", "eager", "xla", "shared", "unshared"])
)
def test_a_call_that_is_another_function_each_time(way, mode):
    options = {**MODES, "unshared": {"share_gradients": False}}[mode]
    message = "each trace of its call is another function"
    assert_refused(lambda: sequential(Drawing(way)), message, **options)


@pytest.mark.parametrize(("way", "eager"), each_value(PYTHON_WAYS, [False, True]))
def test_sharpness_aware_minimization_of_another_function_each_time(way, eager):
    model = SharpnessAwareModel(sequential(Drawing(way)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=eager)
    with pytest.raises(ValueError, match="each trace of its call is another function"):
        model.train_on_batch(*data())


class SameAgain(keras.layers.Layer):
    """One function, of which traces in other scopes and graphs have other operations."""

    def __init__(self):
        super().__init__()
        self.dropout = keras.layers.Dropout(0.3, seed=1)
        self.constant, self.large = tf.constant([1.0, 2.0]), tf.ones(300)
        self.table = self.add_weight((9, 6), "ones", name="table")
        self.mean = self.add_weight((6,), "ones", trainable=False, name="mean")
        self.kernels = self.add_weight((2, 6, 6), "ones", name="kernels")

    def call(self, x, training=None):
        x = self.dropout(self.dropout(x, training=training), training=training)
        x += tf.nn.embedding_lookup(self.table.value, tf.zeros([tf.shape(x)[0]], tf.int32))
        x += tf.gather_nd(self.table.value, [[0]])
        which = tf.cast(tf.reduce_sum(x) > 0, tf.int32)
        x = keras.ops.switch(which, [lambda y, k=k: y @ self.kernels[k] for k in (0, 1)], x)
        self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(x, axis=0))
        doubled = tf.function(lambda x: 2.0 * x)(x - self.mean) + self.constant[0]
        tf.debugging.assert_equal(tf.shape(x), tf.shape(doubled), "Shapes differ.")
        doubled = tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, y * 0.9), (0, doubled))[1]
        return tf.cond(tf.reduce_sum(x) > 0, lambda: x, lambda: doubled) + self.large[0]


@pytest.mark.parametrize(
    ("options", "eager"),
    each_value(
        [{"method": SharpnessAwareModel}, {"share_gradients": True}, {"share_gradients": False}],
        [False, True],
    ),
)
def test_a_call_that_is_the_same_function_each_time(options, eager):
    method = {"method": FisherRegularizedModel, **options}.pop("method")
    options = {name: value for name, value in options.items() if name != "method"}
    frozen = keras.layers.LSTM(6, dropout=0.1, seed=1)
    layers = [SameAgain(), keras.layers.Reshape((2, 3)), frozen, SameAgain()]
    classifier = sequential(*layers)
    frozen.trainable = False
    model = method(classifier, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=eager, jit_compile=False)
    assert np.isfinite(model.train_on_batch(*data())).all()


class WithOwnGradient(keras.layers.Layer):
    """Adds to its inputs the gradient of sum tanh(x W)^2 by them: from a tape, or by hand."""

    def __init__(self, by_tape):
        super().__init__()
        self.by_tape = by_tape

    def build(self, shape):
        self.w = self.add_weight((shape[-1], 3), "glorot_uniform", name="w")

    def call(self, x):
        if not self.by_tape:
            z = tf.tanh(x @ self.w)
            return x + (2 * z * (1 - z**2)) @ tf.transpose(self.w)
        with tf.GradientTape() as tape:
            tape.watch(x)
            energy = tf.reduce_sum(tf.tanh(x @ self.w) ** 2)
        return x + tape.gradient(energy, x)


@pytest.mark.parametrize(
    ("options", "eager"),
    each_value(
        [{"method": SharpnessAwareModel}, {}, {"share_gradients": True}, MODES["hessian"]],
        [False, True],
    ),
)
def test_a_layer_that_takes_gradients_in_its_call(float64, options, eager):
    trained = []
    for by_tape in (True, False):
        classifier = sequential(WithOwnGradient(by_tape))
        model = {"method": FisherRegularizedModel, **options}["method"](
            classifier, **{name: value for name, value in options.items() if name != "method"}
        )
        if isinstance(model, FisherRegularizedModel):
            model.seed = 3
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=eager, jit_compile=False)
        model.train_on_batch(*data())
        trained.append(classifier.get_weights())
    for mine, expected in zip(*trained, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-9, atol=1e-12)


class StatelessNoise(keras.layers.Layer):
    """Draws from a generator of Keras that belongs to it, or from the one that all share."""

    def __init__(self, seed):
        super().__init__()
        self.generator = keras.random.SeedGenerator(seed) if seed else None

    def call(self, inputs):
        return inputs + keras.random.normal(keras.ops.shape(inputs), seed=self.generator)


RANDOM_LAYERS = {
    "dropout": lambda: keras.layers.Dropout(0.5, seed=1),
    "noise": lambda: keras.layers.GaussianNoise(1.0, seed=1),
    "own generator": lambda: StatelessNoise(5),
    "generator of all": lambda: StatelessNoise(None),
}


@pytest.mark.parametrize(
    ("layer", "mode"), each_value(RANDOM_LAYERS, ["graph", "eager", "shared hessian"])
)
def test_random_numbers_of_keras_are_the_same_at_both_weights(layer, mode):
    """R / alpha tends to a limit; with other noise it would grow as 1 / alpha."""
    traces = []
    for alpha in (1e-2, 1e-3):
        model = compiled(sequential(layer()), **{**MODES[mode], "alpha": alpha})
        traces.append(model.train_on_batch(*data(), return_dict=True)["fisher_trace"])
    assert traces[0] == pytest.approx(traces[1], rel=0.2)
    assert traces[0] > 0


# ------------------------------------------------------------------- weights that were captured


class Inner(keras.layers.Layer):
    """A layer that calls another one in some way."""

    def __init__(self, way, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(6, "tanh")
        self.way = way

    def build(self, shape):
        self.dense.build(shape)
        self.function = self.way(self.dense)

    def call(self, inputs):
        return self.function(inputs)


def custom_gradient(dense):
    """A function that closes over its weights, whose gradients TensorFlow asks it for."""

    @tf.custom_gradient
    def function(x):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y = dense(x)

        def gradient(upstream, variables=()):
            return (
                tape.gradient(y, x, upstream),
                tape.gradient(y, list(variables), upstream),
            )

        return tf.identity(y), gradient

    return function


WAYS = {
    "tf.function": lambda dense: tf.function(dense.call),
    "nested tf.function": lambda dense: tf.function(
        lambda x: tf.function(dense.call, autograph=False)(x), autograph=False
    ),
    "keras.remat": lambda dense: keras.remat(dense.call),
    "tf.recompute_grad": lambda dense: tf.recompute_grad(dense.call),
    "tf.custom_gradient": custom_gradient,
    "raw variable": lambda dense: lambda x: x @ dense.kernel._value,
}


@pytest.mark.parametrize(("way", "mode"), each_value(WAYS, ["graph", "shared hessian"]))
def test_captured_weights(way, mode):
    def make():
        return sequential(Inner(way))

    assert_works(assert_refused(make, "captured.*inner.*kernel", **MODES[mode]), make)


@pytest.mark.parametrize(
    "mode",
    [name if name in ("eager", "xla", "shared hessian") else nightly(name) for name in MODES],
)
def test_a_model_that_is_a_tf_function(mode):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(NUM_CLASSES)

        @tf.function
        def call(self, inputs):
            return self.dense(inputs)

    assert_works(assert_refused(Model, "captured.*kernel", **MODES[mode]), Model)


class Counting(keras.layers.Layer):
    """Counts its calls where Keras does not know of it."""

    def __init__(self, way, **kwargs):
        super().__init__(**kwargs)
        self.way = way
        self.count = tf.Variable(0, trainable=False, dtype=tf.int64)
        self.queue = tf.queue.FIFOQueue(9, [tf.float32], [()])

    def call(self, inputs):
        self.way(self)
        return inputs


COUNTS = {
    "assigned": lambda layer: layer.count.assign_add(1),
    "up to a limit": lambda layer: tf.raw_ops.ResourceCountUpTo(
        resource=layer.count.handle, limit=9, T=tf.int64
    ),
    "queue": lambda layer: layer.queue.enqueue(1.0),
}


@pytest.mark.parametrize(("way", "mode"), each_value(COUNTS, ["graph", "eager", "shared"]))
def test_a_state_that_keras_does_not_know(way, mode):
    model = sequential(Counting(way, name="counting"))
    with pytest.raises(ValueError, match=r"assign.*'counting'"):
        compiled(model, **MODES[mode]).train_on_batch(*data())
    assert model.layers[1].count == 0
    assert model.layers[1].queue.size() == 0


def test_without_the_regularizer_any_model_will_do():
    for way in ("tf.function", "keras.remat"):
        compiled(sequential(Inner(WAYS[way])), beta=0).train_on_batch(*data())
    compiled(sequential(Noise(DRAWS["dropout"])), beta=0).train_on_batch(*data())


@pytest.mark.parametrize("shared", [False, True])
def test_weights_that_only_a_penalty_reaches_are_no_captured_ones(shared):
    class Penalized(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(3,), regularizer="l2")

        def call(self, inputs):
            return inputs

    model = sequential(Penalized())
    before = np.array(model.layers[1].kernel)
    compiled(model, share_gradients=shared).train_on_batch(*data())
    np.testing.assert_allclose(model.layers[1].kernel, before * (1 - 0.1 * 0.02), rtol=1e-5)


def test_a_loaded_saved_model(tmp_path):
    sequential().export(tmp_path, verbose=False)

    def make(trainable=True):
        layer = keras.layers.TFSMLayer(tmp_path, call_endpoint="serve")
        layer.trainable = trainable
        return sequential(layer, units=4)

    assert_refused(make, "captured.*kernel")
    compiled(make(trainable=False)).train_on_batch(*data())


# ------------------------------------------------------------------------- second derivatives


def images(*layers):
    reshape = keras.layers.Reshape((4, 4, 2))
    return sequential(reshape, *layers, keras.layers.Flatten(), units=32)


def on_images(function):
    return lambda: images(keras.layers.Lambda(function, name="here"))


MADE_UP_FOR = {
    "bilinear": lambda: images(keras.layers.UpSampling2D(interpolation="bilinear")),
    "bicubic": lambda: images(keras.layers.UpSampling2D(interpolation="bicubic")),
    "resizing": lambda: images(keras.layers.Resizing(3, 3)),
    "nearest": lambda: images(keras.layers.Resizing(3, 3, "nearest")),
    "softsign": lambda: sequential(keras.layers.Activation("softsign")),
}


class SelfAttention(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.attention = keras.layers.MultiHeadAttention(2, 3)

    def call(self, inputs):
        return self.attention(inputs, inputs)


OF_KERAS = {
    "convolutions": lambda: images(
        keras.layers.Conv2D(4, 2, groups=2),
        keras.layers.DepthwiseConv2D(2),
        keras.layers.Conv2DTranspose(3, 2),
        keras.layers.SeparableConv2D(3, 2, activation="gelu"),
    ),
    "pooling": lambda: images(
        keras.layers.AveragePooling2D(2, 1),
        keras.layers.ZeroPadding2D(),
        keras.layers.GlobalAveragePooling2D(keepdims=True),
    ),
    "normalization": lambda: images(
        keras.layers.GroupNormalization(2),
        keras.layers.LayerNormalization(epsilon=0.1),
        keras.layers.UnitNormalization(),
    ),
    "attention": lambda: images(SelfAttention()),
}


MAKES = MADE_UP_FOR | OF_KERAS
PRODUCTS = [{}, {"share_gradients": True}, MODES["eager"]]


@pytest.mark.parametrize(
    ("name", "products"),
    [
        ("bilinear", PRODUCTS),
        *((name, PRODUCTS[:1]) for name in MADE_UP_FOR if name != "bilinear"),
        *(nightly(name, PRODUCTS) for name in MAKES if name != "bilinear"),
    ],
)
def test_second_derivatives_that_tensorflow_lacks_are_made_up_for(float64, name, products):
    """The Hessian's product is the limit of the difference of gradients."""

    def gradient(**options):
        options = {"alpha": 1e-4, "beta": 1e4} | options
        return compiled(MAKES[name](), **options).regularized_gradients(*data())[0]

    plain = gradient(beta=0)
    difference = [a - b for a, b in zip(gradient(), plain, strict=True)]
    for options in products:
        product = gradient(gradient="hessian_vector_product", **options)
        product = [a - b for a, b in zip(product, plain, strict=True)]
        error = tf.linalg.global_norm([a - b for a, b in zip(difference, product, strict=True)])
        assert error < 0.02 * tf.linalg.global_norm(difference)


WITHOUT_SECOND_DERIVATIVE = {
    "renormalized": lambda: images(keras.layers.BatchNormalization(renorm=True, name="here")),
    "held constant": on_images(lambda x: x * tf.stop_gradient(tf.sin(x))),
    "pooling": on_images(lambda x: tf.nn.max_pool_with_argmax(x, 2, 2, "SAME")[0]),
    "local response": on_images(tf.nn.lrn),
    "quantized": on_images(tf.quantization.fake_quant_with_min_max_args),
    "crops": on_images(
        lambda x: tf.image.crop_and_resize(x, tf.zeros([1, 4]) + 0.5, [0], [2, 2]) + x[:, :2, :2]
    ),
}


@pytest.mark.parametrize(
    ("make", "mode"), each_value(WITHOUT_SECOND_DERIVATIVE, ["hessian", "shared hessian"])
)
def test_second_derivatives_that_do_not_exist(make, mode):
    match = "Use gradient='finite_difference', in half precision with step_length=.* Given: "
    assert_refused(make, match, **MODES[mode])


def test_second_derivatives_in_eager_mode():
    make = WITHOUT_SECOND_DERIVATIVE["held constant"]
    match = "StopGradient in layer 'here'.*finite_difference"
    assert_refused(make, match, **MODES["hessian"], **MODES["eager"])
    model = compiled(make(), **MODES["eager"])
    model.train_on_batch(*data())
    model.gradient = "hessian_vector_product"  # What was found out holds no longer.
    with pytest.raises(ValueError, match=match):
        model.train_on_batch(*data())


def test_second_derivatives_that_exist():
    """A part that is held constant there makes no difference."""
    layers = [
        keras.layers.Lambda(lambda x: x + tf.reduce_logsumexp(x, -1, keepdims=True)),
        *(keras.layers.BatchNormalization(), keras.layers.LayerNormalization()),
        *(keras.layers.UpSampling2D(), keras.layers.MaxPooling2D()),
        *(keras.layers.AveragePooling2D(2), keras.layers.Activation("gelu")),
    ]
    compiled(images(*layers), **MODES["hessian"]).train_on_batch(*data())


def test_what_depends_on_no_weight_may_be_held_constant():
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Reshape((2, 2, 1)),
        keras.layers.Resizing(4, 4),
        keras.layers.Flatten(),
        keras.layers.Lambda(tf.stop_gradient),
    ]
    head = keras.layers.Dense(NUM_CLASSES)
    model = keras.Sequential([keras.Input((4,)), *layers, head])
    compiled(model, **MODES["hessian"]).train_on_batch(*data())


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (lambda: Noise(DRAWS["dropout"]), "keras.random"),
        (lambda: Inner(WAYS["keras.remat"]), "captured"),
    ],
)
def test_sharpness_aware_minimization_refuses_them_as_well(layer, match):
    model = SharpnessAwareModel(sequential(layer()))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=False)
    with pytest.raises(ValueError, match=match):
        model.train_on_batch(*data())
