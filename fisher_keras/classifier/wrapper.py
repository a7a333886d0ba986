"""Models around a classifier, and the classifier inside."""

import contextlib
import inspect
import os
from collections.abc import Iterator
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier import preprocessing, stateless
from fisher_keras.classifier.inputs import check_model
from fisher_keras.graph import keras_private

# What a classifier must leave to Keras, for the wrapper has its own.
_STEPS = (
    *("train_step", "test_step", "predict_step"),
    *("make_train_function", "make_test_function", "make_predict_function"),
    "get_metrics_result",
)
# These are the wrapper's as well, and it does not ask for the classifier's.
_PROPERTIES = ("losses", "trainable_variables", "trainable_weights")
_SEEDS = "seeds_of_classifier"  # In a file of weights.


class ClassifierWrapper(preprocessing.PreprocessedData):
    """A Keras model that trains a classifier; its outputs, loss and metrics are the classifier's.

    What is said of a local minimum is said of the classifier inside: `unwrap` finds it.

    Attributes:
        model: The classifier, to be saved, evaluated or served without the wrapper.
        has_custom_loss: Once compiled, whether the classifier overrides `compute_loss`.
        has_plain_loss: Once compiled, whether L is the compiled loss itself, but for penalties.
    """

    has_custom_loss = has_plain_loss = False

    def __init__(self, model: keras.Model, name: str | None = None) -> None:
        """Wraps a classifier.

        Args:
            model: A Keras classifier with one output.
            name: Name of the wrapper.

        Raises:
            ValueError: If it is not a Keras model, has several outputs, or overrides a step.
        """
        classifier = unwrap(model)
        outputs = getattr(model, "outputs", None)
        if outputs is not None and len(outputs) != 1:
            raise ValueError(
                f"{type(self).__name__} wraps a classifier with one output; {model.name!r} has "
                f"{len(outputs)}. Wrap a model with the output to be classified."
            )
        preprocess = preprocessing.preprocess_samples(classifier)
        # Own methods that take data are allowed where they are known: the same is done here.
        must_not = _STEPS if preprocess else (*_STEPS, *preprocessing.TAKING_DATA)
        # Of the classifier inside: a wrapper around it has steps of its own by right.
        overridden = preprocessing.own_methods(classifier, (*must_not, *_PROPERTIES))
        if overridden:
            remedy = "Override call, compute_loss or compute_metrics instead."
            if overridden[0] in _PROPERTIES:
                remedy = "Add penalties by add_loss, and freeze layers by trainable = False."
            raise ValueError(
                f"{type(model).__name__}.{overridden[0]} would not be used, for "
                f"{type(self).__name__} has its own. {remedy} Given: {model.name!r}."
            )
        # The classifier casts its inputs itself; its policy decides about loss scaling.
        super().__init__(name=name, dtype=model.dtype_policy, autocast=False)
        self.model = model
        self.preprocess = preprocess
        self.built = keras_private.is_built(model)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses another classifier: what was traced is of the one that there is."""
        if name == "model" and value is not getattr(self, "model", value):
            raise ValueError(
                f"{type(self).__name__} keeps its classifier: wrap the other one in a new "
                f"{type(self).__name__}. Given: {value!r} instead of {self.model.name!r}."
            )
        super().__setattr__(name, value)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> tf.Tensor:
        """Calls the classifier as Keras' own steps do: with `training` if it accepts that."""
        # The layers of one that does not would take the mode of the call around them.
        if not stateless.accepts_training(unwrap(self.model)):
            kwargs.pop("training", None)
        return super().__call__(inputs, *args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        """Returns the classifier's outputs."""
        return stateless.call(self.model, inputs, training)

    def output_spec(self, x: Any) -> Any:
        """Returns the shape and dtype of the outputs for inputs, as a `keras.KerasTensor`."""
        # Of a functional model they are known. Keras would take inputs by name in their order.
        known = getattr(self.model, "output", None)
        if type(self.model) is keras.Sequential:  # It has only a list of them.
            known = next(iter(getattr(self.model, "outputs", ())), None)
        # But for the number of positions, which may be that of the inputs.
        shapes = [output.shape for output in keras.tree.flatten(known) if output is not None]
        if shapes and all(None not in shape[1:] for shape in shapes):
            return known
        return self.compute_output_spec(stateless.symbolic(x))

    @property
    def output_names(self) -> list[str]:
        """The classifier's, by which losses and metrics may be given; only some models have any.

        Raises:
            AttributeError: If the classifier has none.
        """
        return self.model.output_names

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Configures training; the arguments are those of `keras.Model.compile`.

        A classifier with its own `compute_loss`, which may ask for the compiled loss or optimizer,
        is compiled again: with this optimizer, this loss and its weights, and without metrics.
        """
        super().compile(optimizer, loss, loss_weights, *args, **kwargs)
        self.has_custom_loss = overrides(self.model, "compute_loss")
        overridden = type(self).compute_loss is not ClassifierWrapper.compute_loss
        # Keras takes a weight for each output, maybe by name.
        weights = [w for w in keras.tree.flatten(loss_weights) if w is not None]
        weighted = not np.all(np.equal(weights, 1))
        self.has_plain_loss = not (weighted or self.has_custom_loss or overridden)
        if self.has_custom_loss:
            self._compile_classifier(
                optimizer=self.optimizer, loss=loss, loss_weights=loss_weights
            )

    def _compile_classifier(self, **arguments: Any) -> None:
        try:
            inspect.signature(self.model.compile).bind(**arguments)
        except TypeError as error:
            if not self.model.compiled:
                raise ValueError(
                    f"{type(self.model).__name__}.compile does not take Keras' arguments "
                    f"({error}): compile the classifier by its own arguments first, and then "
                    f"{type(self).__name__}. Given: {self.model.name!r}, which is not compiled."
                ) from error
            return
        self.model.compile(**arguments)

    def compute_loss(
        self, x: Any, y: Any, y_pred: tf.Tensor, sample_weight: Any = None, training: bool = True
    ) -> tf.Tensor:
        """Returns L, as the classifier computes it if it overrides that."""
        if not self.has_custom_loss:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        # As Keras calls it: an override may have other names, and leave the last argument out.
        has_training = "training" in inspect.signature(self.model.compute_loss).parameters
        mode = {"training": training} if has_training else {}
        return self.model.compute_loss(x, y, y_pred, sample_weight, **mode)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras' metrics of this model, and those that the classifier has made for itself."""
        return [*super().metrics, *keras_private.metrics_made_by(unwrap(self.model))]

    def compute_metrics(
        self, x: Any, y: Any, y_pred: tf.Tensor, sample_weight: Any = None
    ) -> dict[str, tf.Tensor]:
        """Returns the logs, with those of the classifier if it computes some itself."""
        if not overrides(self.model, "compute_metrics"):
            return super().compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        logs = self.model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        own = {metric.name for metric in keras_private.metrics_made_by(unwrap(self.model))}
        # Where both have a log of one name, that of the wrapper, which does the step, counts,
        # unless the classifier has made the metric.
        rest = super().compute_metrics(x, y, y_pred, sample_weight=sample_weight).items()
        return {**logs, **{name: value for name, value in rest if name not in own & logs.keys()}}

    def reset_metrics(self) -> None:
        """Resets all metrics, the classifier's own too."""
        own = set(map(id, self.model.metrics))
        for metric in self.metrics:
            if id(metric) not in own:
                metric.reset_state()
        self.model.reset_metrics()

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as the saved model was, and makes room for its optimizer's state."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def export(self, *args: Any, **kwargs: Any) -> None:
        """Exports the classifier, which knows its inputs; arguments as of `keras.Model.export`."""
        self.model.export(*args, **kwargs)

    def save_spec(self, *args: Any, **kwargs: Any) -> None:
        """Refuses TensorFlow's converters, which ask for the inputs of a model by this."""
        raise ValueError(
            f"{type(self).__name__} trains a classifier and is not converted itself: give its "
            f"attribute `model`. Given: {self.name!r} around {self.model.name!r}."
        )

    def save_weights(self, filepath: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Saves weights as Keras does, in a file that the classifier can load, too."""
        super().save_weights(filepath, *args, **kwargs)
        if _is_one_file(filepath):
            with h5py.File(filepath, "r+") as file:
                file.move("vars", _SEEDS)  # In this place, the classifier looks for its own.
                _link(file, *file["layers"].values())

    def load_weights(self, filepath: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Loads weights that were saved by a model like this one.

        Raises:
            ValueError: If they are others, such as those of the classifier alone.
        """
        try:
            super().load_weights(filepath, *args, **kwargs)
        except ValueError as error:
            raise ValueError(
                f"{filepath} does not hold the weights of this {type(self).__name__}. Load those "
                f"of a classifier alone by the attribute `model`: its load_weights. Given: {error}"
            ) from error
        if _is_one_file(filepath):
            with h5py.File(filepath) as file:
                self.load_own_variables(file.get(_SEEDS, {}))

    def save_own_variables(self, store: dict[str, Any]) -> None:
        """Stores the classifier's seeds, which Keras leaves out of a saved model."""
        for index, state in enumerate(keras_private.seed_states(self.model)):
            store[f"seed_generator_{index}"] = state

    def load_own_variables(self, store: dict[str, Any]) -> None:
        """Restores the seeds that `save_own_variables` stored, as far as they are there."""
        for index, state in enumerate(keras_private.seed_states(self.model)):
            if f"seed_generator_{index}" in store:
                state.assign(store[f"seed_generator_{index}"][()])


def _is_one_file(filepath: str | os.PathLike) -> bool:
    return str(filepath).endswith(".h5")


def _link(file: h5py.Group, inside: h5py.Group) -> None:
    """Gives what is stored of the classifier, inside of a wrapper's file, its own path as well.

    A classifier that holds a model of its own class has that in the place where it is itself.
    """
    if inside.get("layers", {}).keys() & file["layers"].keys():
        return
    for name in inside.keys() - {"layers"} - file.keys():
        file[name] = inside[name]  # A link, which takes no space.
    for name, group in inside.get("layers", {}).items():
        file["layers"][name] = group


def unwrap(model: keras.Model) -> keras.Model:
    """Returns the classifier inside a `ClassifierWrapper`, and any other model as it is.

    Raises:
        ValueError: If it is no Keras model.
    """
    check_model(model)
    while isinstance(model, ClassifierWrapper):
        model = model.model
    return model


@contextlib.contextmanager
def unchanged(model: keras.Model) -> Iterator[None]:
    """The context after which a model has the attributes that it had before.

    To compile a model changes them; those of its variables and layers are left alone.
    """
    attributes = dict(vars(model))
    # Keras lists metrics and layers as they are assigned, also in a model's own `compile`.
    lists = {name: list(value) for name, value in attributes.items() if isinstance(value, list)}
    try:
        yield
    finally:
        vars(model).clear()
        vars(model).update(attributes)
        for name, before in lists.items():
            if len(before) != len(attributes[name]):
                attributes[name][:] = before


def overrides(model: keras.Model, method: str) -> bool:
    """Returns whether a classifier overrides a method of `keras.Model`."""
    return bool(preprocessing.own_methods(unwrap(model), (method,)))
