"""Tries out what of this package works with a classifier and its data, before any training."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier import Classifier, stateless
from fisher_keras.classifier.labels import labelled_data
from fisher_keras.classifier.logits import FromLogits, are_probabilities, rounding
from fisher_keras.classifier.wrapper import unchanged
from fisher_keras.fisher import loss_gradient_gram
from fisher_keras.metrics import hessian, robustness
from fisher_keras.regularizer import FisherRegularizedModel, SharpnessAwareModel
from fisher_keras.regularizer.batches import Batch
from fisher_keras.regularizer.fisher import GRADIENTS
from fisher_keras.regularizer.traces import decomposes_over_examples

_NUM_EXAMPLES = 16
_NUM_SUB_BATCHES = 4
# A Hessian of more parameters takes minutes.
_QUICK_HESSIAN = 3_000


@dataclasses.dataclass(frozen=True)
class FeatureCheck:
    """One thing that was tried.

    Attributes:
        name: Name of the feature.
        works: Whether it works with the model and data.
        seconds: The time of the first call, most of which is tracing; NaN if it was not tried.
        note: The reason of a refusal, or a remark.
    """

    name: str
    works: bool
    seconds: float
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ClassifierCheck:
    """The result of `check_classifier`; `str` of it is a table.

    Attributes:
        num_parameters: W, the number of trainable parameters.
        features: Everything that was tried.
    """

    num_parameters: int
    features: tuple[FeatureCheck, ...]

    def works(self, name: str) -> bool:
        """Returns whether a feature works, by its name."""
        return {feature.name: feature.works for feature in self.features}[name]

    def __str__(self) -> str:
        """Returns a table: a line a feature."""
        width = max(len(feature.name) for feature in self.features)
        lines = [f"{self.num_parameters} trainable parameters"]
        lines.append(f"{'':{width}}  works  first call  note")
        for feature in self.features:
            seconds = "" if np.isnan(feature.seconds) else f"{feature.seconds:.1f} s"
            works = "yes" if feature.works else "no"
            lines.append(f"{feature.name:{width}}  {works:5}  {seconds:>10}  {feature.note}")
        return "\n".join(line.rstrip() for line in lines)


def check_classifier(
    model: keras.Model, x: Any, y: Any, from_logits: FromLogits = "auto"
) -> ClassifierCheck:
    """Tries out what of this package works with a classifier and its data.

    A few examples are evaluated, and nothing is trained. Tracing a large network takes seconds for
    each feature: the table says how long the first call took.

    Args:
        model: A Keras classifier. If it is compiled, its loss is taken for the regularizers; else
            the cross-entropy that belongs to its outputs and labels.
        x: Inputs, an array or a structure of arrays; the first 16 examples are used.
        y: Their labels, as `fit` takes them.
        from_logits: Whether the model's outputs are logits, True or False; "auto" finds out.

    Returns:
        A small object that prints as a table.

    Raises:
        ValueError: If the model cannot be evaluated on the data at all.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> report = check_classifier(model, np.random.normal(size=(16, 4)), np.arange(16) % 3)
        >>> report.works("Gram matrix")
        True
    """
    data = labelled_data((x, y)).take(slice(_NUM_EXAMPLES))
    classifier = Classifier(model, from_logits)
    # What fails here fails everywhere: that is an error, and no line of the table.
    classifier.logits(data.x)
    num_parameters = stateless.count_parameters(stateless.weights(classifier.model))
    inputs, labels = classifier.inputs(data.x), tf.convert_to_tensor(y[:_NUM_EXAMPLES])
    batch = Batch(inputs, labels, None)
    loss = _loss(classifier, data.y, inputs)
    # Without the model's preprocessing, which a step does itself; `inputs` are preprocessed.
    given = keras.tree.map_structure(tf.convert_to_tensor, data.x)
    features = [
        _tried("Gram matrix", lambda: loss_gradient_gram(classifier, data.x, data.y)),
        _tried("robustness", lambda: robustness(classifier, data.x)),
        _hessian(classifier, data.x, data.y, num_parameters),
    ]
    with unchanged(classifier.model):  # Some are compiled with the model around them.
        features += _training(classifier.model, loss, batch, (given, labels))
    return ClassifierCheck(num_parameters, tuple(features))


def _training(model: keras.Model, loss: Any, batch: Batch, given: tuple) -> Iterator[FeatureCheck]:
    """Tries the training methods on a prepared batch, and on data as `fit` takes them."""
    for gradient in GRADIENTS:
        for shares in (False, True):
            name = f"regularizer, {gradient}" + (", shared gradients" if shares else "")
            step = functools.partial(_step, model, loss, given, gradient, shares)
            yield _tried(name, step)
    yield _tried('sharing by "auto"', lambda: _share(model, loss, batch))
    yield _tried("SAM", lambda: _losses(SharpnessAwareModel(model), loss, batch))


def _tried(name: str, call: Callable[[], Any]) -> FeatureCheck:
    """Calls a function; whatever error it raises is the finding."""
    start = time.monotonic()
    try:
        call()
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0] or type(error).__name__
        return FeatureCheck(name, False, time.monotonic() - start, first_line)
    return FeatureCheck(name, True, time.monotonic() - start)


def _hessian(classifier: Classifier, x: Any, y: Any, num_parameters: int) -> FeatureCheck:
    if num_parameters > _QUICK_HESSIAN:
        note = f"not tried: it takes minutes with more than {_QUICK_HESSIAN} parameters"
        return FeatureCheck("Hessian", False, np.nan, note)
    return _tried("Hessian", lambda: hessian(classifier, x, y))


def _losses(method: keras.Model, loss: Any, batch: Batch) -> Any:
    """Returns the losses of a training method on a batch, once they have been checked."""
    method.compile("sgd", loss)
    method.prepare(batch)
    losses = method.losses_of(batch)
    method.check_once(losses)
    return losses


def _step(model: keras.Model, loss: Any, data: tuple, gradient: str, shares: bool) -> None:
    """Computes the gradient of a step in a graph, as `fit` does; it is not applied."""
    method = FisherRegularizedModel(
        model, num_sub_batches=_NUM_SUB_BATCHES, gradient=gradient, share_gradients=shares
    )
    method.compile("sgd", loss)
    gradients, *_ = tf.function(method.regularized_gradients, autograph=False)(*data)
    # A weight that the loss does not depend on has none, and a table of embeddings a sparse one.
    known = [tf.convert_to_tensor(g).numpy() for g in gradients if g is not None]
    if not all(np.isfinite(gradient).all() for gradient in known):
        raise ValueError("The gradient of a step is NaN or infinite.")


def _share(model: keras.Model, loss: Any, batch: Batch) -> None:
    """Raises a ValueError where `share_gradients="auto"` shares no gradients."""
    method = FisherRegularizedModel(model, gradient=GRADIENTS[-1])
    if not decomposes_over_examples(_losses(method, loss, batch)):
        raise ValueError(
            "a step takes three gradients: L is not a mean over examples, or that is not known"
        )


def _loss(classifier: Classifier, y: np.ndarray, inputs: Any) -> Any:
    """Returns the compiled loss, else the cross-entropy that belongs to outputs and labels."""
    model = classifier.model
    if model.compiled and model.loss is not None:
        return model.loss
    outputs = model(inputs, training=False)
    binary = outputs.shape[-1] == 1 or classifier.likelihood(inputs).bernoulli
    logits = classifier.from_logits
    if logits == "auto":
        units = outputs[..., tf.newaxis] if binary else outputs
        logits = not are_probabilities(units, rounding(tf.float16))
    if binary:
        return keras.losses.BinaryCrossentropy(from_logits=logits)
    if y.ndim < outputs.shape.rank:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    return keras.losses.CategoricalCrossentropy(from_logits=logits)
