"""Preprocessing that a classifier does itself in `fit`, `evaluate` and `predict`.

The tasks of KerasHub override Keras' methods that take data, all in one class, and give each batch
to their `preprocessor` first. Around such a classifier, the same is done here.
"""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.classifier.inputs import part_of, tensor, with_text
from fisher_keras.classifier.precision import rounding_of

OF_DATA = ("fit", "evaluate", "predict")
_COMPARED_EXAMPLES = 4
TAKING_DATA = (*OF_DATA, "train_on_batch", "test_on_batch", "predict_on_batch")
_PREDICTING = ("predict", "predict_step", "make_predict_function")


def own_methods(model: keras.Model, names: tuple[str, ...]) -> list[str]:
    """Returns the names of the methods and properties of `keras.Model` that a model overrides."""
    static = inspect.getattr_static
    return [name for name in names if static(model, name) is not static(keras.Model, name)]


def preprocess_samples(model: keras.Model) -> Callable[..., Any] | None:
    """Returns the function of (x, y, sample_weight) that a model applies to data, if it is known.

    Args:
        model: A Keras model.

    Returns:
        The function, which returns what it has made of its arguments as Keras packs them; None
        if the model takes data as Keras does, or in another way.
    """
    # The classes that define the overridden methods: all in one is KerasHub's way.
    owners = {
        next(c for c in type(model).__mro__ if name in vars(c))
        for name in own_methods(model, TAKING_DATA)
    }
    if len(owners) != 1:  # A class further down does something else, too.
        return None
    if "preprocess_samples" in vars(owners.pop()):
        return model.preprocess_samples
    preprocessor = getattr(model, "preprocessor", None)
    if preprocessor is None:
        return None
    call = getattr(preprocessor, "call", preprocessor)
    # Some preprocessors make the labels, too; others are for the inputs alone.
    makes_labels = "y" in inspect.signature(call).parameters

    def preprocess(x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        if makes_labels:
            return preprocessor(x, y=y, sample_weight=sample_weight)
        return keras.utils.pack_x_y_sample_weight(preprocessor(x), y, sample_weight)

    return preprocess


def prepare(model: keras.Model, x: Any) -> Any:
    """Returns inputs as tensors that a model's call takes.

    Where the model has a preprocessor, as the classifiers of KerasHub do, it is applied as their
    `fit` applies it.

    Args:
        model: A Keras classifier.
        x: Inputs of N examples, an array or a structure of arrays.
    """
    x = keras.tree.map_structure(tensor, x)
    preprocess = preprocess_samples(model)
    if preprocess is None:
        return x
    prepared = keras.utils.unpack_x_y_sample_weight(preprocess(x))[0]
    return keras.tree.map_structure(tf.convert_to_tensor, prepared)


def check_own_methods(model: keras.Model, x: Any) -> None:
    """Establishes that a model's own methods evaluate it on what `prepare` returns.

    Args:
        model: A built Keras classifier.
        x: Inputs of N examples, an array or a structure of arrays.

    Raises:
        ValueError: If the model overrides methods that take data, and either leaves `predict` to
            Keras, so that nothing can be compared, or predicts something else than its call
            returns for the prepared inputs.
    """
    overridden = own_methods(model, (*_PREDICTING, *TAKING_DATA))
    if not overridden:
        return
    few = part_of(x, 0, _COMPARED_EXAMPLES)
    if overridden[0] in _PREDICTING:
        outputs = keras.ops.convert_to_numpy(stateless.call(model, prepare(model, few), False))
        predicted = np.asarray(model.predict(few, verbose=0))
        tolerance = np.sqrt(rounding_of(model)) * np.abs(outputs).max(initial=1.0)
        same_shape = predicted.shape == outputs.shape
        if same_shape and np.allclose(predicted, outputs, atol=tolerance, equal_nan=True):
            return
    raise ValueError(
        f"{type(model).__name__}.{overridden[0]} is overridden, and may change data before the "
        "model is called, which is what is evaluated here. Give a keras.Model without it, as "
        "keras.Model(model.inputs, model.outputs), and data as its call takes them."
    )


class PreprocessedData(keras.Model):
    """A Keras model that preprocesses the data it is given.

    Attributes:
        preprocess: The result of `preprocess_samples` for the classifier inside.
    """

    preprocess = None

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Trains as `keras.Model.fit` does, on data preprocessed as the classifier does it."""
        return super().fit(**self._arguments("fit", args, kwargs))

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as `keras.Model.evaluate` does, with the classifier's preprocessing."""
        return super().evaluate(**self._arguments("evaluate", args, kwargs))

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predicts as `keras.Model.predict` does, with the classifier's preprocessing."""
        return super().predict(**self._arguments("predict", args, kwargs))

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Trains on a batch as Keras does, with the classifier's preprocessing."""
        return super().train_on_batch(**self._arguments("train_on_batch", args, kwargs))

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates a batch as Keras does, with the classifier's preprocessing."""
        return super().test_on_batch(**self._arguments("test_on_batch", args, kwargs))

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Predicts a batch as Keras does, with the classifier's preprocessing."""
        return super().predict_on_batch(**self._arguments("predict_on_batch", args, kwargs))

    def _arguments(self, method: str, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Returns the arguments of a method of Keras by name, with preprocessed data."""
        signature = inspect.signature(getattr(keras.Model, method))
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        del given["self"]
        # `bind` keeps arguments without a parameter of their own in a dictionary of that name.
        given |= given.pop("kwargs", {})
        for name in given.keys() & {"x", "y", "validation_data"}:
            given[name] = with_text(given[name])
        if self.preprocess is None:
            return given
        prepared = preprocessed_data if method in OF_DATA else preprocessed_batch
        return prepared(self.preprocess, given)


def preprocessed_batch(preprocess: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `train_on_batch` and the like for a preprocessed batch."""
    names = ("x", "y", "sample_weight")
    parts = keras.utils.unpack_x_y_sample_weight(preprocess(*map(given.get, names)))
    # `predict_on_batch` takes x alone.
    found = zip(names, parts, strict=True)
    return given | {name: part for name, part in found if name in given or part is not None}


def preprocessed_data(preprocess: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `fit`, `evaluate` or `predict` for preprocessed data.

    Args:
        preprocess: The result of `preprocess_samples`.
        given: The arguments by name.

    Raises:
        ValueError: If data cannot be preprocessed batch by batch.
    """
    given = dict(given)
    x, y, weight = (given.pop(name, None) for name in ("x", "y", "sample_weight"))
    batch_size = given.pop("batch_size", None)
    split = given.pop("validation_split", None)
    if split and given.get("validation_data") is None:
        # Before there are batches: as in Keras, the last examples are for validation.
        first, last = _split((x, y, weight), split)
        (x, y, weight), given["validation_data"] = first, last
    given["x"] = _dataset(preprocess, x, y, weight, batch_size)
    if given.get("validation_data") is not None:
        parts = keras.utils.unpack_x_y_sample_weight(given["validation_data"])
        size = given.pop("validation_batch_size", None) or batch_size
        given["validation_data"] = _dataset(preprocess, *parts, size)
    return given


def _dataset(
    preprocess: Callable[..., Any], x: Any, y: Any, weight: Any, batch_size: int | None
) -> tf.data.Dataset:
    """Returns preprocessed batches, in the order of the data as KerasHub has them."""
    if not isinstance(x, tf.data.Dataset):
        if hasattr(x, "__next__") or isinstance(x, keras.utils.PyDataset):
            raise ValueError(
                "A classifier with a preprocessor takes arrays or a tf.data.Dataset. Given: "
                f"{type(x).__name__}."
            )
        parts = keras.utils.pack_x_y_sample_weight(x, y, weight)
        x = tf.data.Dataset.from_tensor_slices(parts).batch(batch_size or 32)
    return x.map(preprocess, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _split(data: tuple, fraction: float) -> tuple[tuple, tuple]:
    """Returns all but the last examples of arrays, and the last."""
    if not all(hasattr(leaf, "shape") for leaf in keras.tree.flatten(data) if leaf is not None):
        raise ValueError(
            "validation_split is for arrays: give validation_data, as data.take(n) beside "
            f"data.skip(n). Given: validation_split={fraction}, data of {type(data[0]).__name__}."
        )
    leaves = [len(leaf) for leaf in keras.tree.flatten(data) if leaf is not None]
    at = int(np.floor(leaves[0] * (1 - fraction)))

    def rows(part: slice) -> tuple:
        return keras.tree.map_structure(lambda leaf: None if leaf is None else leaf[part], data)

    return rows(slice(at)), rows(slice(at, None))
