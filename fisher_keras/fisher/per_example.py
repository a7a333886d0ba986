"""Per-example gradients of the hard-label loss, for one batch in a graph."""

import functools
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.classifier import Classifier, stateless
from fisher_keras.classifier.precision import coarse_formats
from fisher_keras.fisher.cotangents import unit_cotangents
from fisher_keras.fisher.gradients import Gradients
from fisher_keras.fisher.structured import structured_gradients, weights_in_graph
from fisher_keras.graph.operations import traced_operations
from fisher_keras.graph.vectorized import map_examples

# Keeps half precision's gradients away from its smallest numbers; a power of two, so exact.
_HALF_SCALE = 1024.0


class TracedBatch:
    """A traced batch of N examples with its logits and per-example loss gradients.

    Attributes:
        size: Number of examples N.
        logits: The tensor that the losses are differentiated at.
        counted: Whether each position counts, booleans, shape (N, *P).
        weights: The model's trainable variables in the graph.
        distance: The `Logits.distance_from_probabilities`.
        log_scale: ln of the factor that the gradients below lack, shape (N,), float64.
        established: Whether the axis of the examples is established (see `CallGraph`).
    """

    def __init__(
        self,
        classifier: Classifier,
        training: bool,
        x: Any,
        labels: tf.Tensor,
        weights: tf.Tensor,
        sequential: bool = False,
    ) -> None:
        """Evaluates the model.

        Args:
            classifier: A built classifier.
            training: Whether to use training mode.
            x: The inputs, a structure of tensors of shape (N, ...).
            labels: Class indices, int32, shape (N, *P).
            weights: Whether each position counts, booleans, shape (N, *P).
            sequential: See `map_examples`.
        """
        self._map = functools.partial(map_examples, sequential=sequential)
        self._logits_of = functools.partial(classifier.find_logits, training=training)
        self._x = x
        self.size = keras.tree.flatten(x)[0].shape[0]
        graph = tf.compat.v1.get_default_graph()
        with traced_operations() as operations:
            self.logits = self._logits_of(x)
        call_graph = classifier.call_graph(x, training)
        self._leading = call_graph.leading_in(operations)
        self.established = call_graph.established_in(operations)
        self.weights = weights_in_graph(stateless.weights(classifier.model), graph)
        self._outputs = self.logits.values
        self._outputs.set_shape([self.size, *[None] * (self._outputs.shape.rank - 1)])
        for tensor in (labels, weights):
            tensor.set_shape(self._outputs.shape[:-1])
        self.distance = self.logits.distance_from_probabilities()
        self.counted = self.logits.counted() & weights
        # Unit vectors keep what is differentiated inside the range of every dtype.
        units, log_scale = unit_cotangents(self.logits, labels, self.counted)
        half = self._outputs.dtype.size < 4 or "float16" in coarse_formats(classifier.model)
        scale = _HALF_SCALE if half else 1.0
        self._cotangents = tf.cast(scale * units, self._outputs.dtype)
        self.log_scale = log_scale - tf.math.log(tf.constant(scale, tf.float64))

    def structured(self) -> list[Gradients | None]:
        """Returns the `structured_gradients`. It must be called before any other method."""
        inputs = keras.tree.flatten(self._x)
        leading = self._leading | {tensor.ref() for tensor in inputs}
        return structured_gradients(self._outputs, self._cotangents, inputs, self.weights, leading)

    def by_vectorized_map(self, indices: list[int]) -> list[tf.Tensor]:
        """Returns gradients of some of the weights, with each example as a separate batch.

        It is the fallback for weights without structured gradients.

        Args:
            indices: Indices of the weights.

        Returns:
            For each weight, the gradients, shape (N, *weight.shape).
        """
        if not indices:
            return []
        chosen = [self.weights[index].variable for index in indices]

        def one_example(example: tuple) -> list[tf.Tensor]:
            x, cotangent = keras.tree.map_structure(lambda t: t[tf.newaxis], example)
            with tf.GradientTape() as tape:
                tape.watch(chosen)
                outputs = self._logits_of(x).values
            return _dense(tape.gradient(outputs, chosen, cotangent, unconnected_gradients="zero"))

        return self._map(one_example, (self._x, self._cotangents))

    def with_interactions(self) -> list[tf.Tensor]:
        """Returns the gradients for losses that also depend on other examples of the batch."""
        # Each row of the unit matrix picks one loss: N backward passes over the whole batch.
        return self._map(self.weighted_sum, tf.eye(self.size, dtype=self._outputs.dtype))

    def weighted_sum(self, coefficients: tf.Tensor) -> list[tf.Tensor]:
        """Returns the gradient of a weighted sum of the losses, by one backward pass.

        Args:
            coefficients: The losses' coefficients, shape (N,).

        Returns:
            The gradient for each weight.
        """
        coefficients = tf.cast(coefficients, self._outputs.dtype)
        ones = [1] * (self._outputs.shape.rank - 1)
        coefficients = tf.reshape(coefficients, [self.size, *ones])
        # Of handles, which all reads share, so that no use of a weight is missed.
        used = [weight for weight in self.weights if weight.handle is not None]
        handles = [weight.handle for weight in used]
        gradients = tf.gradients(self._outputs, handles, coefficients * self._cotangents)
        found = dict(zip(map(id, used), gradients, strict=True))
        # What the graph does not use, or the outputs do not depend on, has a gradient of zero.
        pairs = ((weight.variable, found.get(id(weight))) for weight in self.weights)
        return _dense(
            [tf.zeros_like(v) if gradient is None else gradient for v, gradient in pairs]
        )


def _dense(gradients: list) -> list[tf.Tensor]:
    return [tf.convert_to_tensor(g) for g in gradients]
