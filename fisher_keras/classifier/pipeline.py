"""Inputs prepared as a classifier's own `fit`, `evaluate` and `predict` prepare them."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.classifier.precision import rounding_of
from fisher_keras.classifier.wrapper import overrides

# Methods in which a class may change data before its `call` sees them.
_TAKE_DATA = ("fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "predict_on_batch")
_COMPARED_EXAMPLES = 4


def prepare(model: keras.Model, x: Any) -> Any:
    """Returns inputs as tensors that a model's call takes.

    Where the model has a preprocessor, as the classifiers of KerasHub do, it is applied as their
    `fit` applies it.

    Args:
        model: A Keras classifier.
        x: Inputs of N examples, an array or a structure of arrays.
    """
    x = keras.tree.map_structure(tf.convert_to_tensor, x)
    own = getattr(model, "preprocess_samples", None) or getattr(model, "preprocessor", None)
    if not callable(own):
        return x
    prepared = keras.utils.unpack_x_y_sample_weight(own(x))[0]
    return keras.tree.map_structure(tf.convert_to_tensor, prepared)


def check_pipeline(model: keras.Model, x: Any) -> None:
    """Establishes that a model's own methods evaluate it on what `prepare` returns.

    Args:
        model: A built Keras classifier.
        x: Inputs of N examples, an array or a structure of arrays.

    Raises:
        ValueError: If the model overrides methods that take data, and either leaves `predict` to
            Keras, so that nothing can be compared, or predicts something else than its call
            returns for the prepared inputs.
    """
    overridden = [method for method in _TAKE_DATA if overrides(model, method)]
    if not overridden:
        return
    few = keras.tree.map_structure(lambda leaf: leaf[:_COMPARED_EXAMPLES], x)
    if overrides(model, "predict"):
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
