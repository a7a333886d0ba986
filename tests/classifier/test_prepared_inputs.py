"""Classifiers that prepare data in methods of their own, as those of KerasHub do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fisher_keras import (
    FisherMetrics,
    check_classifier,
    evaluate_local_minimum,
    loss_gradient_gram,
)
from fisher_keras.metrics import hessian, robustness

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def images():
    random = np.random.default_rng(0)
    return random.integers(0, 256, (40, 6, 6, 1)).astype("uint8"), random.integers(0, 3, 40)


def scaled(x):
    return tf.image.resize(tf.cast(x, "float32") / 255.0, (4, 4))


class Sums(keras.layers.Layer):
    """No operation of which it is known that examples stay apart: they are compared."""

    def call(self, x):
        return keras.ops.cumsum(x, axis=1)


def layers():
    return [keras.Input((4, 4, 1)), keras.layers.Flatten(), Sums(), keras.layers.Dense(3)]


class Preprocessor(keras.layers.Layer):
    """Scales and resizes, and packs as KerasHub's preprocessors do."""

    def call(self, x, y=None, sample_weight=None):
        return keras.utils.pack_x_y_sample_weight(scaled(x), y, sample_weight)


class Task(keras.Model):
    """Overrides what `keras_hub.models.Task` overrides."""

    def __init__(self, preprocessor):
        super().__init__()
        self.inner = keras.Sequential(layers())
        self.preprocessor = preprocessor

    def call(self, x):
        return self.inner(x)

    def preprocess_samples(self, x, y=None, sample_weight=None):
        return self.preprocessor(x, y=y, sample_weight=sample_weight)

    def _batches(self, *arrays):
        return tf.data.Dataset.from_tensor_slices(arrays).batch(20).map(self.preprocess_samples)

    def fit(self, x, y, **kwargs):
        return super().fit(self._batches(x, y), **kwargs)

    def evaluate(self, x, y, **kwargs):
        return super().evaluate(self._batches(x, y), **kwargs)

    def predict(self, x, **kwargs):
        return super().predict(self._batches(x), **kwargs)


class OnlyFit(keras.Sequential):
    def fit(self, x, y, **kwargs):
        return super().fit(scaled(x), y, **kwargs)


class PredictsOtherwise(keras.Sequential):
    def predict(self, x, **kwargs):
        return super().predict(x, **kwargs) * 2


class PredictsBySteps(keras.Sequential):
    def predict_step(self, data):
        return super().predict_step(data) * 2


def task():
    keras.utils.set_random_seed(0)
    model = Task(Preprocessor())
    model.compile(keras.optimizers.SGD(0.0), LOSS)
    return model


def evaluate(model, x, y, **kwargs):
    return evaluate_local_minimum(model, (x, y), 8, 2, progress=False, **kwargs)


def test_metrics_are_those_of_the_inner_model_on_prepared_inputs():
    (x, y), model = images(), task()
    inner, prepared = model.inner, scaled(x).numpy()
    metrics = ("log_determinant", "trace", "robustness")
    report = evaluate(model, x, y, metrics=metrics)
    expected = evaluate(inner, prepared, y, metrics=metrics)
    for name in metrics:
        assert report.metrics[name].mean == pytest.approx(expected.metrics[name].mean, rel=1e-5)
    assert report.train.loss == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)
    gram, gram_inner = loss_gradient_gram(model, x, y), loss_gradient_gram(inner, prepared, y)
    np.testing.assert_allclose(gram.matrix, gram_inner.matrix, atol=1e-6)
    assert robustness(model, x) == pytest.approx(robustness(inner, prepared))
    np.testing.assert_allclose(hessian(model, x, y), hessian(inner, prepared, y), atol=1e-6)


def test_what_works_with_a_preprocessor():
    report = check_classifier(task(), *images())
    assert all(feature.works for feature in report.features), str(report)


def test_metrics_inside_fit():
    (x, y), model = images(), task()
    fisher = FisherMetrics((x, y), metrics=("trace",), num_samples=8)
    history = model.fit(x, y, epochs=1, callbacks=[fisher], verbose=0).history
    expected = evaluate_local_minimum(
        model.inner, (scaled(x).numpy(), y), 8, 1, metrics=("trace",), progress=False
    )
    assert history["trace"][0] == pytest.approx(expected.metrics["trace"].mean, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "method"),
    [(OnlyFit, "fit"), (PredictsOtherwise, "predict"), (PredictsBySteps, "predict_step")],
)
def test_other_classes_that_override_them_are_refused_by_name(kind, method):
    x, y = images()
    x = scaled(x).numpy()
    model = kind(layers())
    message = rf"{kind.__name__}\.{method} is overridden.* Give a keras\.Model without it"
    for call in (evaluate, loss_gradient_gram, hessian, lambda model, x, y: robustness(model, x)):
        with pytest.raises(ValueError, match=message):
            call(model, x, y)
    assert np.isfinite(evaluate(keras.Model(model.inputs, model.outputs), x, y).train.loss)


def test_robustness_of_inputs_of_several_dtypes():
    a, b = keras.Input((3,)), keras.Input((2,), dtype="float64")
    joined = keras.layers.Concatenate()([a, keras.ops.cast(b, "float32")])
    model = keras.Model([a, b], keras.layers.Dense(3)(joined))
    random = np.random.default_rng(0)
    x = random.normal(size=(9, 3)).astype("float32"), random.normal(size=(9, 2))
    plain = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    plain.set_weights(model.get_weights())
    expected = robustness(plain, np.concatenate(x, axis=1).astype("float32"))
    assert robustness(model, x) == pytest.approx(expected, rel=1e-5)


class Frame:
    """A table as pandas' is: rows by slices, arrays on request, no dtype."""

    def __init__(self, values):
        self._values = values
        self.shape = values.shape

    def __len__(self):
        return len(self._values)

    def __getitem__(self, rows):
        return Frame(self._values[rows])

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._values, dtype)


def test_robustness_of_a_table():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(9, 5)).astype("float32")
    assert robustness(model, Frame(x), batch_size=4) == pytest.approx(robustness(model, x))
