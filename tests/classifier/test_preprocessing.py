"""Classifiers that take data in their own way: as their own `fit` does it, or refused by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel

CLASSES = 3
METHODS = ["fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "predict_on_batch"]


class Pipeline(keras.Model):
    """Stands in for KerasHub's `PipelineModel`: it preprocesses batches in all that takes data."""

    def preprocess_samples(self, x, y=None, sample_weight=None):
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)

    def _batches(self, x, y=None, sample_weight=None, batch_size=None):
        if not isinstance(x, tf.data.Dataset):
            parts = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
            x = tf.data.Dataset.from_tensor_slices(parts).batch(batch_size or 32)
        return x.map(self.preprocess_samples)

    def fit(self, x=None, y=None, batch_size=None, sample_weight=None, **kwargs):
        if kwargs.get("validation_data") is not None:
            kwargs["validation_data"] = self._batches(*kwargs["validation_data"])
        return super().fit(self._batches(x, y, sample_weight, batch_size), **kwargs)

    def evaluate(self, x=None, y=None, batch_size=None, sample_weight=None, **kwargs):
        return super().evaluate(self._batches(x, y, sample_weight, batch_size), **kwargs)

    def predict(self, x=None, batch_size=None, **kwargs):
        return super().predict(self._batches(x, batch_size=batch_size), **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        return super().train_on_batch(*self._parts(x, y, sample_weight), **kwargs)

    def test_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        return super().test_on_batch(*self._parts(x, y, sample_weight), **kwargs)

    def predict_on_batch(self, x, **kwargs):
        return super().predict_on_batch(self._parts(x)[0], **kwargs)

    def _parts(self, *data):
        return keras.utils.unpack_x_y_sample_weight(self.preprocess_samples(*data))


class Rescaled(keras.layers.Layer):
    """Scales and crops images; like those of KerasHub it passes labels on."""

    def call(self, x, y=None, sample_weight=None):
        x = tf.cast(x, tf.float32)[:, 1:5, 1:5] / 255
        return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)


class Task(Pipeline):
    """Stands in for KerasHub's `Task`."""

    def __init__(self, preprocessor):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((4, 4, 1))
        features = keras.layers.Flatten()(inputs)
        super().__init__(inputs, keras.layers.Dense(CLASSES)(features))
        self.preprocessor = preprocessor

    def preprocess_samples(self, x, y=None, sample_weight=None):
        if self.preprocessor is None:
            return super().preprocess_samples(x, y, sample_weight)
        return self.preprocessor(x, y=y, sample_weight=sample_weight)

    def compile(self, optimizer="auto", loss="auto", *, metrics="auto", **kwargs):
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **kwargs)


class OwnFit(Task):
    def fit(self, x, y):
        return super().fit(x[::2], y[::2])


def data(count=12):
    random = np.random.RandomState(0)
    x = random.randint(0, 256, (count, 6, 6, 1)).astype("uint8")
    return x, random.randint(0, CLASSES, count), random.rand(count).astype("float32")


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=loss, metrics=["accuracy"])
    return model


def wrapped(kind=FisherRegularizedModel, **options):
    options = {"beta": 0.0} if kind is FisherRegularizedModel else {"rho": 1e-12}
    return compiled(kind(Task(Rescaled()), **options))


@pytest.mark.parametrize("kind", [FisherRegularizedModel, SharpnessAwareModel])
def test_it_trains_as_the_classifiers_own_fit_does(kind):
    x, y, weight = data()
    own, mine = compiled(Task(Rescaled())), wrapped(kind)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(5)
    for model in (own, mine):
        model.fit(x, y, batch_size=5, sample_weight=weight, validation_data=(x, y), verbose=0)
        model.fit(batches, verbose=0)
        model.train_on_batch(x, y, sample_weight=weight)
    for a, b in zip(own.get_weights(), mine.model.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        mine.evaluate(x, y, verbose=0), own.evaluate(x, y, verbose=0), rtol=1e-4
    )
    np.testing.assert_allclose(mine.test_on_batch(x, y), own.test_on_batch(x, y), rtol=1e-4)
    for method in ("predict", "predict_on_batch"):
        np.testing.assert_allclose(getattr(mine, method)(x), getattr(own, method)(x), rtol=1e-3)


def test_validation_data_and_the_public_gradients_are_preprocessed():
    x, y, _ = data()
    mine = wrapped()
    history = mine.fit(x, y, validation_data=(x, y), epochs=2, verbose=0).history
    expected = compiled(Task(Rescaled()))
    expected.set_weights(mine.model.get_weights())
    np.testing.assert_allclose(
        history["val_loss"][-1], expected.evaluate(x, y, verbose=0)[0], rtol=1e-4
    )
    _, loss, _ = mine.regularized_gradients(x, y)
    np.testing.assert_allclose(loss, expected.evaluate(x, y, verbose=0)[0], rtol=1e-4)
    split = wrapped().fit(x, y, validation_split=0.25, verbose=0).history
    apart = wrapped().fit(x[:9], y[:9], validation_data=(x[9:], y[9:]), verbose=0).history
    np.testing.assert_allclose(split["val_loss"], apart["val_loss"], rtol=1e-5)


def test_without_a_preprocessor_data_are_taken_as_they_are():
    x, y, _ = data()
    x = x[:, :4, :4].astype("float32") / 255
    own, mine = compiled(Task(None)), compiled(FisherRegularizedModel(Task(None), beta=0.0))
    for model in (own, mine):
        model.fit(x, y, batch_size=5, verbose=0)
    for a, b in zip(own.get_weights(), mine.model.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)


def test_generators_are_refused():
    x, y, _ = data()
    with pytest.raises(ValueError, match=r"takes arrays or a tf\.data\.Dataset.*Given: generator"):
        wrapped().fit((part for part in [(x, y)]), verbose=0)


@pytest.mark.parametrize("method", [*METHODS, "make_train_function", "get_metrics_result"])
@pytest.mark.parametrize("kind", [FisherRegularizedModel, SharpnessAwareModel])
def test_another_way_to_take_data_is_refused_by_name(kind, method):
    own = type("Own", (keras.Model,), {method: lambda self, *args, **kwargs: None})
    inputs = keras.Input((4,))
    model = own(inputs, keras.layers.Dense(CLASSES)(inputs))
    with pytest.raises(ValueError, match=rf"Own\.{method} would not be used.*Given: "):
        kind(model)


def test_a_task_that_overrides_more_is_refused_by_name():
    with pytest.raises(ValueError, match=r"OwnFit\.fit would not be used.*Given: "):
        FisherRegularizedModel(OwnFit(Rescaled()))


class Distiller(keras.Model):
    """Compiled as in Keras' example of distillation."""

    def compile(self, optimizer, metrics, student_loss, alpha=0.5):
        super().compile(optimizer=optimizer, metrics=metrics)
        self.student_loss, self.alpha = student_loss, alpha

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.alpha * self.student_loss(y, y_pred)


@pytest.mark.parametrize("kind", [FisherRegularizedModel, SharpnessAwareModel])
def test_a_compile_with_a_signature_of_its_own(kind):
    x, y = np.random.RandomState(0).randn(12, 4).astype("float32"), np.arange(12) % CLASSES
    inputs = keras.Input((4,))
    classifier = Distiller(inputs, keras.layers.Dense(CLASSES)(inputs))
    with pytest.raises(ValueError, match=r"compile the classifier by its own arguments first"):
        compiled(kind(classifier))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile("sgd", [], loss, alpha=0.25)
    logs = compiled(kind(classifier)).train_on_batch(x, y, return_dict=True)
    assert logs["loss"] > 0
    assert classifier.alpha == 0.25


def test_a_data_set_is_not_split():
    batches = tf.data.Dataset.from_tensor_slices(data()[:2]).batch(5)
    with pytest.raises(ValueError, match=r"give validation_data.* validation_split=0\.25"):
        wrapped().fit(batches, validation_split=0.25, verbose=0)
