"""A training step with the regularizer, or without it where its weight is 0."""

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.graph import keras_private
from fisher_keras.regularizer.algorithm import (
    Equation6,
    Settings,
    no_regularizer,
    regularized_step,
)
from fisher_keras.regularizer.arithmetic import (
    clip,
    global_norm,
    map_parts,
    with_shape,
    with_zeros,
)
from fisher_keras.regularizer.losses import BatchLosses
from fisher_keras.regularizer.step_types import BatchLoss, RegularizedStep
from fisher_keras.regularizer.tables import embeddings

if TYPE_CHECKING:
    from fisher_keras.regularizer.fisher import FisherRegularizedModel

_SPLITS = 2**32  # Between the seeds of replicas, which split their shares each in its own way.


def step_with_or_without(
    model: "FisherRegularizedModel", losses: BatchLosses, beta: float | tf.Tensor
) -> RegularizedStep:
    """Returns a step with R, or one without where beta is 0."""
    clip_norm = model.accumulated_clip_norm()
    if clip_norm is not None and model.sums_gradients():
        clip_norm = None  # The sum is clipped as a whole, in `TrainingMethod._update`.
    by_sub_batches = model.share_gradients is True
    # Both kinds of step need L(B, w), unless gradients are shared.
    shares = by_sub_batches or (model.regularizes and model.shares(losses))
    check = None
    # Keras' own step needs nothing of what is checked here.
    if model.regularizes or by_sub_batches:
        check = functools.partial(model.check_once, losses)
        if shares or not losses.batch.is_of_any_size():
            check()  # Else the call that is traced next is checked, which saves a trace.
    loss = None if shares else losses.whole_batch(check=check)
    equation_6 = model.equation_6()

    def regularized(equation_6: Equation6 = equation_6) -> RegularizedStep:
        step = algorithm_1(model, losses, loss, beta, clip_norm, equation_6)
        gradient = map_parts(losses.scale().times, step.gradient)
        regularizer = tf.cast(step.regularizer, step.gradient_norm.dtype)
        return dataclasses.replace(step, gradient=gradient, regularizer=regularizer)

    def without() -> RegularizedStep:
        if by_sub_batches:
            step = regularized(no_regularizer)
            # NaN tells the logs that R was not computed, where 0 would be a value of it.
            return dataclasses.replace(step, regularizer=step.regularizer * math.nan)
        step = _plain_step(losses, losses.whole_batch() if loss is None else loss)
        if not model.regularizes:
            return step
        # Both branches must give the same structure.
        gradient = losses.parts(step.gradient)
        if loss is None:
            gradient = with_zeros(gradient, losses.weights)
            # Keras has its loss in the dtype of floatx, whatever that of the weights.
            step = dataclasses.replace(step, loss=tf.cast(step.loss, step.gradient_norm.dtype))
        if clip_norm is not None:
            gradient = clip(gradient, clip_norm, step.gradient_norm)
        return dataclasses.replace(step, gradient=gradient)

    if not model.regularizes:
        return without()
    # A number is known when the step is traced: there is no need for a branch.
    if not isinstance(beta, tf.Tensor):
        return regularized()
    step = tf.cond(tf.equal(beta, 0), without, regularized)
    # From a branch, outputs would come without Keras' mask, which its metrics heed.
    return step if loss is None else dataclasses.replace(step, outputs=loss.outputs)


def algorithm_1(
    model: "FisherRegularizedModel",
    losses: BatchLosses,
    loss: BatchLoss | None,
    beta: float | tf.Tensor,
    clip_norm: float | None,
    equation_6: Equation6,
) -> RegularizedStep:
    """Runs lines 2 to 9, and updates the state of the classifier."""
    state = stateless.values(model.model.non_trainable_variables)
    updates = keras_private.num_updates(model.optimizer)
    seed = tf.constant(model.seed, tf.int64) + _SPLITS * losses.replica.index
    replica_weights = losses.replica_weights
    settings = Settings(
        alpha=model.alpha,
        beta=beta,
        num_sub_batches=model.num_sub_batches,
        clip_norm=clip_norm,
        equation_6=equation_6,
        # So the split follows from the seed, the replica and the step, and needs no state.
        seed=tf.stack([seed, updates]),
        equal_sizes=bool(model.jit_compile),
        mean_over_examples=model.share_gradients == "auto",
        replica_weight=None if replica_weights is None else replica_weights.sub_batches,
        tables=() if equation_6 is no_regularizer else embeddings(losses),
    )
    loss = None if loss is None else losses.unscaled(loss)
    step = regularized_step(losses, losses.weights, state, loss, settings)
    if step.changes is not None:
        moved = stateless.statistics_and_seeds(model.model)
        stateless.move(moved, stateless.values(moved), step.changes)
    gradient = list(map(with_shape, step.gradient, losses.weights))
    return dataclasses.replace(step, gradient=gradient, changes=None)


def _plain_step(losses: BatchLosses, loss: BatchLoss) -> RegularizedStep:
    """Returns Keras' own step from `whole_batch()`: its gradient is unchanged, without R."""
    norm = losses.scale().remove(global_norm(loss.gradient))
    not_computed = tf.constant(math.nan, norm.dtype)
    return RegularizedStep(loss.loss, loss.gradient, loss.outputs, None, not_computed, norm)
