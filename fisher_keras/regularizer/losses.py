"""The losses L and L~ of a compiled classifier on a mini-batch, at any weights."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.classifier.batch_axis import call_graph
from fisher_keras.classifier.hard_label_loss import HardLabelCrossEntropy, needs_check
from fisher_keras.classifier.wrapper import ClassifierWrapper
from fisher_keras.graph import keras_private
from fisher_keras.regularizer import preconditions
from fisher_keras.regularizer.gradients import global_norm, scalar_dtype
from fisher_keras.regularizer.replicas import (
    Replica,
    Shares,
    check_replicas,
    synchronized_layers,
)
from fisher_keras.regularizer.step_types import BatchLoss, LossAndGradient, Step, Structure, Terms


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

    def rows(self, where: tf.Tensor) -> "Batch":
        """Returns the examples in some rows.

        Args:
            where: The rows, int32, shape (R,).
        """
        return Batch(*keras.tree.map_structure(lambda t: _gather(t, where), self._fields()))

    def signature(self) -> tuple:
        """Returns shapes and dtypes of everything but for the number of examples."""
        leaves = keras.tree.flatten(self._fields())
        return tuple(None if t is None else (*t.shape[1:], t.dtype) for t in leaves)

    def or_one(self) -> "Batch":
        """Returns the batch; if it is empty, one example of zeros."""
        missing = tf.maximum(1 - self.size(), 0)
        return Batch(*keras.tree.map_structure(lambda t: _padded(t, missing), self._fields()))

    def _fields(self) -> tuple:
        return self.x, self.y, self.sample_weight


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
        batch: The mini-batch B; on several replicas, the share of this one.
        batch_size: |B|, int32 scalar.
        replica: The replica that the step runs on. `whole_batch`, `loss_at` and steps are then
            its parts of those of the mini-batch, to be added up.
        shares: What it has of the mini-batch, None for all.
    """

    model: ClassifierWrapper
    cross_entropy: HardLabelCrossEntropy | None
    batch: Batch
    batch_size: tf.Tensor
    replica: Replica = dataclasses.field(default_factory=Replica)
    shares: Shares | None = None

    @classmethod
    def of(
        cls,
        model: ClassifierWrapper,
        cross_entropy: HardLabelCrossEntropy | None,
        batch: Batch,
        num_sub_batches: int = 1,
    ) -> "Objective":
        """Returns the objective on a mini-batch.

        Args:
            model: The compiled model around the classifier.
            cross_entropy: The hard-label loss of an example, or None.
            batch: The mini-batch; on several replicas, the share of this one.
            num_sub_batches: M.
        """
        replica, size = Replica.current(), batch.size()
        shares = replica.shares(size, num_sub_batches)
        if shares is not None:
            # An empty share weighs nothing; one example of it keeps all numbers finite.
            batch = batch.or_one()
            size = tf.maximum(size, 1)
        return cls(model, cross_entropy, batch, size, replica, shares)

    def check(self) -> None:
        """Refuses a classifier for which L~ at other weights would not be what it says.

        Nothing is computed, and nothing changes.

        Raises:
            ValueError: If its outputs are not those of a classifier, or see
                `fisher_keras.regularizer.preconditions`.
        """
        classifier = self.model.model
        preconditions.check_layers(classifier)
        if self.model.share_gradients is True and stateless.overwritten(classifier):
            raise ValueError(
                "share_gradients=True gives no gradient of the whole batch, which "
                f"{stateless.overwritten(classifier)[0].path!r} is overwritten with (float8). Use "
                "share_gradients=False. Given: share_gradients=True."
            )

        def call(x: Any) -> tf.Tensor:
            with self.replica.own_moments(classifier):
                outputs = preconditions.check_calls(
                    lambda: self.model(x, training=True), classifier
                )
            self.cross_entropy.check_shape(outputs)
            return outputs

        with tf.init_scope():
            _trace(call, _specs(self.batch.x))
        if tf.executing_eagerly():  # In a graph, the step itself is traced next.
            rows = tf.range(self.batch_size)
            state = stateless.values(classifier.non_trainable_variables)
            sub_batch = self.sub_batch(tf.constant(0), rows, state)
            values = stateless.values(stateless.weights(classifier))
            with preconditions.second_derivatives():
                _trace(self.hard_label_loss, sub_batch, values)

    def is_separable(self) -> bool:
        """Returns whether L(B, w) is the mean of the examples' L~, whatever the sub-batches.

        That is so where the compiled loss is L~ but for penalties, and the classifier has neither
        a state nor random numbers, and takes each example by itself. Nothing is computed.
        """
        classifier = self.model.model
        if self.shares is not None or not self.cross_entropy.equals_compiled_loss:
            return False
        if classifier.non_trainable_variables or stateless.overwritten(classifier):
            return False
        if not call_graph(classifier, _specs(self.batch.x), training=True).independent:
            return False
        gradient, penalties = self._ordinary_gradient(stateless.weights(classifier))
        # An optimizer leaves a weight alone that the loss does not depend on; it would not, were
        # the gradient 0 instead of None.
        return not penalties and all(derivative is not None for derivative in gradient)

    def whole_batch(self, weights: list[tf.Tensor] | None = None) -> BatchLoss:
        """Returns L(B, w), its gradient scaled as the optimizer wants it, and the outputs.

        These are the operations of Keras' own step: the moving statistics and the seeds move.

        Args:
            weights: The weights of the scope that the model is in; None for its variables.
        """
        overwritten = stateless.overwritten(self.model)
        with tf.GradientTape() as tape:
            if weights is None:
                weights = stateless.weights(self.model)
            else:
                tape.watch(weights)
            outputs = self.model(self.batch.x, training=True)
            loss = self._part(self._loss(self.batch, outputs))
            scaled_loss = self.model.optimizer.scale_loss(loss)
        gradient, overwrites = tape.gradient(scaled_loss, [weights, overwritten])
        return BatchLoss(loss, gradient, outputs, overwrites=overwrites)

    def plain_step(self, loss: BatchLoss) -> Step:
        """Returns Keras' own step, given `whole_batch()`: its gradient as it is, without R."""
        norm = self.norm(loss.gradient)
        not_computed = tf.constant(math.nan, norm.dtype)
        return Step(loss.loss, loss.gradient, not_computed, norm, loss.outputs)

    def norm(self, gradient: list) -> tf.Tensor:
        """Returns the global norm of a gradient that is scaled as the optimizer wants it."""
        norm, scale = global_norm(gradient), self._loss_scale()
        return norm if scale is None else norm / tf.cast(scale, norm.dtype)

    def added_up(self, step: Step) -> Step:
        """Returns the sum of the steps of all replicas, each with its own outputs."""
        if self.replica.count == 1:
            return step
        parts = step.loss, step.regularizer, step.gradient
        loss, regularizer, gradient = self.replica.add_up(parts)
        return dataclasses.replace(
            step,
            loss=loss,
            regularizer=regularizer,
            gradient=gradient,
            gradient_norm=self.norm(gradient),
        )

    def unscaled(self, loss: BatchLoss) -> BatchLoss:
        """Returns `whole_batch()` with a dense gradient that is not scaled."""
        return dataclasses.replace(loss, gradient=_unscaled(loss.gradient, self._loss_scale()))

    def dense(self, step: Step, shared: bool) -> Step:
        """Gives a plain step the structure of a regularized step: no sparse gradients.

        With shared gradients, a weight that the loss does not depend on has zeros, not None.
        """
        gradient = _unscaled(step.gradient, None)
        if shared:
            gradient = _dense(gradient, stateless.weights(self.model))
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
        index = tf.cast(index, tf.int64) + self.replica.index * self.model.num_sub_batches
        own_state = keras_private.with_own_seeds(self.model.model, state, index)
        return SubBatch(self.batch.rows(rows), rows, own_state)

    def hard_label_loss(self, sub_batch: SubBatch, weights: list[tf.Tensor]) -> LossAndGradient:
        """Returns L~(B_i, w) and its gradient, without a trace in the model."""
        scale = self._loss_scale()
        own_moments = self.replica.own_moments(self.model.model)
        with own_moments, preconditions.traced_operations() as operations:
            with tf.GradientTape() as tape:
                tape.watch(weights)
                with self.scope(weights, sub_batch.state):
                    outputs = self.model(sub_batch.batch.x, training=True)
                loss = self._hard_label_mean(sub_batch.batch, outputs)
                scaled_loss = _scaled_loss(loss, scale)
            gradient = tape.gradient(scaled_loss, weights)
        self._check_traced(operations, weights, gradient)
        return LossAndGradient(loss, _unscaled(_dense(gradient, weights), scale))

    def both_losses(
        self, sub_batch: SubBatch, weights: list[tf.Tensor]
    ) -> tuple[LossAndGradient, BatchLoss]:
        """Returns L~(B_i, w) and L(B_i, w) with their gradients, without a trace in the model."""
        scale = self._loss_scale()
        own_moments = self.replica.own_moments(self.model.model)
        with own_moments, preconditions.traced_operations() as operations:
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(weights)
                with self.scope(weights, sub_batch.state) as scope:
                    outputs = self.model(sub_batch.batch.x, training=True)
                    loss = self._loss(sub_batch.batch, outputs)
                    penalties = self.model.losses
                hard_loss = self._hard_label_mean(sub_batch.batch, outputs)
                # Where L is L~ but for penalties, the gradient of these is all that is new.
                shared = self.cross_entropy.equals_compiled_loss
                rest = tf.add_n(penalties or [tf.zeros_like(loss)]) if shared else loss
                scaled_hard_loss = _scaled_loss(hard_loss, scale)
                scaled_rest = _scaled_loss(rest, scale)
            hard = _unscaled(_dense(tape.gradient(scaled_hard_loss, weights), weights), scale)
        preconditions.check_variables(operations, self.model.model)
        gradient = _unscaled(_dense(tape.gradient(scaled_rest, weights), weights), scale)
        if shared:
            gradient = [tf.add(g, h) for g, h in zip(gradient, hard, strict=True)]
        del tape
        variables = self.model.model.non_trainable_variables
        after = [tf.convert_to_tensor(scope.get_current_value(v)) for v in variables]
        return LossAndGradient(hard_loss, hard), BatchLoss(
            loss=tf.cast(loss, scalar_dtype(weights)),
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
        with preconditions.traced_operations() as operations:
            with tf.GradientTape() as tape:
                tape.watch(weights)
                with self.scope(weights, state):
                    outputs = self.model(self.batch.x, training=True)
                    loss = self._part(self._loss(self.batch, outputs))
                scaled_loss = _scaled_loss(loss, scale)
            gradient = tape.gradient(scaled_loss, weights)
        preconditions.check_evaluation(operations, self.model.model)
        return LossAndGradient(loss, _unscaled(_dense(gradient, weights), scale))

    def zero_terms(self, weights: list[tf.Tensor], state: list[tf.Tensor], shared: bool) -> Terms:
        """Returns the sum of the terms of no sub-batch."""
        zero = tf.zeros((), scalar_dtype(weights))
        regularizer = LossAndGradient(zero, _zeros(weights))
        if not shared:
            return Terms(regularizer)
        outputs = self.model.compute_output_spec(stateless.symbolic(self.batch.x))
        outputs = tf.zeros([self.batch_size, *outputs.shape[1:]], outputs.dtype)
        return Terms(regularizer, BatchLoss(zero, _zeros(weights), outputs, _zeros(state)))

    def with_overwrites(self, gradient: list, loss: BatchLoss | None) -> list:
        """Returns what the optimizer is given for each trainable variable, in their order.

        Args:
            gradient: That of the weights.
            loss: `whole_batch()`; None if there is no other trainable variable.
        """
        if loss is None:
            return gradient
        descended, overwritten = iter(gradient), iter(loss.overwrites)
        variables = self.model.trainable_variables
        return [next(overwritten if v.overwrite_with_gradient else descended) for v in variables]

    def scope(self, weights: list[tf.Tensor], state: list[tf.Tensor]) -> keras.StatelessScope:
        """Returns the scope of the classifier at other weights, see `stateless.scope`."""
        given = iter(weights)
        variables = self.model.model.trainable_variables
        every = [v.value if v.overwrite_with_gradient else next(given) for v in variables]
        return stateless.scope(self.model.model, every, state)

    def _check_traced(self, operations: list, weights: list[tf.Tensor], gradient: list) -> None:
        """Checks L~ and its gradient, which have just been traced."""
        if not operations:
            return
        classifier = self.model.model
        preconditions.check_evaluation(operations, classifier)
        if self.model.gradient == "hessian_vector_product":
            preconditions.check_second_derivatives(operations, weights, classifier)
        if any(g is None for g in gradient):
            variables = stateless.weights(classifier)
            ordinary, _ = self._ordinary_gradient(variables)
            preconditions.check_gradients(gradient, ordinary, variables)

    def _ordinary_gradient(self, weights: list[keras.Variable]) -> tuple[list, list]:
        """Returns the gradient of L~(B, w) by the variables, and the penalties of activations.

        They are of a graph that is thrown away.
        """
        found = []

        def trace(batch: Batch) -> None:
            with self.replica.own_moments(self.model.model), tf.GradientTape() as tape:
                loss = self._hard_label_mean(batch, self.model(batch.x, training=True))
            found.extend(tape.gradient(loss, weights))

        # In no scope of other values; an init_scope stops tapes.
        with keras.StatelessScope(collect_losses=True) as scope:
            _trace(trace, _specs(self.batch))
        return found, scope.losses

    def _loss_scale(self) -> tf.Tensor | None:
        """Returns the factor that the optimizer wants losses scaled by, None for 1."""
        one = tf.ones(())
        scale = self.model.optimizer.scale_loss(one)
        return None if scale is one else scale

    def _loss(self, batch: Batch, outputs: tf.Tensor) -> tf.Tensor:
        """Returns L, the compiled loss with all penalties."""
        assertions = []
        if self.cross_entropy is not None and needs_check(self.model.model):
            assertions = self.cross_entropy.check_outputs(outputs)
        with tf.control_dependencies(assertions):
            loss = self.model.compute_loss(
                x=batch.x,
                y=batch.y,
                y_pred=outputs,
                sample_weight=batch.sample_weight,
                training=True,
            )
        # Keras divides by the number of replicas, for a sum that has no other weights.
        return loss if self.shares is None else loss * tf.cast(self.replica.count, loss.dtype)

    def _part(self, loss: tf.Tensor) -> tf.Tensor:
        """Returns what a mean over the examples of this replica adds to that of all."""
        shares = self.shares
        return loss if shares is None else loss * tf.cast(shares.examples, loss.dtype)

    def _hard_label_mean(self, batch: Batch, outputs: tf.Tensor) -> tf.Tensor:
        losses = self.cross_entropy(_single(batch.y), outputs)
        if batch.sample_weight is not None:
            weights = tf.reshape(_single(batch.sample_weight), [-1])
            losses *= tf.cast(weights, losses.dtype)
        return tf.cast(tf.reduce_mean(losses), scalar_dtype(stateless.weights(self.model)))

    def _in_place(self, outputs: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Returns outputs in the rows that their examples have in the mini-batch."""
        shape = [self.batch_size, *outputs.shape[1:]]
        return tf.scatter_nd(rows[:, tf.newaxis], outputs, shape)


def prepare(model: ClassifierWrapper, batch: Batch, own_loss: bool) -> None:
    """Builds what is not built of a model, and refuses what cannot be trained.

    Args:
        model: A compiled model around a classifier.
        batch: A mini-batch.
        own_loss: Whether the classifier has a `compute_loss` of its own.

    Raises:
        ValueError: If there are no trainable variables, or see `check_replicas`.
    """
    if not keras_private.is_built(model.model):
        model.compute_output_spec(stateless.symbolic(batch.x))
    if not model.trainable_variables:
        raise ValueError(
            f"The model {model.model.name!r} has no trainable variables: nothing can be "
            "trained. Set layer.trainable = True for some, and compile again."
        )
    check_replicas(model, own_loss)
    if tf.distribute.get_strategy().num_replicas_in_sync > 1 and synchronized_layers(model):
        tf.debugging.assert_positive(
            batch.size(),
            "A replica got no example of a mini-batch, and BatchNormalization(synchronized=True) "
            "takes its moments over all. Give batches of one size, by drop_remainder=True.",
        )


def _unscaled(gradient: list, scale: tf.Tensor | None) -> list:
    """Divides a gradient by the loss scale, and makes it dense."""
    dense = _map(tf.convert_to_tensor, gradient)
    return dense if scale is None else _map(lambda g: g / tf.cast(scale, g.dtype), dense)


def _map(function: Callable[[Any], tf.Tensor], gradient: list) -> list:
    return [None if g is None else function(g) for g in gradient]


def _scaled_loss(loss: tf.Tensor, scale: tf.Tensor | None) -> tf.Tensor:
    return loss if scale is None else loss * tf.cast(scale, loss.dtype)


def _gather(values: Any, rows: tf.Tensor) -> Any:
    """Returns rows of a tensor, which may be sparse."""
    if not isinstance(values, tf.SparseTensor):
        return None if values is None else tf.gather(values, rows)
    size = tf.size(rows)
    place = tf.scatter_nd(
        tf.cast(rows, tf.int64)[:, None], tf.range(1, size + 1), values.dense_shape[:1]
    )
    place = tf.gather(place, values.indices[:, 0])
    kept = place > 0
    indices = tf.concat([tf.cast(place, tf.int64)[:, None] - 1, values.indices[:, 1:]], axis=1)
    shape = tf.concat([tf.cast(size, tf.int64)[None], values.dense_shape[1:]], axis=0)
    found = tf.SparseTensor(
        tf.boolean_mask(indices, kept), tf.boolean_mask(values.values, kept), shape
    )
    return tf.sparse.reorder(found)


def _padded(values: Any, missing: tf.Tensor) -> Any:
    """Returns a tensor, which may be sparse, with rows of zeros added."""
    if values is None:
        return None
    if isinstance(values, tf.SparseTensor):
        rows = values.dense_shape[:1] + tf.cast(missing, tf.int64)
        shape = tf.concat([rows, values.dense_shape[1:]], axis=0)
        return tf.SparseTensor(values.indices, values.values, shape)
    rows = [[0, missing], *([[0, 0]] * (len(values.shape) - 1))]
    return tf.pad(values, rows)


def _single(structure: Any) -> tf.Tensor:
    """Returns the one tensor of a structure, as labels may come by the name of their output."""
    return keras.tree.flatten(structure)[0]


def _dense(gradient: list, weights: list) -> list:
    """Returns a gradient that is zero where the loss does not depend on a weight."""
    return [tf.zeros_like(w) if g is None else g for g, w in zip(gradient, weights, strict=True)]


def _trace(function: Callable, *arguments: Any) -> None:
    """Traces a function, and throws the graph away."""
    tf.function(function, autograph=False).get_concrete_function(*arguments)


def _specs(examples: Any) -> Any:
    """Returns the specifications of a structure of tensors with any number of rows."""

    def spec(tensor: Any) -> tf.TypeSpec:
        kind = tf.SparseTensorSpec if isinstance(tensor, tf.SparseTensor) else tf.TensorSpec
        return kind([None, *tensor.shape[1:]], tensor.dtype)

    return tf.nest.map_structure(spec, examples)


def _zeros(tensors: list) -> list[tf.Tensor]:
    return [tf.zeros_like(t) for t in tensors]
