"""A Keras classifier with its logits and cached traced functions."""

import contextlib
import copy
import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any, get_args

import keras
import tensorflow as tf

from fisher_keras.arguments import one_of, real_number
from fisher_keras.classifier import stateless
from fisher_keras.classifier.batch_axis import CallGraph, call_graph
from fisher_keras.classifier.hard_label_loss import labels_of
from fisher_keras.classifier.inputs import check_dense, fitting, part_of
from fisher_keras.classifier.likelihood import Likelihood
from fisher_keras.classifier.logits import FromLogits, LikelihoodName, Logits, find_logits
from fisher_keras.classifier.preprocessing import check_own_methods, prepare
from fisher_keras.classifier.wrapper import unwrap
from fisher_keras.graph import keras_private
from fisher_keras.graph.tracing import signature, specs, trace_for_any_batch_size

# Attributes of a model that Keras sets while it trains; none has a part in a call.
_OF_TRAINING = {
    "history",
    "predict_function",
    "stop_evaluating",
    "stop_predicting",
    "stop_training",
    "test_function",
    "train_function",
}

_SETTINGS = ("model", "from_logits", "normalize_logits", "labels", "likelihood_name")


class Classifier:
    r"""A Keras classifier $f_w$ with all that was found out about it: made once for many calls.

    Every metric takes one in place of a model. To trace a large network takes seconds, which a
    `Classifier` spends once, where a call that is given the model spends them each time. The
    model's weights may change in between; that layers are frozen or not, or an attribute such as
    an activation replaced, is noticed. After any other change make a new `Classifier`, and so for
    other settings: the attributes that the constructor sets cannot be replaced.

    Examples:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> classifier = Classifier(model)
        >>> classifier.logits(tf.zeros((2, 4))).shape
        TensorShape([2, 3])

    Attributes:
        model: The Keras model; of a `FisherRegularizedModel`, the one that it trains.
        from_logits: Whether it gives logits: True, False or "auto".
        normalize_logits: c, where the metrics are those of the logits z / (c ||z||); else None.
        labels: The form of labels that the compiled loss takes, see `labels_of`; None without one.
        likelihood_name: Its `likelihood`: "categorical", "bernoulli" or "auto".
        num_classes: K, 2 for a single sigmoid unit; None before the first trace.
    """

    def __init__(
        self,
        model: keras.Model,
        from_logits: FromLogits = "auto",
        normalize_logits: float | None = None,
        *,
        likelihood: LikelihoodName = "auto",
    ) -> None:
        """Takes a model, without calling it.

        Args:
            model: A Keras classifier with one output of shape (N, K), or (N, 1) for a single
                sigmoid unit; or (N, ..., K) for a prediction at each of several positions.
            from_logits: Whether it gives logits rather than probabilities. "auto" finds out: by
                the softmax or sigmoid that it ends in, else by the values.
            normalize_logits: A number c divides each logit vector by its norm times c, which makes
                minima of different training loss comparable (Table 2); None does not.
            likelihood: "categorical" for one of K classes at each position, "bernoulli" for K
                labels that are yes or no each. "auto" takes the second for a sigmoid of several
                outputs, and for logits of a model that is compiled with a binary cross-entropy.

        Raises:
            ValueError: If an argument is out of range.
        """
        self.model = unwrap(model)
        self.likelihood_name = one_of("likelihood", likelihood, get_args(LikelihoodName))
        one_of("from_logits", from_logits, (True, False, "auto"))
        # The model inside a wrapper may not be compiled itself.
        self.labels = labels_of(model) or labels_of(self.model)
        self.from_logits = from_logits if from_logits == "auto" else bool(from_logits)
        if normalize_logits is not None:
            normalize_logits = real_number("normalize_logits", normalize_logits, above=0)
        self.normalize_logits = normalize_logits
        self.pipeline_is_checked = False
        self.forget()

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses other settings: what was traced is of those that there are."""
        if name in _SETTINGS and hasattr(self, name):
            raise AttributeError(
                f"A Classifier keeps its {name}: make a new one with the other. Given: {value!r}."
            )
        super().__setattr__(name, value)

    def forget(self) -> None:
        """Forgets all traces, and with them the number of classes."""
        self.num_classes: int | None = None
        self._likelihoods: dict[str, Likelihood] = {}
        self._functions: dict[tuple, Callable] = {}
        self._trace_key: tuple[list, ...] = ()
        self._making = threading.RLock()

    def build(self, x: Any) -> None:
        """Makes the model's variables if it has none yet.

        Args:
            x: Inputs, an array or a structure of arrays.
        """
        if not keras_private.is_built(self.model):
            self.model(prepare(self.model, part_of(x, 0, 1)))

    def inputs(self, x: Any) -> Any:
        """Returns inputs as tensors that the model's call takes; builds the model if need be.

        A preprocessor of the model is applied, as its own `fit`, `evaluate` and `predict` do.

        Args:
            x: Inputs of N examples, an array or a structure of arrays.

        Raises:
            ValueError: If the model overrides these methods and does something else in them, or
                x is not dense.
        """
        check_dense(x)
        self.build(x)
        if not self.pipeline_is_checked:
            check_own_methods(self.model, x)
            self.pipeline_is_checked = True
        return prepare(self.model, x)

    def copy(self) -> "Classifier":
        """Returns a classifier of the same model, for which nothing was traced yet."""
        copied = copy.copy(self)
        copied.forget()
        return copied

    def logits(self, x: Any) -> tf.Tensor:
        """Evaluates the model as it is, in inference mode.

        Args:
            x: Inputs of N examples, an array or a structure of arrays.

        Returns:
            The logits, shape (N, K) or (N, *P, K), float64, never normalized; for a sigmoid unit
            (0, log odds), and for a model that gives only probabilities their logarithms.

        Raises:
            ValueError: If outputs are not what `from_logits` and `normalize_logits` need.
        """
        return self.predictions(self.inputs(x))[0]

    def predictions(self, inputs: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the `logits` of what `inputs` returned, and Keras' mask of them.

        The mask tells which positions count, shape (N, *P), booleans.
        """
        with fitting(self.model):
            logits, counted, *to_check = self.cached(_logits_of_batches)(inputs)
        self.check_values(*to_check)
        return logits, counted

    def likelihood(self, inputs: Any) -> Likelihood:
        """Returns the likelihood of the labels of what `inputs` returned; its number is free."""
        known = self._likelihoods.get(signature(inputs))
        if known is None or None in known.positions:
            logits, _ = self.predictions(part_of(inputs, 0, 1))
            known = dataclasses.replace(
                self._likelihoods[signature(inputs)], positions=tuple(logits.shape[1:-1])
            )
        return known

    def find_logits(self, x: Any, training: bool = False) -> Logits:
        """Calls the model in the graph that is being traced.

        Args:
            x: Inputs of N examples, a structure of tensors.
            training: Whether in training mode.

        Returns:
            The tensor to differentiate at, see `fisher_keras.classifier.logits.find_logits`.
        """
        changes = self.call_graph(x, training).changes_variables
        scope = stateless.dropping_changes() if changes else contextlib.nullcontext()
        with scope, self._calling():
            outputs = stateless.call(self.model, x, training)
        options = self.from_logits, self.normalize_logits, self.likelihood_name, self.labels
        found = find_logits(outputs, *options)
        self._likelihoods[signature(x)] = found.likelihood
        self.num_classes = found.likelihood.num_classes
        return found

    def call_graph(self, x: Any, training: bool = False) -> CallGraph:
        """Returns the properties of the model's call, cached by input signature.

        Args:
            x: Inputs of N examples, a structure of tensors; N does not matter.
            training: Whether in training mode.

        Raises:
            ValueError: If examples interact in inference mode, or if what the call changes cannot
                be kept from changing.
        """
        key = training, signature(x)
        graphs = self.cached(_call_graphs)
        if key not in graphs:
            with self._calling():
                graphs[key] = call_graph(self.model, specs(x), training)
        return graphs[key]

    @contextlib.contextmanager
    def _calling(self) -> Iterator[None]:
        """The context in which the model is called: what that leaves behind is no change."""
        yield
        # A counter, say, which else would make all traces anew, and count again.
        self._trace_key = _trace_key(self.model)

    def check_values(self, are_logits: tf.Tensor, distance: tf.Tensor) -> None:
        """Raises a ValueError if outputs are not what `from_logits` and `normalize_logits` need.

        Args:
            are_logits: The value of `Logits.are_logits`.
            distance: The value of `Logits.distance_from_probabilities`.
        """
        if are_logits:
            if distance == 0:
                raise ValueError(
                    "from_logits=True, but the model's outputs are probabilities: for each "
                    "example, they are at least 0 and add up to 1. Pass from_logits='auto' or "
                    "False."
                )
            return
        if distance > 0:
            raise ValueError(
                "The model's outputs are no probabilities of classes, as from_logits=False (or "
                "'auto', where all are in 0..1) takes them: they are negative, or their sum over "
                f"the classes is not 1, by up to {float(distance):.3g}. If they are logits, pass "
                "from_logits=True; for a sigmoid for each of several labels, which is no "
                "classifier of K classes, give Classifier(model, False, likelihood='bernoulli')."
            )
        if self.normalize_logits is not None:
            raise ValueError(
                f"normalize_logits={self.normalize_logits} needs logits, and the model gives only "
                "probabilities. Evaluate a model that ends in its logits, or in softmax."
            )

    def cached(self, factory: Callable[..., Callable], *options: Any) -> Any:
        """Returns `factory(self, *options)`, cached until the model changes.

        It is made anew when layers were frozen or unfrozen, or layers, variables or public
        attributes of layers replaced.

        Args:
            factory: Makes a function that traces what it needs.
            *options: Further arguments, hashable.

        Returns:
            The function.
        """
        # Threads of a strategy's replicas ask for the same function at the same time.
        with self._making:
            trace_key = _trace_key(self.model)
            if not _same(trace_key, self._trace_key):
                self._functions.clear()
                self._likelihoods.clear()
                self._trace_key = trace_key
            key = factory, *options
            if key not in self._functions:
                self._functions[key] = factory(self, *options)
            return self._functions[key]


def as_classifier(
    model: keras.Model | Classifier,
    from_logits: FromLogits = "auto",
    normalize_logits: float | None = None,
) -> Classifier:
    """Returns a `Classifier` as it is, and makes one of a Keras model.

    Args:
        model: One of the two.
        from_logits: For a Keras model, see `Classifier`.
        normalize_logits: For a Keras model, see `Classifier`.

    Returns:
        The classifier.

    Raises:
        ValueError: If options are out of range, or given beside a `Classifier`, which has its own.
    """
    if not isinstance(model, Classifier):
        return Classifier(model, from_logits, normalize_logits)
    if from_logits != "auto" or normalize_logits is not None:
        raise ValueError(
            f"A Classifier has from_logits and normalize_logits of its own: give them to "
            f"Classifier(...). Given: from_logits={from_logits!r}, "
            f"normalize_logits={normalize_logits!r}."
        )
    return model


def _call_graphs(classifier: Classifier) -> dict[tuple[bool, str], CallGraph]:
    return {}


def logits_function(classifier: Classifier) -> Any:
    """Makes a function of logits in inference mode, at the weights of the moment.

    Args:
        classifier: A built classifier.

    Returns:
        A `tf.function` from inputs to the logits in float64, the mask of `Classifier.predictions`,
        and the arguments of `check_values`.
    """

    @tf.function(autograph=False)
    def logits(x: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        found = classifier.find_logits(x)
        to_check = found.are_logits, found.distance_from_probabilities()
        return found.in_float64(), found.counted(), *to_check

    return logits


def _logits_of_batches(classifier: Classifier) -> Callable[[Any], tuple]:
    return trace_for_any_batch_size(logits_function(classifier))


def _trace_key(model: keras.Model) -> tuple[list, ...]:
    """Returns what a trace depends on: variables, layers and their attributes.

    Of these the public ones, as an activation or a rate; they are compared by identity. A tensor
    of a graph, which a trace itself leaves behind, does not count.
    """
    layers = keras_private.all_layers(model)
    attributes = [
        value
        for layer in layers
        for name, value in sorted(vars(layer).items())
        if not (name.startswith("_") or name in _OF_TRAINING or tf.is_symbolic_tensor(value))
    ]
    attributes += [layer.dtype_policy for layer in layers]  # Keras keeps it in a private one.
    flags = [layer.trainable for layer in layers]
    return model.variables, model.trainable_variables, layers, flags, attributes


def _same(these: tuple[list, ...], those: tuple[list, ...]) -> bool:
    """Returns whether lists hold the same objects."""
    return [[id(item) for item in part] for part in these] == [
        [id(item) for item in part] for part in those
    ]
