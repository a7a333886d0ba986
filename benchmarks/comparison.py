"""Rivals of the regularized step: SAM, and the regularizer as unrolled copies.

For benchmarks and tests only: one tensor of inputs, sparse labels, logits, float32, no sample
weights.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class _ComparisonModel(keras.Model):
    """A classifier whose train step applies `step_gradients` of the sub-class."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self.model = model

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return self.model(inputs, training=training)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        loss, outputs, gradients = self.step_gradients(x, y)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        self._loss_tracker.update_state(loss, sample_weight=tf.shape(x)[0])
        return self.compute_metrics(x, y, outputs)

    def step_gradients(self, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, list]:
        """Returns the loss, the outputs and the gradients to apply; moves the statistics."""
        raise NotImplementedError

    def _evaluate(self, weights: list, state: list, x: tf.Tensor, y: tf.Tensor) -> tuple:
        """Returns the compiled loss, outputs, gradients and the state after; changes nothing."""
        return self._stateless(
            lambda outputs: self.compute_loss(x=x, y=y, y_pred=outputs), weights, state, x
        )

    def _stateless(self, loss_of: Callable, weights: list, state: list, x: tf.Tensor) -> tuple:
        variables = self.model.non_trainable_variables
        mapping = [
            *zip(self.model.trainable_variables, weights, strict=True),
            *zip(variables, state, strict=True),
        ]
        with tf.GradientTape() as tape:
            tape.watch(weights)
            with keras.StatelessScope(mapping, collect_losses=True) as scope:
                outputs = self(x, training=True)
                loss = loss_of(outputs)
        after = [tf.convert_to_tensor(scope.get_current_value(v)) for v in variables]
        return loss, outputs, tape.gradient(loss, weights), after

    def _move_state(self, after: list) -> None:
        for variable, value in zip(self.model.non_trainable_variables, after, strict=True):
            variable.assign(value)


class SharpnessAwareModel(_ComparisonModel):
    """Sharpness-Aware Minimization: applies the gradient at w + rho g / ||g||.

    g is the gradient of the compiled loss at w; it is held constant. Moving statistics and seeds
    move by the pass at w alone. Both passes share one trace.

    Attributes:
        rho: Length of the step along g.
    """

    def __init__(self, model: keras.Model, rho: float = 0.05) -> None:
        super().__init__(model)
        self.rho = rho

    def step_gradients(self, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, list]:
        """Returns loss and outputs at w, and the gradient at w + rho g / ||g||."""
        evaluate = _traced_once(self._evaluate)
        weights, state = _values(self.model)
        loss, outputs, gradients, after = evaluate(weights, state, x, y)
        self._move_state(after)
        scale = tf.math.divide_no_nan(self.rho, tf.linalg.global_norm(gradients))
        there = [w + scale * g for w, g in zip(weights, gradients, strict=True)]
        _, _, gradients, _ = evaluate(there, state, x, y)
        return loss, outputs, gradients


class UnrolledModel(_ComparisonModel):
    """The regularizer's finite difference (Algorithm 1), with M copies of it in the graph."""

    def __init__(
        self,
        model: keras.Model,
        alpha: float = 1e-4,
        beta: float = 10.0,
        num_sub_batches: int = 8,
        clip_norm: float = 10.0,
    ) -> None:
        super().__init__(model)
        self.alpha = alpha
        self.beta = beta
        self.num_sub_batches = num_sub_batches
        self.clip_norm = clip_norm

    def step_gradients(self, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, list]:
        """Returns loss and outputs at w, and the clipped gradient of the whole."""
        weights, state = _values(self.model)
        loss, outputs, gradients, after = self._evaluate(weights, state, x, y)
        self._move_state(after)
        permutation = tf.random.shuffle(tf.range(tf.shape(x)[0]))
        for i in range(self.num_sub_batches):
            where = permutation[i :: self.num_sub_batches]
            sub_batch = (state, tf.gather(x, where), tf.gather(y, where))
            here = self._hard_label_gradients(weights, *sub_batch)
            moved = [w - self.alpha * g for w, g in zip(weights, here, strict=True)]
            there = self._hard_label_gradients(moved, *sub_batch)
            factor = self.beta / self.num_sub_batches
            gradients = [
                g + factor * (h - t) for g, h, t in zip(gradients, here, there, strict=True)
            ]
        gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm)
        return loss, outputs, gradients

    def _hard_label_gradients(
        self, weights: list, state: list, x: tf.Tensor, y: tf.Tensor
    ) -> list[tf.Tensor]:
        def mean_cross_entropy(outputs: tf.Tensor) -> tf.Tensor:
            losses = keras.losses.sparse_categorical_crossentropy(y, outputs, from_logits=True)
            return tf.reduce_mean(losses)

        return self._stateless(mean_cross_entropy, weights, state, x)[2]


def _traced_once(function: Callable) -> Callable:
    return function if tf.executing_eagerly() else tf.function(function, autograph=False)


def _values(model: keras.Model) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    return tuple(
        [tf.convert_to_tensor(v.value) for v in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )
