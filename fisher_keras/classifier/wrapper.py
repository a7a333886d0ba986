"""Models around a classifier, and the classifier inside."""

from typing import Any

import keras
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.classifier.inputs import check_model
from fisher_keras.graph import keras_private


class ClassifierWrapper(keras.Model):
    """A Keras model that trains a classifier; its outputs are the classifier's.

    What is said of a local minimum is said of the classifier inside: `unwrap` finds it.

    Attributes:
        model: The classifier, to be saved, evaluated or served without the wrapper.
    """

    def __init__(self, model: keras.Model, name: str | None = None) -> None:
        """Wraps a classifier.

        Args:
            model: A Keras classifier with one output.
            name: Name of the wrapper.

        Raises:
            ValueError: If it is no Keras model, or has several outputs.
        """
        if not isinstance(model, keras.Model):
            raise ValueError(
                f"{type(self).__name__} wraps a keras.Model (functional, Sequential or "
                f"subclassed). Given: {model!r} of type {type(model).__name__}."
            )
        outputs = getattr(model, "outputs", None)
        if outputs is not None and len(outputs) != 1:
            raise ValueError(
                f"{type(self).__name__} wraps a classifier with one output; {model.name!r} has "
                f"{len(outputs)}. Wrap a model with the output to be classified."
            )
        # The classifier casts its inputs itself; its policy decides about loss scaling.
        super().__init__(name=name, dtype=model.dtype_policy, autocast=False)
        self.model = model
        self.built = keras_private.is_built(model)

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        """Returns the classifier's outputs."""
        return stateless.call(self.model, inputs, training)

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments of `compile`."""
        return super().get_compile_config()

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as the saved model was, and makes room for its optimizer's state."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def export(self, *args: Any, **kwargs: Any) -> None:
        """Exports the classifier, which knows its inputs; arguments as of `keras.Model.export`."""
        self.model.export(*args, **kwargs)

    def save_own_variables(self, store: dict[str, Any]) -> None:
        """Stores the classifier's seeds, which Keras leaves out of a saved model."""
        for index, state in enumerate(keras_private.seed_states(self.model)):
            store[f"seed_generator_{index}"] = state

    def load_own_variables(self, store: dict[str, Any]) -> None:
        """Restores the seeds that `save_own_variables` stored."""
        for index, state in enumerate(keras_private.seed_states(self.model)):
            state.assign(store[f"seed_generator_{index}"][()])


def unwrap(model: keras.Model) -> keras.Model:
    """Returns the classifier inside a `ClassifierWrapper`, and any other model as it is.

    Raises:
        ValueError: If it is no Keras model.
    """
    check_model(model)
    while isinstance(model, ClassifierWrapper):
        model = model.model
    return model
