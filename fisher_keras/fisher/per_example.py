"""Per-example gradients of the hard-label loss, for one batch in a graph."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.classifier.logits import distance_from_probabilities, unit_cotangents
from fisher_keras.fisher.rules import Gradients
from fisher_keras.fisher.structured import structured_gradients
from fisher_keras.fisher.vectorized import map_examples

# Keeps half precision's gradients away from its smallest numbers; a power of two, so exact.
_HALF_SCALE = 1024.0
# Gradients that are zero but for rounding have no relative error; this share of the largest
# gradient of all weights is about that rounding.
_NEGLIGIBLE = 1e-5


class Batch:
    """A batch of N examples, what the model gives for it, and its losses' gradients there.

    Attributes:
        logits: What is differentiated, logits or probabilities, shape (N, K).
        are_logits: Which of the two, a boolean scalar.
        distance: How far `logits` are from probabilities, a scalar.
        log_scale: ln of what the gradients below lack as a factor, shape (N,), float64.
    """

    def __init__(
        self,
        logits_of: Callable[[Any, list[tf.Tensor]], tuple[tf.Tensor, tf.Tensor]],
        x: Any,
        labels: tf.Tensor,
        weights: list[tf.Tensor],
        normalize_logits: float | None,
    ) -> None:
        """Evaluates the model.

        Args:
            logits_of: Takes inputs and weights to `logits` and `are_logits`.
            x: The inputs, a structure of tensors of shape (N, ...).
            labels: Class indices, int32, shape (N,).
            weights: The model's weights.
            normalize_logits: See `unit_cotangents`.
        """
        self._logits_of = logits_of
        self._x = x
        self.logits, self.are_logits = logits_of(x, weights)
        self.logits.set_shape([labels.shape[0], None])
        self.distance = distance_from_probabilities(self.logits)
        units, log_scale = unit_cotangents(self.logits, self.are_logits, labels, normalize_logits)
        scale = _HALF_SCALE if self.logits.dtype.size < 4 else 1.0
        self._cotangents = tf.cast(scale * units, self.logits.dtype)
        self.log_scale = log_scale - tf.math.log(tf.constant(scale, tf.float64))

    def structured_gradients(self, weights: list[tf.Tensor]) -> list[Gradients | None]:
        """Returns what `structured_gradients` finds. To be called before anything else."""
        inputs = keras.tree.flatten(self._x)
        return structured_gradients(self.logits, self._cotangents, inputs, weights)

    def general_gradients(self, weights: list[tf.Tensor], indices: list[int]) -> list[tf.Tensor]:
        """Returns gradients of some of the weights, each of shape (N, *weight.shape).

        Each example is a batch of its own.
        """
        if not indices:
            return []
        chosen = [weights[index] for index in indices]

        def one_example(example: tuple) -> list[tf.Tensor]:
            x, cotangent = keras.tree.map_structure(lambda t: t[tf.newaxis], example)
            with tf.GradientTape() as tape:
                tape.watch(chosen)
                logits, _ = self._logits_of(x, weights)
            return _dense(
                tape.gradient(
                    logits,
                    chosen,
                    output_gradients=cotangent,
                    unconnected_gradients=tf.UnconnectedGradients.ZERO,
                )
            )

        return map_examples(one_example, (self._x, self._cotangents))

    def coupled_gradients(self, weights: list[tf.Tensor]) -> list[tf.Tensor]:
        """Returns the gradients where a loss depends on the other examples of the batch, too."""

        def one_loss(chosen: tf.Tensor) -> list[tf.Tensor]:
            return self._combination(weights, chosen)

        return map_examples(one_loss, tf.eye(self.logits.shape[0], dtype=self.logits.dtype))

    def errors(
        self, gradients: list[Gradients | None], weights: list[tf.Tensor]
    ) -> list[tf.Tensor]:
        """Compares a random combination of per-example gradients with that of reverse mode.

        Args:
            gradients: What `structured_gradients` found.
            weights: The weights.

        Returns:
            The largest error of each weight's gradient relative to its largest entry; 0 for one
            that was not found.
        """
        factors = tf.random.stateless_normal([self.logits.shape[0]], [0, 0])
        expected = self._combination(weights, tf.cast(factors, self.logits.dtype))
        off, largest = [], []
        # The last layer's gradients are there first. One after another, so that the factors of
        # few are in memory at a time.
        for found, right in zip(reversed(gradients), reversed(expected), strict=True):
            largest.append(tf.cast(_largest(right), tf.float64))
            if found is None:
                off.append(tf.zeros([], tf.float64))
                continue
            with tf.control_dependencies(off[-1:]):
                mine = found.combination(factors)
            off.append(tf.cast(_largest(mine - tf.cast(right, mine.dtype)), tf.float64))
        off, largest = tf.stack(off[::-1]), tf.stack(largest[::-1])
        floor = _NEGLIGIBLE * tf.reduce_max(largest)
        return tf.math.divide_no_nan(off, tf.maximum(largest, floor))

    def _combination(self, weights: list[tf.Tensor], factors: tf.Tensor) -> list[tf.Tensor]:
        """Returns the gradient of the sum of the losses, each times its factor."""
        cotangents = factors[:, tf.newaxis] * self._cotangents
        return _dense(
            tf.gradients(
                self.logits,
                weights,
                cotangents,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
        )


def _largest(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_max(tf.abs(values))


def _dense(gradients: list) -> list[tf.Tensor]:
    return [tf.convert_to_tensor(g) for g in gradients]
