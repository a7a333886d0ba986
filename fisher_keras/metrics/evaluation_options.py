"""The options of an evaluation, and the identity of its trials."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.arguments import one_of, real_number, whole_number
from fisher_keras.classifier import stateless
from fisher_keras.classifier.classifier import Classifier
from fisher_keras.classifier.inputs import check_trainable
from fisher_keras.classifier.labels import Examples, fingerprint
from fisher_keras.classifier.positions import UNITS, Positions, Unit, check_single
from fisher_keras.classifier.precision import rounding_of
from fisher_keras.fisher.structured import weights_in_graph
from fisher_keras.graph import keras_private
from fisher_keras.graph.tracing import trace_for_any_batch_size
from fisher_keras.metrics.metric import DEFAULT_METRICS, METRICS
from fisher_keras.metrics.trials import draw_sample

# The metric whose mean is the paper's gamma-hat.
GAMMA_HAT = "log_determinant"
# So many examples are evaluated before the first trial, to refuse outputs of the wrong kind.
_CHECKED_EXAMPLES = 256
# Logits and gradients of so many examples stand for the function in the identity of the trials.
_COMPARED_EXAMPLES = 4


@dataclasses.dataclass
class EvaluationOptions:
    """Options of an evaluation, checked; see `evaluate_local_minimum`."""

    num_samples: int = 100
    num_trials: int = 100
    seed: int = 0
    metrics: Sequence[str] = DEFAULT_METRICS
    stratified: bool = False
    chunk_size: int | None = None
    label_smoothing: float = 0.0
    unit: Unit = "example"
    layers: bool = False
    standard_error: float | None = None

    def __post_init__(self) -> None:
        """Checks everything that does not depend on the data.

        Raises:
            ValueError: If a value cannot be used.
        """
        self.num_samples = whole_number("num_samples", self.num_samples, least=1)
        self.num_trials = whole_number("num_trials", self.num_trials, least=1)
        self.seed = whole_number("seed", self.seed, least=0)
        self.stratified, self.layers = bool(self.stratified), bool(self.layers)
        self.label_smoothing = real_number(
            "label_smoothing", self.label_smoothing, least=0, below=1
        )
        one_of("unit", self.unit, UNITS)
        if self.chunk_size is not None:
            self.chunk_size = whole_number("chunk_size", self.chunk_size, least=1)
        given = self.metrics
        # A string is iterable, too, but its letters are no names.
        several = isinstance(given, Iterable) and not isinstance(given, str)
        self.metrics = tuple(map(str, given)) if several else ()
        if not self.metrics or any(name not in METRICS for name in self.metrics):
            known = tuple(METRICS)
            raise ValueError(f"metrics must be names out of {known}. Given: metrics={given!r}.")
        if self.standard_error is not None:
            self.standard_error = real_number("standard_error", self.standard_error, above=0)
            if GAMMA_HAT not in self.metrics:
                raise ValueError(
                    f"standard_error is that of the metric {GAMMA_HAT!r}: add it to metrics, or "
                    f"leave standard_error out. Given: metrics={given!r}."
                )

    @property
    def needs(self) -> set[str]:
        """The quantities of a `Sample` that the metrics need."""
        of_metrics = {METRICS[name].needs for name in self.metrics} - {None}
        return of_metrics | ({"gram"} if self.layers else set())

    def check_count(self, units: Examples | Positions) -> None:
        """Raises a ValueError if there are too few examples, or positions, for a sample."""
        if self.num_samples > len(units):
            raise ValueError(
                f"num_samples={self.num_samples} {self.unit}s cannot be sampled without "
                f"replacement from data of {len(units)}. Lower num_samples or give more data."
            )

    def units(self, classifier: Classifier, data: Examples) -> Examples | Positions:
        """Returns the units that trials sample, examples or positions, once all is checked.

        Raises:
            ValueError: If there are too few, or `check` finds something wrong.
        """
        self.check(classifier, data)
        units = data if self.unit == "example" else Positions(classifier, data)
        self.check_count(units)
        return units

    def sample(self, units: Examples | Positions, trial: int) -> np.ndarray:
        """Returns the rows of the units that a trial samples."""
        # Labels are for strata alone, and those of several predictions have none.
        labels = units.hard_labels if self.stratified else np.zeros(len(units))
        return draw_sample(labels, self.num_samples, self.seed, trial, self.stratified)

    def check(self, classifier: Classifier, data: Examples) -> None:
        """Checks all that can be checked before the first trial, and builds the model.

        Args:
            classifier: Of the model.
            data: The training data.

        Raises:
            ValueError: If there are too few data, the model does not accept them, their labels are
                not its classes, or it has no trainable weights.
        """
        if self.unit == "example":
            self.check_count(data)
        elif not data.in_memory:
            raise ValueError(
                "unit='position' looks for the positions that count in all examples: give data "
                f"in memory, or use unit='example'. Given: {len(data)} examples in files."
            )
        inputs = classifier.inputs(data.take(slice(_CHECKED_EXAMPLES)).x)
        if "gram" in self.needs:
            check_trainable(classifier.model)
        classifier.predictions(inputs)
        # Of all examples, before the first trial.
        classifier.likelihood(inputs).hard_labels(data.labels, data.weights, "The labels of data")
        if "jacobian_norms" in self.needs:
            check_single(classifier, inputs, "The metric 'robustness'")
        if self.stratified and self.unit == "example":
            check_single(classifier, inputs, "stratified=True with unit='example'")

    def identity(self, classifier: Classifier, data: Examples) -> dict[str, Any]:
        """Returns all that trials depend on, for JSON.

        Weights and data alone do not determine the function: attributes of layers and
        `from_logits` change the logits, of which a few are compared.

        Args:
            classifier: Of the built model.
            data: The training data.
        """
        model = classifier.model
        # To freeze a layer changes the Jacobian, though neither weights nor outputs change.
        weights = stateless.weights(model)
        ours = {id(variable) for variable in weights}
        trainable = [id(variable) in ours for variable in model.weights]
        # Absent where they are not asked for, as in files of before there were such options.
        unit = {} if self.unit == "example" else {"unit": self.unit}
        layers = {"layers": True} if self.layers else {}
        return {
            **unit,
            **layers,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "metrics": list(self.metrics),
            "normalize_logits": classifier.normalize_logits,
            "stratified": self.stratified,
            "model": fingerprint([variable.numpy() for variable in model.weights]),
            "num_parameters": stateless.count_parameters(weights),
            "trainable": fingerprint([np.array(trainable)]),
            "dtypes": sorted({la.dtype_policy.name for la in keras_private.all_layers(model)}),
            "rounding": rounding_of(model),
            "logits": _some_logits(classifier, data),
            "data": data.fingerprint,
        }


def _some_inputs(classifier: Classifier, data: Examples) -> Any:
    """Returns the inputs of a few examples, as the model's call takes them."""
    # Spread over all of the data, which may be ordered by class.
    rows = np.linspace(0, len(data) - 1, _COMPARED_EXAMPLES).astype(int)
    return classifier.inputs(data.take(rows).x)


def _some_logits(classifier: Classifier, data: Examples) -> list[list[float]]:
    """Returns two sums over the logits of each of a few examples, for any number K."""
    logits, counted = classifier.predictions(_some_inputs(classifier, data))
    # Where nothing counts, nothing depends on what there is.
    logits = np.where(counted[..., np.newaxis], logits, 0.0).reshape(len(logits), -1)
    classes = np.arange(logits.shape[1])
    # The weights differ from class to class, so that exchanged classes change the sums.
    weights = np.stack([np.cos(classes), np.sin(classes)], axis=1)
    # The logarithm of a probability that is 0 is beyond that of the smallest float64, e^-745.
    return (np.maximum(logits, -800.0) @ weights).tolist()


def gradient_norms(classifier: Classifier, data: Examples) -> list[float]:
    """Returns norms of derivatives of the logits by which the functions of a model are told apart.

    The logits do not tell where a gradient is stopped, clipped or replaced.

    Args:
        classifier: Of the built model.
        data: The training data.

    Returns:
        The norm of the gradient of a weighted sum of the logits of a few examples, by each
        trainable variable and by each input of floating-point numbers.
    """
    return classifier.cached(_gradient_norms)(_some_inputs(classifier, data)).numpy().tolist()


def _gradient_norms(classifier: Classifier) -> Callable[[Any], tf.Tensor]:
    def norms(x: Any) -> tf.Tensor:
        graph = tf.compat.v1.get_default_graph()
        logits = classifier.find_logits(x)
        values = tf.where(logits.counted()[..., tf.newaxis], logits.in_float64(), 0)
        # Other weights for each class: their sum would be 0 for probabilities.
        total = tf.reduce_sum(values * tf.cos(tf.range(values.shape[-1], dtype=tf.float64)))
        # Of handles, as a mirrored variable is no source outside of its replicas.
        weights = weights_in_graph(stateless.weights(classifier.model), graph)
        inputs = [leaf for leaf in keras.tree.flatten(x) if leaf.dtype.is_floating]
        sources = [*(weight.handle for weight in weights), *inputs]
        used = [source for source in sources if source is not None]
        found = dict(zip(map(id, used), tf.gradients(total, used), strict=True))
        return tf.stack([_norm(found.get(id(source))) for source in sources])

    # A graph also where functions are called eagerly.
    return trace_for_any_batch_size(norms)


def _norm(gradient: Any) -> tf.Tensor:
    """Returns the norm of a gradient, float64; 0 of None."""
    if gradient is None:
        return tf.constant(0.0, tf.float64)
    return tf.norm(tf.cast(tf.convert_to_tensor(gradient), tf.float64))
