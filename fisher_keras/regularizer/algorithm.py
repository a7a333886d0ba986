r"""Algorithm 1: one step of regularized learning at weights w, on a mini-batch B.

    2   {B_i} <- B, at random                                          split_batch
    3   for i <- 1 to M                                                SubBatches.sum_over
    4       g_i <- gradient of L~(B_i, w)                              an Equation6
    5       g_i <- copy(g_i)                                           an Equation6
    7   R(w) <- 1/M sum_i [L~(B_i, w) - L~(B_i, w - alpha g_i)]        an Equation6, and their mean
    8   gradient of L(B, w) + beta R(w)                                regularized_step
    9   clip it to the global norm tau                                 regularized_step
    10  update w with it                                               TrainingMethod

Line 7 is Equation 6. A sub-batch's part of it, and of its gradient, can be taken in two ways:
`finite_difference`, the paper's, and `hessian_vector_product`, its limit for small alpha. In both,
g_i may be known already: so it is with shared gradients, where L(B, w) is the mean of the
L(B_i, w), and one pass over a sub-batch gives the gradients of L and L~. The paper takes L(B, w)
from another pass, over the whole mini-batch.

L and L~ come from a `BatchLosses`, as functions of any weights.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from fisher_keras.regularizer.arithmetic import clip, global_norm, in_dtype, scalar_dtype
from fisher_keras.regularizer.batches import SubBatch
from fisher_keras.regularizer.losses import BatchLosses
from fisher_keras.regularizer.preconditions import second_derivatives
from fisher_keras.regularizer.step_types import (
    BatchLoss,
    LossAndGradient,
    RegularizedStep,
    SubBatchTerms,
)
from fisher_keras.regularizer.sub_batches import split_batch

LossFunction = Callable[[list[tf.Tensor]], LossAndGradient]
Equation6 = Callable[
    [LossFunction, list[tf.Tensor], float, LossAndGradient | None], LossAndGradient
]


def finite_difference(
    loss: LossFunction,
    weights: list[tf.Tensor],
    alpha: float,
    here: LossAndGradient | None = None,
    step_length: float | None = None,
    direction: str = "descent",
) -> LossAndGradient:
    r"""Takes Equation 6 of a sub-batch as the paper does, or at another distance from w.

    $$\tilde L(B_i, w) - \tilde L(B_i, w - \alpha g_i), \qquad
      g_i - \nabla_w \tilde L(B_i, w - \alpha g_i)$$

    At a distance of $\epsilon$ they are those between $w$ and $w - \epsilon g_i / \|g_i\|$, times
    $\alpha \|g_i\| / \epsilon$: to first order in $\epsilon$ the same.

    Args:
        loss: Gives L~(B_i, .) and its gradient at any weights.
        weights: w.
        alpha: Length of the step along g_i.
        here: The result of `loss` at w, if that is known already.
        step_length: epsilon; None steps by alpha g_i.
        direction: One of `DIRECTIONS`: "ascent" steps along g_i, from w to w + alpha g_i, and
            "central" takes the mean of both.

    Returns:
        The sub-batch's part of R_alpha(w), and its gradient with g_i held constant; zero where
        g_i is.
    """
    if here is None or direction == "central":
        loss = _traced_once(loss)  # One trace for all weights.
    here = loss(weights) if here is None else here  # Line 4
    g = [tf.stop_gradient(derivative) for derivative in here.gradient]  # Line 5
    factor = 0.5 if direction == "central" else None
    if step_length is None:
        steps = [d * alpha for d in g]
    else:
        norm = global_norm(g)
        # The same step of the weights, whatever the gradient: half precision can resolve it.
        steps = [tf.math.divide_no_nan(d, tf.cast(norm, d.dtype)) * step_length for d in g]
        factor = (factor or 1.0) * alpha * norm / step_length
    above, below = here, here
    if direction != "ascent":
        below = loss([w - s for w, s in zip(weights, steps, strict=True)])
    if direction != "descent":
        above = loss([w + s for w, s in zip(weights, steps, strict=True)])
    difference = LossAndGradient(  # Line 7
        above.loss - below.loss,
        [a - b for a, b in zip(above.gradient, below.gradient, strict=True)],
    )
    return difference if factor is None else difference.scaled(factor)


def hessian_vector_product(
    loss: LossFunction,
    weights: list[tf.Tensor],
    alpha: float,
    here: LossAndGradient | None = None,
) -> LossAndGradient:
    r"""Takes Equation 6 of a sub-batch to first order in alpha.

    $$\alpha \|g_i\|^2, \qquad \alpha H_i g_i, \quad H_i = \nabla_w^2 \tilde L(B_i, w)$$

    Arguments and result are those of `finite_difference`.

    Raises:
        ValueError: If a second derivative does not exist.
    """
    with second_derivatives():
        here = loss(weights) if here is None else here  # Line 4
        norm = global_norm(here.gradient)
        # Line 5. A unit direction keeps tangents inside the range of half precision.
        unit = [
            tf.stop_gradient(tf.math.divide_no_nan(d, tf.cast(norm, d.dtype)))
            for d in here.gradient
        ]
        with tf.autodiff.ForwardAccumulator(weights, unit) as accumulator:
            gradient = loss(weights).gradient
        products = [accumulator.jvp(d, tf.UnconnectedGradients.ZERO) for d in gradient]
    return LossAndGradient(  # Line 7
        alpha * norm**2,
        [tf.cast(alpha * norm, product.dtype) * product for product in products],
    )


def no_regularizer(
    loss: LossFunction, weights: list[tf.Tensor], alpha: float, here: LossAndGradient | None = None
) -> LossAndGradient:
    """Takes zero for Equation 6 of a sub-batch; L is then all that is computed of it."""
    zeros = [tf.zeros_like(w) for w in weights]
    return LossAndGradient(tf.zeros((), scalar_dtype(weights)), zeros)


DIRECTIONS = ("descent", "ascent", "central")
EQUATION_6: dict[str, Equation6] = {
    "finite_difference": finite_difference,
    "hessian_vector_product": hessian_vector_product,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Hyperparameters of Algorithm 1, and its form of computation.

    Attributes:
        alpha: Length of the steps along g_i.
        beta: Weight of the regularizer.
        num_sub_batches: Number of sub-batches M.
        clip_norm: tau; None does not clip.
        equation_6: One of `EQUATION_6`, maybe with options of its own, or `no_regularizer`.
        seed: Of the split, shape (2,), integers.
        equal_sizes: See `SubBatches.sum_over`.
        mean_over_examples: Whether L, if gradients are shared, is the mean over examples rather
            than sub-batches, which differ in size by one.
        replica_weight: The fraction of all sub-batches that this replica has; None if it is alone.
    """

    alpha: float
    beta: float | tf.Tensor
    num_sub_batches: int
    clip_norm: float | None
    equation_6: Equation6
    seed: tf.Tensor
    equal_sizes: bool = False
    mean_over_examples: bool = False
    replica_weight: tf.Tensor | None = None


def regularized_step(
    losses: BatchLosses,
    weights: list[tf.Tensor],
    state: list[tf.Tensor],
    loss: BatchLoss | None,
    settings: Settings,
) -> RegularizedStep:
    """Does all of Algorithm 1 but the update.

    Args:
        losses: L and L~ on the mini-batch.
        weights: w.
        state: What else the losses depend on: the model's moving statistics and seeds.
        loss: L(B, w) and its gradient; None shares gradients.
        settings: alpha, beta, M, tau and the others.

    Returns:
        The step; on several replicas, this one's part of it. Its changes are None unless gradients
        are shared.
    """
    share_gradients = loss is None
    equation_6, alpha = settings.equation_6, settings.alpha

    def terms(sub_batch: SubBatch) -> SubBatchTerms:
        hard_label_loss = functools.partial(losses.hard_label_loss, sub_batch)
        if not share_gradients:
            return SubBatchTerms(equation_6(hard_label_loss, weights, alpha, None))  # Lines 4 to 7
        here, plain = losses.both_losses(sub_batch, weights)  # Line 4
        if settings.mean_over_examples:
            plain = plain.scaled(sub_batches.weight(sub_batch.rows))
        return SubBatchTerms(equation_6(hard_label_loss, weights, alpha, here), plain)  # To 7

    terms = _traced_once(terms, reduce_retracing=True)  # One trace for sub-batches of every size.
    sub_batches = split_batch(losses.batch_size, settings.num_sub_batches, settings.seed)  # Line 2
    total = sub_batches.sum_over(  # Line 3
        lambda index, rows: terms(losses.sub_batch(index, rows, state)),
        losses.zero_terms(weights, state, share_gradients),
        settings.equal_sizes,
    )
    mean = sub_batches.mean(total).weighted(settings.replica_weight)  # Line 7
    if share_gradients:
        loss = dataclasses.replace(mean.loss, outputs=total.loss.outputs)
    gradient = [  # Line 8
        None if g is None else g + in_dtype(settings.beta, r.dtype) * r
        for g, r in zip(loss.gradient, mean.regularizer.gradient, strict=True)
    ]
    norm = global_norm(gradient)
    if settings.clip_norm is not None:
        gradient = clip(gradient, settings.clip_norm, norm)  # Line 9
    # Line 10, the update, is the optimizer's.
    return RegularizedStep(
        loss.loss, gradient, loss.outputs, loss.changes, mean.regularizer.loss, norm
    )


def _traced_once(function: Callable, **options: Any) -> Callable:
    """Makes a function a piece of the graph that is traced once; eager mode leaves it as it is."""
    if tf.executing_eagerly():
        return function
    return tf.function(function, autograph=False, **options)
