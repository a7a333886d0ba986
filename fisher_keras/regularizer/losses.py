"""The losses L and L~ of a compiled classifier on a mini-batch, at any weights."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.classifier.hard_label_loss import HardLabelCrossEntropy, assertions
from fisher_keras.classifier.wrapper import ClassifierWrapper
from fisher_keras.graph import keras_private
from fisher_keras.graph.operations import traced_operations
from fisher_keras.graph.tracing import specs_of_any_size, trace_and_discard
from fisher_keras.regularizer import preconditions
from fisher_keras.regularizer.arithmetic import (
    LossScale,
    Part,
    add,
    map_parts,
    scalar_dtype,
    sum_rows,
    with_zeros,
)
from fisher_keras.regularizer.batches import Batch, SubBatch
from fisher_keras.regularizer.loss_forms import (
    SHARED,
    SPLIT,
    check_no_mask,
    check_penalties,
    hard_label_mean,
)
from fisher_keras.regularizer.replicas import Replica
from fisher_keras.regularizer.step_types import BatchLoss, LossAndGradient


class Evaluation(NamedTuple):
    """Losses of examples at some weights, with their gradients.

    Attributes:
        outputs: The model's outputs.
        losses: Scalars.
        gradients: The gradient of each loss, scaled as the optimizer wants it.
        scope: The scope with the model's state afterwards; None if the state itself has moved.
        operations: The operations that were traced for all of it; empty in eager mode.
    """

    outputs: tf.Tensor
    losses: list[tf.Tensor]
    gradients: list[list]
    scope: keras.StatelessScope | None
    operations: list[tf.Operation]


class BatchLosses:
    """L and L~ on a mini-batch B, as functions of the weights.

    A training method needs `whole_batch_sum` and `at`. Algorithm 1, which splits the batch and
    adds up the replicas' parts itself, uses the others.

    Attributes:
        batch: The mini-batch; on several replicas, the share of this one.
        batch_size: Its size, int32 scalar.
        weights: w, the values of the trainable variables before the step.
        state: The values of the non-trainable variables before the step.
        replica: The replica that the step runs on.
        replica_weights: Its weights in the means over all replicas; None for the only replica.
        dense_parts: Whether gradients of tables are dense, too.
    """

    def __init__(
        self,
        model: ClassifierWrapper,
        batch: Batch,
        cross_entropy: HardLabelCrossEntropy | None = None,
        num_sub_batches: int = 1,
        second_derivatives: bool = False,
    ) -> None:
        """Makes the losses on a mini-batch.

        Args:
            model: The compiled model around the classifier.
            batch: The mini-batch; on several replicas, the share of this one.
            cross_entropy: The hard-label loss of an example; None if only L is needed.
            num_sub_batches: M, of each replica.
            second_derivatives: Whether gradients of L~ are differentiated again.
        """
        self.model, self.cross_entropy = model, cross_entropy
        self.num_sub_batches, self.second_derivatives = num_sub_batches, second_derivatives
        self.batch = batch
        self.batch_size = batch.size_by_shapes() if model.jit_compile else batch.size()
        self.replica = Replica.current()
        self._calls: dict[str, list] = {}
        self.replica_weights = self.replica.weights(self.batch_size, num_sub_batches)
        if self.replica_weights is not None:
            # An empty share weighs nothing; one example of it keeps all numbers finite.
            self.batch = batch.padded_to_one()
            self.batch_size = tf.maximum(self.batch_size, 1)
        # Read before the model is called: each evaluation of the step starts from these.
        self.weights = stateless.values(stateless.weights(model))
        self.state = stateless.values(model.model.non_trainable_variables)
        # XLA needs known shapes, and tangents are dense.
        self.dense_parts = second_derivatives or model.jit_compile

    # ------------------------------------------------------------------- L, on the whole batch

    def whole_batch_sum(self) -> BatchLoss:
        """Returns L(B, w) of all replicas and its gradient; updates moving statistics and seeds.

        The outputs are those of this replica's examples.
        """
        here = self.unscaled(self.whole_batch())
        here = dataclasses.replace(here, gradient=map_parts(tf.convert_to_tensor, here.gradient))
        loss, gradient = self.replica.all_reduce_sum((here.loss, here.gradient))
        return dataclasses.replace(here, loss=loss, gradient=gradient)

    def at(self, weights: list[tf.Tensor]) -> LossAndGradient:
        """Returns L(B, .) of all replicas and its gradient at any weights.

        The model's state is that before the step, so that dropout has the same masks as in
        `whole_batch_sum`. The state does not change.

        Args:
            weights: Values for the trainable variables.
        """
        there = self.part_at(weights)
        return LossAndGradient(*self.replica.all_reduce_sum((there.loss, there.gradient)))

    def part_at(self, weights: list[tf.Tensor]) -> LossAndGradient:
        """Returns this replica's part of `at(weights)`."""
        found = self.evaluate(self._part_of_loss, self.batch, weights, self.state)
        return self._checked(found, weights, type(self.model).__name__)

    def whole_batch(
        self, weights: list[tf.Tensor] | None = None, check: Callable | None = None
    ) -> BatchLoss:
        """Returns this replica's part of L(B, w), as the operations of Keras' own step.

        The gradient is scaled as the optimizer wants it, and may be sparse. Moving statistics and
        seeds are updated.

        Args:
            weights: The weights of the scope that the model is in; None for its variables.
            check: See `evaluate`.
        """
        found = self.evaluate(self._part_of_loss, self.batch, weights, check=check)
        return BatchLoss(found.losses[0], found.gradients[0], found.outputs)

    def scale(self) -> LossScale:
        """Returns the factor by which the optimizer wants losses and gradients scaled."""
        return LossScale.of(self.model.optimizer)

    def unscaled(self, loss: BatchLoss) -> BatchLoss:
        """Returns `whole_batch()` with a gradient that is not scaled."""
        return dataclasses.replace(loss, gradient=self._unscaled(loss.gradient))

    # ------------------------------------------------------------- L~ and L, on the sub-batches

    def sub_batch(self, index: tf.Tensor, rows: tf.Tensor, state: list[tf.Tensor]) -> SubBatch:
        """Returns sub-batch i.

        Args:
            index: i, from 0.
            rows: The positions of its examples in B, int32, shape (|B_i|,).
            state: Values of the model's non-trainable variables. Each sub-batch gets its own
                seeds, which it uses at w and at w - alpha g_i alike.
        """
        # Counted over all replicas, so that no two sub-batches draw the same numbers.
        index = tf.cast(index, tf.int64) + self.replica.index * self.num_sub_batches
        own_state = keras_private.with_own_seeds(self.model.model, state, index)
        return SubBatch(self.batch.rows(rows), rows, own_state)

    def hard_label_loss(self, sub_batch: SubBatch, weights: list[tf.Tensor]) -> LossAndGradient:
        """Returns L~(B_i, w) and its gradient, whose parts may be sparse; changes no state."""
        with self.replica.local_batch_norm(self.model.model):
            loss = functools.partial(self.mean_hard_label_loss, sub_batch.batch)
            found = self.evaluate(loss, sub_batch.batch, weights, sub_batch.state)
        self._check_traced(found, weights)
        gradient = with_zeros(self._unscaled(found.gradients[0]), weights)
        return LossAndGradient(found.losses[0], gradient)

    def both_losses(
        self, sub_batch: SubBatch, weights: list[tf.Tensor], again: bool = False
    ) -> tuple[LossAndGradient, BatchLoss]:
        """Returns L~(B_i, w) and L(B_i, w) with gradients as in `hard_label_loss`.

        Args:
            sub_batch: B_i.
            weights: w.
            again: Whether the trace of this call also gives L~ at other weights.
        """
        equals_compiled_loss = self.cross_entropy.equals_compiled_loss

        def losses(outputs: tf.Tensor) -> list[tf.Tensor]:
            check_no_mask(outputs, *SHARED)
            (hard,) = self.mean_hard_label_loss(sub_batch.batch, outputs)
            if not equals_compiled_loss:
                return [hard, self._compiled_loss(sub_batch.batch, outputs)]
            # Where L is L~ but for penalties, these are all that is new.
            with tf.control_dependencies(
                assertions(self.cross_entropy, self.model.model, outputs)
            ):
                # One may have a value for each example: Keras adds those up, too.
                penalties = [tf.reduce_sum(tf.cast(p, hard.dtype)) for p in self.model.losses]
                return [hard, tf.add_n([tf.zeros_like(hard), *penalties])]

        with self.replica.local_batch_norm(self.model.model):
            found = self.evaluate(losses, sub_batch.batch, weights, sub_batch.state)
        if again:
            self._check_traced(found, weights)
        else:
            preconditions.check_evaluation(found.operations, self.model.model, repeated=False)
        hard_loss, loss = found.losses
        hard, gradient = map(self._unscaled, found.gradients)
        hard = with_zeros(hard, weights)
        if equals_compiled_loss:
            # L is the sum of L~ and the penalties, and so is its gradient.
            loss += hard_loss
            rest = zip(gradient, hard, strict=True)
            gradient = [h if g is None else add(g, h) for g, h in rest]
        gradient = with_zeros(gradient, weights)
        preconditions.check_changes(found.scope, self.model, *SHARED, sub_batch.state)
        if self.num_sub_batches > 1:
            self._check_penalties(found.scope, *SHARED)
        loss = _loss_of_sub_batch(self, found, sub_batch, loss, gradient)
        return LossAndGradient(hard_loss, hard), loss

    def compiled_loss(self, sub_batch: SubBatch, weights: list[tf.Tensor]) -> BatchLoss:
        """Returns L(B_i, w) and its gradient; changes no state."""

        def loss(outputs: tf.Tensor) -> list[tf.Tensor]:
            check_no_mask(outputs, *SPLIT)
            return [self._compiled_loss(sub_batch.batch, outputs)]

        with self.replica.local_batch_norm(self.model.model):
            found = self.evaluate(loss, sub_batch.batch, weights, sub_batch.state)
        here = self._checked(found, weights, *SPLIT, sub_batch.state)
        self._check_penalties(found.scope, *SPLIT)
        return _loss_of_sub_batch(self, found, sub_batch, here.loss, here.gradient)

    # ------------------------------------------------------------------------------ their parts

    def evaluate(
        self,
        losses: Callable[[tf.Tensor], list[tf.Tensor]],
        batch: Batch,
        weights: list[tf.Tensor] | None = None,
        state: list[tf.Tensor] | None = None,
        check: Callable[[tf.Tensor, list[tf.Operation]], Any] | None = None,
    ) -> Evaluation:
        """Evaluates losses and their gradients: the only place where a model is differentiated.

        Args:
            losses: Makes the losses from the model's outputs.
            batch: The examples.
            weights: w; None for the variables themselves.
            state: Values of the model's non-trainable variables. With None, the model stays in the
                scope of the caller, where its state changes.
            check: Looks at what `call` returns, before there are losses.
        """
        variables = stateless.weights(self.model)
        sources = variables if weights is None else weights
        scope = contextlib.nullcontext()
        if state is not None:
            scope = stateless.scope(self.model.model, weights, state)
            given = [scope.get_current_value(v) for v in variables]
        with traced_operations() as operations:
            scale = self.scale()
            with tf.GradientTape(persistent=True) as tape:
                # Variables are watched anyway; values that stand in for them are not.
                tape.watch(weights or [])
                with scope as entered:
                    outputs, call = self.call(batch.x)
                    if check is not None:
                        check(outputs, call)
                    values = losses(outputs)
                # Before the gradient is taken, or half precision would lose what is small in it.
                scaled = [scale.times(value) for value in values]
            gradients = [tape.gradient(value, sources) for value in scaled]
        if entered is not None:
            now = [entered.get_current_value(v) for v in variables]
            preconditions.check_unassigned(variables, given, now)
        return Evaluation(outputs, values, gradients, entered, operations)

    def call(self, x: Any) -> tuple[tf.Tensor, list[tf.Operation]]:
        """Returns the model's outputs in training, and the operations that were traced for them.

        All traces of the call must be the same.
        """
        with traced_operations() as operations:
            outputs = self.model(x, training=True)
        # Where replicas synchronize, their operations mix; second derivatives have others.
        if operations and self.replica.count == 1 and not self.second_derivatives:
            preconditions.check_same_call(self._calls, self.model, x, outputs, operations)
        return outputs, operations

    def parts(self, gradient: list) -> list[Part | None]:
        """Returns a gradient with sparse parts, each row once, where that is possible."""
        return map_parts(tf.convert_to_tensor if self.dense_parts else sum_rows, gradient)

    def _unscaled(self, gradient: list) -> list[Part | None]:
        """Returns `parts` that are not scaled."""
        return map_parts(self.scale().remove, self.parts(gradient))

    def _checked(self, found: Evaluation, weights: list[tf.Tensor], *what: Any) -> LossAndGradient:
        """Returns L and its dense gradient, with zeros instead of None, once both are checked."""
        preconditions.check_evaluation(found.operations, self.model.model)
        preconditions.check_changes(found.scope, self.model, *what)
        gradient = with_zeros(self._unscaled(found.gradients[0]), weights)
        return LossAndGradient(found.losses[0], map_parts(tf.convert_to_tensor, gradient))

    def _check_traced(self, found: Evaluation, weights: list[tf.Tensor]) -> None:
        """Checks L~ and its gradient, which have just been traced."""
        if not found.operations:
            return
        classifier = self.model.model
        preconditions.check_evaluation(found.operations, classifier)
        if self.second_derivatives:
            preconditions.check_second_derivatives(found.operations, weights, classifier)
        if any(g is None for g in found.gradients[0]):
            ordinary, _ = ordinary_gradient(self)
            variables = stateless.weights(classifier)
            preconditions.check_gradients(found.gradients[0], ordinary, variables)

    def _check_penalties(self, scope: keras.StatelessScope, what: str, remedy: str) -> None:
        """Checks the penalties of a sub-batch, once for each signature: the check calls the model.

        They are known only here: a classifier may add some of them in training alone.
        """
        check = functools.partial(check_penalties, scope.losses, self.model, self.batch)
        self.model.once((what, self.batch.signature()), lambda: check(what, remedy))

    def _compiled_loss(self, batch: Batch, outputs: tf.Tensor) -> tf.Tensor:
        """Returns L, the compiled loss with all penalties."""
        with tf.control_dependencies(assertions(self.cross_entropy, self.model.model, outputs)):
            loss = self.model.compute_loss(batch.x, batch.y, outputs, batch.sample_weight, True)
        if self.replica_weights is None:
            return loss
        # Keras divides by the number of replicas, for a sum that has no other weights.
        return loss * tf.cast(self.replica.count, loss.dtype)

    def _part_of_loss(self, outputs: tf.Tensor) -> list[tf.Tensor]:
        """Returns L on this replica's examples, times its weight in the mean over all."""
        loss, weights = self._compiled_loss(self.batch, outputs), self.replica_weights
        if weights is not None:
            check_no_mask(outputs, "Training on several replicas", "one device")
        return [loss if weights is None else loss * tf.cast(weights.examples, loss.dtype)]

    def mean_hard_label_loss(self, batch: Batch, outputs: tf.Tensor) -> list[tf.Tensor]:
        """Returns L~, in a list."""
        loss = hard_label_mean(self.cross_entropy, batch, outputs, self.replica_weights)
        return [tf.cast(loss, scalar_dtype(stateless.weights(self.model)))]


def ordinary_gradient(losses: BatchLosses) -> tuple[list, list]:
    """Returns the gradient of L~(B, w) by the variables, and what else comes from a call.

    These are penalties of activations, a mask by which Keras leaves examples out, and values
    that variables get, as those of a metric.
    All results are symbolic, in a graph that is thrown away.
    """
    found, masks = [], []

    def trace(batch: Batch) -> None:
        with losses.replica.local_batch_norm(losses.model.model):
            loss = functools.partial(losses.mean_hard_label_loss, batch)
            evaluated = losses.evaluate(loss, batch)
        found.extend(evaluated.gradients[0])
        masks.extend(m for m in [keras_private.mask_of(evaluated.outputs)] if m is not None)

    # In no scope of other values; an init_scope stops tapes.
    with keras.StatelessScope(collect_losses=True) as scope:
        trace_and_discard(trace, specs_of_any_size(losses.batch))
    return found, [*scope.losses, *masks, *scope.state_mapping.values()]


def _loss_of_sub_batch(
    losses: BatchLosses,
    found: Evaluation,
    sub_batch: SubBatch,
    loss: tf.Tensor,
    gradient: list[tf.Tensor],
) -> BatchLoss:
    """Returns L(B_i, w), with outputs and changes of the state to add to those of others."""
    variables = losses.model.model.non_trainable_variables
    before = dict(zip(map(id, variables), sub_batch.state, strict=True))
    moved = stateless.statistics_and_seeds(losses.model.model)
    return BatchLoss(
        loss=tf.cast(loss, scalar_dtype(gradient)),
        gradient=gradient,
        outputs=sub_batch.in_mini_batch(found.outputs, losses.batch_size),
        # All sub-batches start from one state, but for their seeds: so changes can be added up.
        changes=[tf.subtract(found.scope.get_current_value(v), before[id(v)]) for v in moved],
    )
