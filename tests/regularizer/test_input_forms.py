"""Inputs by name, of unknown shapes, of several lengths, and models for one batch size."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import nightly
from small_models import sparse_loss

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel
from fisher_keras.classifier import Classifier

TEXTS = ("U", np.dtypes.StringDType(), "S", object)
METHODS = [FisherRegularizedModel, SharpnessAwareModel]
RANDOM = np.random.RandomState(0)
PHOTO, AGE = RANDOM.randn(12, 6, 6, 2).astype("float32"), RANDOM.randn(12, 3).astype("float32")
Y = np.arange(12) % 3


def two_inputs():
    """Their order is not that of their names."""
    keras.utils.set_random_seed(1)
    photo, age = keras.Input((6, 6, 2), name="photo"), keras.Input((3,), name="age")
    features = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(photo))
    joined = keras.layers.Concatenate()([features, keras.layers.Dense(4)(age)])
    return keras.Model([photo, age], keras.layers.Dense(3)(joined))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        nightly(FisherRegularizedModel, {"seed": 1}),
        (FisherRegularizedModel, {"seed": 1, "share_gradients": True}),
        (SharpnessAwareModel, {}),
    ],
)
def test_inputs_by_name(method, options):
    by_name, in_order = {"photo": PHOTO, "age": AGE}, [PHOTO, AGE]
    found = []
    for x in (by_name, in_order):
        model = method(two_inputs(), **options)
        model.compile("sgd", sparse_loss(), metrics=["accuracy"])
        model.fit(x, Y, batch_size=6, shuffle=False, verbose=0)
        found.append(model.get_weights())
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_of_unknown_rank(method):
    def batches(known):
        def load(index):
            (x,) = [tf.numpy_function(lambda i: AGE[i : i + 1], [index], tf.float32)]
            return (tf.ensure_shape(x, (1, 3)) if known else x), Y[:1]

        return tf.data.Dataset.range(4).map(load)

    head = keras.layers.Dense(3)
    model = method(keras.Sequential([keras.Input((3,)), head]))
    model.compile("sgd", sparse_loss())
    model.fit(batches(known=True), verbose=0)
    with pytest.raises(ValueError, match=r"known rank.*tf\.ensure_shape.*Given: "):
        model.fit(batches(known=False), verbose=0)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_of_several_lengths(method):
    options = {"num_sub_batches": 1} if method is FisherRegularizedModel else {}
    model = method(two_inputs(), **options)
    model.compile("sgd", sparse_loss(), jit_compile=False)
    with pytest.raises(ValueError, match=r"same number of examples.*Given: 4, 12 rows"):
        model.train_on_batch([PHOTO[:4], AGE], Y[:4])
    parts = ((PHOTO[:4], AGE), Y[:4])

    def generate():
        yield parts

    spec = tf.TensorSpec((None, 6, 6, 2)), tf.TensorSpec((None, 3))
    unknown = tf.data.Dataset.from_generator(
        generate, output_signature=(spec, tf.TensorSpec((None,), tf.int64))
    )
    # SAM's whole batch does not fit together in the model itself.
    message = "same number of examples|must match"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        model.fit(unknown, verbose=0)


class OneSize(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(3)

    def call(self, x):
        return self.head(tf.reshape(x, (12, 3)))


@pytest.mark.parametrize("eager", [False, True])
def test_a_model_for_one_batch_size(eager):
    model = FisherRegularizedModel(OneSize())
    model.compile("sgd", sparse_loss(), run_eagerly=eager)
    with pytest.raises(ValueError, match=r"^The model takes batches of 12 examples only"):
        model.train_on_batch(AGE, Y)


@pytest.mark.parametrize("method", [nightly(FisherRegularizedModel), SharpnessAwareModel])
def test_text_in_any_form_of_numpys(method):
    words = np.array(["good", "bad", "ugly", "fine"])
    texts = np.array([f"{a} {b}" for a in words for b in words[:3]])
    layers = [
        keras.Input((), dtype="string"),
        keras.layers.TextVectorization(vocabulary=list(words)),
        keras.layers.Embedding(6, 3),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(3),
    ]
    model = method(keras.Sequential(layers))
    model.compile("sgd", sparse_loss())
    weights, results = model.get_weights(), []
    for x in (tf.constant(texts), *map(texts.astype, TEXTS)):
        model.set_weights(weights)
        model.optimizer.iterations.assign(0)
        history = model.fit(x, Y, shuffle=False, verbose=0, validation_data=(x, Y)).history
        found = [*history["loss"], *history["val_loss"], *model.train_on_batch(x, Y)]
        found += [model.evaluate(x, Y, verbose=0), *np.ravel(model.predict(x, verbose=0))]
        logits = Classifier(model).logits(x)
        np.testing.assert_allclose(logits, model.predict(x, verbose=0), rtol=1e-6)
        results.append(found)
    for found in results[1:]:
        np.testing.assert_array_equal(found, results[0])


@pytest.mark.parametrize("y", [None, np.array(["a", "b", "c"])[Y]], ids=["none", "strings"])
@pytest.mark.parametrize("method", METHODS)
def test_labels_that_are_no_numbers(method, y):
    model = method(keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)]))
    model.compile("sgd", sparse_loss())
    message = r"Labels must be numbers.*np\.unique.*Given: (no labels|labels that are strings)"
    for train in (model.fit, model.train_on_batch):
        with pytest.raises(ValueError, match=message):
            train(AGE, y)


def of_other_sizes(x, y):
    return tf.data.Dataset.zip(x.batch(4), y.batch(8))


def without_examples(x, y):
    return tf.data.Dataset.zip(x, y).batch(4).map(lambda a, b: (a[:0], b[:0]))


@pytest.mark.parametrize(
    ("batches", "xla", "message"),
    [
        (of_other_sizes, False, "the same number of examples"),
        (of_other_sizes, True, "as_many_labels_as_inputs"),
        (without_examples, False, r"without examples cannot be split: filter before \.batch\(\)"),
        (without_examples, True, "one_at_least"),
        (tf.data.Dataset.zip, False, r"Data must come in batches: call \.batch\(\)"),
    ],
)
def test_batches_that_cannot_be_split(batches, xla, message):
    x, y = (tf.data.Dataset.from_tensor_slices(values) for values in (AGE, Y))
    head = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model = FisherRegularizedModel(head, seed=0)
    model.compile("sgd", sparse_loss(), jit_compile=xla)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=message):
        model.fit(batches(x, y), verbose=0)


class MaybeAdded(keras.layers.Layer):
    def call(self, x, other=None):
        return x if other is None else x + other

    def compute_output_shape(self, x_shape, other_shape=None):
        return x_shape


@pytest.mark.parametrize("shared", [False, True, "auto"])
def test_an_optional_input_that_is_left_out(shared):
    x, other = keras.Input((3,), name="x"), keras.Input((3,), name="other", optional=True)
    head = keras.layers.Dense(3, activity_regularizer=keras.regularizers.L2(0.1))
    both = keras.Model({"other": other, "x": x}, head(MaybeAdded()(x, other)))
    found = []
    for classifier, inputs in (
        (both, {"other": None, "x": AGE}),
        (keras.Model({"x": x}, head(x)), {"x": AGE}),
    ):
        model = FisherRegularizedModel(classifier, seed=0, share_gradients=shared)
        model.compile("sgd", sparse_loss(), jit_compile=False)
        head.set_weights([np.ones((3, 3)), np.zeros(3)])
        model.train_on_batch(inputs, Y)
        found.append(head.get_weights())
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_labels_by_name_and_sparse_inputs():
    model = FisherRegularizedModel(keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)]))
    model.compile("sgd", sparse_loss())
    expected = model.regularized_gradients(AGE, Y)[0]
    for x, y in ((AGE, {"out": Y}), (tf.sparse.from_dense(AGE), list(Y))):
        for mine, right in zip(model.regularized_gradients(x, y)[0], expected, strict=True):
            np.testing.assert_allclose(mine, right, rtol=1e-5, atol=1e-6)
