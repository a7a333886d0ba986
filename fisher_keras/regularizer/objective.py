"""The losses L and L~ of a compiled classifier on a mini-batch, at any weights."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.classifier.hard_label_loss import HardLabelCrossEntropy, needs_check
from fisher_keras.classifier.wrapper import ClassifierWrapper
from fisher_keras.regularizer.structures import BatchLoss, LossAndGradient, Step, Structure, Terms


@dataclasses.dataclass(frozen=True)
class Batch(Structure):
    """Labelled examples as Keras gives them.

    Attributes:
        x: Inputs, a tensor with a row for each example or a structure of such tensors.
        y: Labels, as the compiled loss takes them.
        sample_weight: Weights of the examples, shape (B,), or None.
    """

    x: Any
    y: Any
    sample_weight: Any = None

    def size(self) -> tf.Tensor:
        """Returns the number of examples, int32 scalar."""
        return tf.shape(keras.tree.flatten(self.x)[0])[0]


@dataclasses.dataclass(frozen=True)
class SubBatch(Structure):
    """A sub-batch B_i.

    Attributes:
        batch: Its examples.
        rows: Where they are in the mini-batch, int32, shape (|B_i|,).
        state: Values of the model's non-trainable variables, with seeds of its own.
    """

    batch: Batch
    rows: tf.Tensor
    state: list[tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Objective:
    """L and L~ on a mini-batch.

    To compute gradients in half precision, an optimizer may ask for losses that are scaled, and
    gradients of these. Those that come or go by `whole_batch`, `plain_step` and `for_optimizer`
    are scaled; all others are not.

    Attributes:
        model: The compiled model around the classifier.
        cross_entropy: The hard-label loss of an example; None where L alone is asked for.
        batch: The mini-batch B.
        batch_size: |B|, int32 scalar.
    """

    model: ClassifierWrapper
    cross_entropy: HardLabelCrossEntropy | None
    batch: Batch
    batch_size: tf.Tensor

    def whole_batch(self, weights: list[tf.Tensor] | None = None) -> BatchLoss:
        """Returns L(B, w), its gradient scaled as the optimizer wants it, and the outputs.

        These are the operations of Keras' own step: the moving statistics and the seeds move.

        Args:
            weights: The weights of the scope that the model is in; None for its variables.
        """
        with tf.GradientTape() as tape:
            if weights is None:
                weights = self.model.trainable_weights
            else:
                tape.watch(weights)
            outputs = self.model(self.batch.x, training=True)
            loss = self._loss(self.batch, outputs)
            scaled_loss = self.model.optimizer.scale_loss(loss)
        return BatchLoss(loss, tape.gradient(scaled_loss, weights), outputs)

    def plain_step(self, loss: BatchLoss) -> Step:
        """Returns Keras' own step, given `whole_batch()`: its gradient as it is, without R."""
        norm = tf.linalg.global_norm(loss.gradient)
        not_computed = tf.constant(math.nan, norm.dtype)
        scale = self._loss_scale()
        norm = norm if scale is None else norm / tf.cast(scale, norm.dtype)
        return Step(loss.loss, loss.gradient, not_computed, norm, loss.outputs)

    def unscaled(self, loss: BatchLoss) -> BatchLoss:
        """Returns `whole_batch()` with a dense gradient that is not scaled."""
        return dataclasses.replace(loss, gradient=_unscaled(loss.gradient, self._loss_scale()))

    def dense(self, step: Step, shared: bool) -> Step:
        """Gives a plain step the structure of a regularized step: no sparse gradients.

        With shared gradients, a weight that the loss does not depend on has zeros, not None.
        """
        gradient = _unscaled(step.gradient, None)
        if shared:
            weights = self.model.trainable_weights
            gradient = [
                tf.zeros_like(w) if g is None else g
                for g, w in zip(gradient, weights, strict=True)
            ]
        return dataclasses.replace(step, gradient=gradient)

    def for_optimizer(self, step: Step) -> Step:
        """Returns a regularized step in the form of a plain one."""
        gradient = self.scaled(step.gradient)
        regularizer = tf.cast(step.regularizer, step.gradient_norm.dtype)
        return dataclasses.replace(step, gradient=gradient, regularizer=regularizer)

    def scaled(self, gradient: list) -> list:
        """Returns a gradient as the optimizer wants it, which divides by its scale."""
        scale = self._loss_scale()
        return gradient if scale is None else _map(lambda g: g * tf.cast(scale, g.dtype), gradient)

    def sub_batch(self, index: tf.Tensor, rows: tf.Tensor, state: list[tf.Tensor]) -> SubBatch:
        """Returns sub-batch i.

        Args:
            index: i, from 0.
            rows: Where in B its examples are, int32, shape (|B_i|,).
            state: Values of the model's non-trainable variables. Each sub-batch gets its own
                seeds, which it uses at w and at w - alpha g_i alike.
        """
        batch = keras.tree.map_structure(lambda values: _gather(values, rows), vars(self.batch))
        own_state = stateless.with_own_seeds(self.model.model, state, index)
        return SubBatch(Batch(**batch), rows, own_state)

    def hard_label_loss(self, sub_batch: SubBatch, weights: list[tf.Tensor]) -> LossAndGradient:
        """Returns L~(B_i, w) and its gradient, without a trace in the model."""
        scale = self._loss_scale()
        with tf.GradientTape() as tape:
            tape.watch(weights)
            with stateless.scope(self.model.model, weights, sub_batch.state):
                outputs = self.model(sub_batch.batch.x, training=True)
            loss = self._hard_label_mean(sub_batch.batch, outputs)
            scaled_loss = _scaled_loss(loss, scale)
        return LossAndGradient(loss, _unscaled(_gradient(tape, scaled_loss, weights), scale))

    def both_losses(
        self, sub_batch: SubBatch, weights: list[tf.Tensor]
    ) -> tuple[LossAndGradient, BatchLoss]:
        """Returns L~(B_i, w) and L(B_i, w) with their gradients, without a trace in the model."""
        scale = self._loss_scale()
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(weights)
            with stateless.scope(self.model.model, weights, sub_batch.state) as scope:
                outputs = self.model(sub_batch.batch.x, training=True)
                loss = self._loss(sub_batch.batch, outputs)
                penalties = self.model.losses
            hard_loss = self._hard_label_mean(sub_batch.batch, outputs)
            # Where L is L~ but for penalties, the gradient of the penalties is all that is new.
            shared = self.cross_entropy.is_the_loss
            rest = tf.add_n(penalties or [tf.zeros_like(loss)]) if shared else loss
            scaled_hard_loss = _scaled_loss(hard_loss, scale)
            scaled_rest = _scaled_loss(rest, scale)
        hard = _unscaled(_gradient(tape, scaled_hard_loss, weights), scale)
        gradient = _unscaled(_gradient(tape, scaled_rest, weights), scale)
        if shared:
            gradient = [tf.add(g, h) for g, h in zip(gradient, hard, strict=True)]
        del tape
        variables = self.model.model.non_trainable_variables
        after = [tf.convert_to_tensor(scope.get_current_value(v)) for v in variables]
        return LossAndGradient(hard_loss, hard), BatchLoss(
            loss=tf.cast(loss, weights[0].dtype),
            gradient=gradient,
            outputs=self._in_place(outputs, sub_batch.rows),
            changes=[tf.subtract(a, b) for a, b in zip(after, sub_batch.state, strict=True)],
        )

    def loss_at(self, weights: list[tf.Tensor], state: list[tf.Tensor]) -> LossAndGradient:
        """Returns L(B, w) and its gradient at any weights, without a trace in the model.

        Args:
            weights: w.
            state: Values of the model's non-trainable variables.
        """
        scale = self._loss_scale()
        with tf.GradientTape() as tape:
            tape.watch(weights)
            with stateless.scope(self.model.model, weights, state):
                outputs = self.model(self.batch.x, training=True)
                loss = self._loss(self.batch, outputs)
            scaled_loss = _scaled_loss(loss, scale)
        return LossAndGradient(loss, _unscaled(_gradient(tape, scaled_loss, weights), scale))

    def zero_terms(self, weights: list[tf.Tensor], state: list[tf.Tensor], shared: bool) -> Terms:
        """Returns the sum of the terms of no sub-batch."""
        zero = tf.zeros((), weights[0].dtype)
        regularizer = LossAndGradient(zero, _zeros(weights))
        if not shared:
            return Terms(regularizer)
        outputs = self.model.compute_output_spec(symbolic(self.batch.x))
        outputs = tf.zeros([self.batch_size, *outputs.shape[1:]], outputs.dtype)
        return Terms(regularizer, BatchLoss(zero, _zeros(weights), outputs, _zeros(state)))

    def _loss_scale(self) -> tf.Tensor | None:
        """Returns the factor that the optimizer wants losses scaled by, None for 1."""
        one = tf.ones(())
        scale = self.model.optimizer.scale_loss(one)
        return None if scale is one else scale

    def _loss(self, batch: Batch, outputs: tf.Tensor) -> tf.Tensor:
        """Returns L, the compiled loss with all penalties."""
        checks = []
        if self.cross_entropy is not None and needs_check(self.model.model):
            checks = self.cross_entropy.check_outputs(outputs)
        with tf.control_dependencies(checks):
            return self.model.compute_loss(
                x=batch.x,
                y=batch.y,
                y_pred=outputs,
                sample_weight=batch.sample_weight,
                training=True,
            )

    def _hard_label_mean(self, batch: Batch, outputs: tf.Tensor) -> tf.Tensor:
        losses = self.cross_entropy(batch.y, outputs)
        if batch.sample_weight is not None:
            losses *= tf.cast(tf.reshape(batch.sample_weight, [-1]), losses.dtype)
        return tf.cast(tf.reduce_mean(losses), self.model.trainable_variables[0].dtype)

    def _in_place(self, outputs: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Returns outputs in the rows that their examples have in the mini-batch."""
        shape = [self.batch_size, *outputs.shape[1:]]
        return tf.scatter_nd(rows[:, tf.newaxis], outputs, shape)


def prepare(model: ClassifierWrapper, batch: Batch) -> None:
    """Builds what is not built of a model, and refuses what cannot be trained.

    Args:
        model: A compiled model around a classifier.
        batch: A mini-batch.

    Raises:
        ValueError: If there are several replicas, or no trainable variables.
    """
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        raise ValueError(
            f"{type(model).__name__} trains on one replica; the strategy in scope has "
            f"{tf.distribute.get_strategy().num_replicas_in_sync}. Train it outside of "
            "tf.distribute."
        )
    if not stateless.is_built(model):
        model.compute_output_spec(symbolic(batch.x))
    if not model.trainable_variables:
        raise ValueError(
            f"The model {model.model.name!r} has no trainable variables: nothing can be "
            "trained. Set layer.trainable = True for some, and compile again."
        )


def symbolic(x: Any) -> Any:
    """Returns the shapes and dtypes of inputs, as Keras builds models with."""
    return keras.tree.map_structure(
        lambda t: keras.KerasTensor(t.shape, keras.backend.standardize_dtype(t.dtype)), x
    )


def _unscaled(gradient: list, scale: tf.Tensor | None) -> list:
    """Divides a gradient by the loss scale, and makes it dense."""
    dense = _map(tf.convert_to_tensor, gradient)
    return dense if scale is None else _map(lambda g: g / tf.cast(scale, g.dtype), dense)


def _map(function: Callable[[Any], tf.Tensor], gradient: list) -> list:
    return [None if g is None else function(g) for g in gradient]


def _scaled_loss(loss: tf.Tensor, scale: tf.Tensor | None) -> tf.Tensor:
    return loss if scale is None else loss * tf.cast(scale, loss.dtype)


def _gather(values: tf.Tensor | None, rows: tf.Tensor) -> tf.Tensor | None:
    return None if values is None else tf.gather(values, rows)


def _gradient(tape: tf.GradientTape, loss: tf.Tensor, weights: list) -> list[tf.Tensor]:
    """Returns a gradient that is zero where the loss does not depend on a weight."""
    return tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def _zeros(tensors: list) -> list[tf.Tensor]:
    return [tf.zeros_like(t) for t in tensors]
