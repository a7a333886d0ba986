"""A step is traced once, whatever it needs that is not there before its first call."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel

X = np.random.default_rng(0).normal(size=(20, 6, 6, 2)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 20)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.flatten = keras.layers.Flatten()
        self.dropout = keras.layers.Dropout(0.5)
        self.head = keras.layers.Dense(3)

    def call(self, inputs, training=None):
        return self.head(self.dropout(self.flatten(inputs), training=training))


def sequential(*first):
    return keras.Sequential([*first, keras.layers.Flatten(), keras.layers.Dense(3)])


CLASSIFIERS = {
    "built": lambda: sequential(keras.Input((6, 6, 2))),
    "unbuilt": sequential,
    "subclassed": Subclassed,
}
OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "AdamW": lambda: keras.optimizers.AdamW(0.01, use_ema=True, gradient_accumulation_steps=2),
}


class Generator(keras.utils.PyDataset):
    """Four batches an epoch."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return X[5 * index : 5 * index + 5], Y[5 * index : 5 * index + 5]


FIT = {
    "arrays": lambda model: model.fit(X, Y, batch_size=10, epochs=2, verbose=0),
    "dataset": lambda model: model.fit(
        tf.data.Dataset.from_tensor_slices((X, Y)).batch(5), epochs=2, verbose=0
    ),
    "generator": lambda model: model.fit(Generator(), epochs=2, verbose=0),
    "steps": lambda model: model.fit(
        tf.data.Dataset.from_tensor_slices((X, Y)).batch(5).repeat(), steps_per_epoch=3, verbose=0
    ),
    "batch": lambda model: [model.train_on_batch(X, Y) for _ in range(2)],
}


def traced(kind):
    """A class whose instances count how often their step is traced."""

    class Traced(kind):
        traces = 0

        def train_step(self, data):
            self.traces += 1
            return super().train_step(data)

    return Traced


def compiled(model, optimizer):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], weighted_metrics=["accuracy"])
    return model


@pytest.mark.parametrize(
    ("kind", "classifier", "optimizer", "fit"),
    [
        *((FisherRegularizedModel, "built", optimizer, "arrays") for optimizer in OPTIMIZERS),
        *((FisherRegularizedModel, c, "momentum", "dataset") for c in ("unbuilt", "subclassed")),
        *((SharpnessAwareModel, "subclassed", "AdamW", fit) for fit in FIT),
    ],
)
def test_a_step_is_traced_once(kind, classifier, optimizer, fit):
    model = compiled(traced(kind)(CLASSIFIERS[classifier]()), OPTIMIZERS[optimizer]())
    FIT[fit](model)
    assert model.traces == 1


class Counted(keras.layers.Dense):
    """A layer that counts how often it is called, which in a graph is how often it is traced."""

    calls = 0

    def call(self, inputs):
        self.calls += 1
        return super().call(inputs)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (SharpnessAwareModel, {"sub_batches": 3}),
        (FisherRegularizedModel, {"num_sub_batches": 3, "share_gradients": True}),
    ],
)
def test_sub_batches_of_all_sizes_share_one_trace(method, options):
    """XLA asks for a loop of each size. SAM's losses at both weights share it, too."""
    calls = []
    for xla in (False, True):
        layer = Counted(3)
        model = method(keras.Sequential([keras.Input((72,)), layer]), **options)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, jit_compile=xla)
        before = layer.calls
        model.train_on_batch(X.reshape(20, 72), Y)
        calls.append(layer.calls - before)
    assert calls[0] == calls[1]
    # The regularizer's precondition looks at a call before.
    assert calls[0] == (1 if method is SharpnessAwareModel else 2)


@pytest.mark.parametrize(("known_size", "calls"), [(False, 2), (True, 3)])
def test_the_precondition_looks_at_a_call_of_the_step_itself(known_size, calls):
    """Of L, and of L~ for all sub-batches; one more where L tells nothing of other sizes."""
    layer = Counted(3)
    model = FisherRegularizedModel(
        keras.Sequential([keras.Input((72,)), layer]), share_gradients=False
    )
    compiled(model, "sgd")
    before = layer.calls
    data = tf.data.Dataset.from_tensor_slices((X.reshape(20, 72), Y))
    model.fit(data.batch(10, drop_remainder=known_size), verbose=0)
    assert layer.calls - before == calls


def test_no_batch_is_taken_for_that():
    model = compiled(SharpnessAwareModel(Subclassed()), "sgd")
    taken = tf.Variable(0, dtype=tf.int64)
    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(5)
    batches = batches.map(lambda x, y: (x, y + 0 * taken.assign_add(1)))
    model.fit(batches, verbose=0)
    assert int(taken) == int(model.optimizer.iterations) == 4


def test_an_evaluation_makes_nothing_for_training():
    model = compiled(FisherRegularizedModel(CLASSIFIERS["built"]()), OPTIMIZERS["AdamW"]())
    before = len(model.optimizer.variables)
    model.evaluate(X, Y, verbose=0)
    assert len(model.optimizer.variables) == before


def test_the_logs_share_a_variable():
    """Keras resets the variables of all metrics before each batch of `train_on_batch`."""
    model = compiled(FisherRegularizedModel(CLASSIFIERS["built"]()), "sgd")
    plain = compiled(CLASSIFIERS["built"](), "sgd")
    names = ["loss", *FisherRegularizedModel.training_logs]
    for one in (model, plain):
        one.train_on_batch(X, Y)
    assert len(model.metrics_variables) == len(plain.metrics_variables) + 1
    assert [name for name in model.metrics_names if name in names] == names
