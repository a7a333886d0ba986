r"""Algorithm 1: one step of regularized learning at weights w, on a mini-batch B.

    2   {B_i} <- B, at random                                          split_batch
    3   for i <- 1 to M                                                sum_over
    4       g_i <- gradient of L~(B_i, w)                              an Equation6
    5       g_i <- copy(g_i)                                           an Equation6
    7   R(w) <- 1/M sum_i [L~(B_i, w) - L~(B_i, w - alpha g_i)]        an Equation6, and their mean
    8   gradient of L(B, w) + beta R(w)                                regularized_step
    9   clip it to the global norm tau                                 regularized_step
    10  update w with it                                               TrainingMethod

Line 7 is Equation 6. There are two ways to compute a sub-batch's part of it and of its gradient:
`finite_difference`, as in the paper, and `hessian_vector_product`, its limit for small alpha. In
both, g_i may be known already. This is the case with shared gradients: L(B, w) is then the mean of
the L(B_i, w), and one pass over a sub-batch gives the gradients of L and L~. The paper computes
L(B, w) in another pass over the whole mini-batch.

L and L~ come from a `BatchLosses`, as functions of any weights.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from fisher_keras.graph.tracing import traced_once
from fisher_keras.regularizer.arithmetic import (
    add,
    at_least_float32,
    clip,
    global_norm,
    map_parts,
    map_values,
    scalar_dtype,
    scale,
    subtract,
    unit_vector,
    with_zeros,
)
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
from fisher_keras.regularizer.tables import Tables, sum_over

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
    tables: Tables | None = None,
) -> LossAndGradient:
    r"""Computes Equation 6 of a sub-batch as the paper does, or at another distance from w.

    $$\tilde L(B_i, w) - \tilde L(B_i, w - \alpha g_i), \qquad
      g_i - \nabla_w \tilde L(B_i, w - \alpha g_i)$$

    At a distance of $\epsilon$, the differences are those between $w$ and
    $w - \epsilon g_i / \|g_i\|$, times $\alpha \|g_i\| / \epsilon$. To first order in $\epsilon$,
    they are the same.

    Args:
        loss: Gives L~(B_i, .) and its gradient at any weights.
        weights: w.
        alpha: Factor of the step -alpha g_i.
        here: The result of `loss` at w, if it is known already.
        step_length: epsilon; with None, the step is alpha g_i.
        direction: One of `DIRECTIONS`: "ascent" steps along g_i, from w to w + alpha g_i, and
            "central" takes the mean of both.
        tables: Copies of some weights to be moved in place.

    Returns:
        The sub-batch's part of R_alpha(w), and its gradient with g_i held constant. Both are zero
        if g_i is zero.
    """
    if here is None or direction == "central":
        loss = traced_once(loss)  # One trace for all weights.
    here = loss(weights) if here is None else here  # Line 4
    g = [tf.stop_gradient(derivative) for derivative in here.gradient]  # Line 5
    factor = 0.5 if direction == "central" else None
    if step_length is None:
        steps = scale(g, alpha)
    else:
        norm = global_norm(g)
        # The same step of the weights, whatever the gradient: half precision can resolve it.
        steps = scale(unit_vector(g, norm), step_length)
        factor = (factor or 1.0) * alpha * norm / step_length
    above, below = here, here
    tables = tables or Tables(weights)
    if direction != "ascent":
        below = tables.loss_at(loss, subtract, steps)
    if direction != "descent":
        above = tables.loss_at(loss, add, steps)
    # Weights in float16 have gradients that alpha would make less than float16 can hold.
    gradient = map(at_least_float32, map(subtract, above.gradient, below.gradient))
    difference = LossAndGradient(above.loss - below.loss, list(gradient))  # Line 7
    return difference if factor is None else difference.scaled(factor)


def hessian_vector_product(
    loss: LossFunction,
    weights: list[tf.Tensor],
    alpha: float,
    here: LossAndGradient | None = None,
) -> LossAndGradient:
    r"""Computes Equation 6 of a sub-batch to first order in alpha.

    $$\alpha \|g_i\|^2, \qquad \alpha H_i g_i, \quad H_i = \nabla_w^2 \tilde L(B_i, w)$$

    The arguments and the result are those of `finite_difference`.

    Raises:
        ValueError: If a second derivative does not exist.
    """
    with second_derivatives():
        here = loss(weights) if here is None else here  # Line 4
        norm = global_norm(here.gradient)
        # Line 5. A unit direction keeps tangents inside the range of half precision.
        unit = [tf.stop_gradient(d) for d in unit_vector(here.gradient, norm)]
        with tf.autodiff.ForwardAccumulator(weights, unit) as accumulator:
            gradient = loss(weights).gradient
        products = map_parts(tf.convert_to_tensor, list(map(accumulator.jvp, gradient)))
        products = list(map(at_least_float32, with_zeros(products, weights)))
    return LossAndGradient(alpha * norm**2, scale(products, alpha * norm))  # Line 7


def no_regularizer(
    loss: LossFunction, weights: list[tf.Tensor], alpha: float, here: LossAndGradient | None = None
) -> LossAndGradient:
    """Returns zero for Equation 6 of a sub-batch; only L is computed, with `here`."""
    zeros = [map_values(tf.zeros_like, part) for part in here.gradient]
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
        alpha: Factor of the steps -alpha g_i.
        beta: Weight of the regularizer.
        num_sub_batches: Number of sub-batches M.
        clip_norm: tau; with None, gradients are not clipped.
        equation_6: One of `EQUATION_6`, maybe with its own options, or `no_regularizer`.
        seed: Of the split, shape (2,), integers.
        equal_sizes: See `SubBatches.sum_over`.
        mean_over_examples: Whether L, if gradients are shared, is the mean over examples rather
            than sub-batches, which differ in size by one.
        replica_weight: The fraction of all sub-batches that this replica has; None if it is alone.
        tables: The positions of weights of which a finite difference moves few rows.
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
    tables: Sequence[int] = ()


def regularized_step(
    losses: BatchLosses,
    weights: list[tf.Tensor],
    state: list[tf.Tensor],
    loss: BatchLoss | None,
    settings: Settings,
) -> RegularizedStep:
    """Does all of Algorithm 1 except the update.

    Args:
        losses: L and L~ on the mini-batch.
        weights: w.
        state: The model's moving statistics and seeds, on which the losses depend, too.
        loss: L(B, w) and its gradient; with None, gradients are shared.
        settings: alpha, beta, M, tau and the others.

    Returns:
        The step; on several replicas, the part of this replica. Its changes are None unless
        gradients are shared.
    """
    share_gradients = loss is None
    alpha = settings.alpha
    # The product needs a trace of its own, for its tangents, and eager mode has none.
    others = (no_regularizer, hessian_vector_product)
    one_trace = settings.equation_6 not in others and not tf.executing_eagerly()

    def terms(index: tf.Tensor, rows: tf.Tensor, tables: Tables) -> SubBatchTerms:
        equation_6 = settings.equation_6
        if tables.copies:
            equation_6 = functools.partial(equation_6, tables=tables)
        sub_batch = losses.sub_batch(index, rows, state)
        if not share_gradients:
            hard_label_loss = functools.partial(losses.hard_label_loss, sub_batch)
            return SubBatchTerms(equation_6(hard_label_loss, weights, alpha, None))  # Lines 4 to 7
        here, plain, hard_label_loss = _both(losses, sub_batch, weights, one_trace)  # Line 4
        if settings.mean_over_examples:
            plain = plain.scaled(sub_batches.weight(rows))
        return SubBatchTerms(equation_6(hard_label_loss, weights, alpha, here), plain)  # To 7

    sub_batches = split_batch(losses.batch_size, settings.num_sub_batches, settings.seed)  # Line 2
    total = sum_over(sub_batches, terms, weights, settings.tables, settings.equal_sizes)  # Line 3
    mean = sub_batches.mean(total).weighted(settings.replica_weight)  # Line 7
    if share_gradients:
        loss = dataclasses.replace(mean.loss, outputs=total.loss.outputs)
    regularizer = scale(mean.regularizer.gradient, settings.beta)
    gradient = [  # Line 8
        None if g is None else add(g, tf.cast(r, g.dtype))
        for g, r in zip(loss.gradient, regularizer, strict=True)
    ]
    norm = global_norm(gradient)
    if settings.clip_norm is not None:
        gradient = clip(gradient, settings.clip_norm, norm)  # Line 9
    # Line 10, the update, is the optimizer's.
    return RegularizedStep(
        loss.loss, gradient, loss.outputs, loss.changes, mean.regularizer.loss, norm
    )


def _both(
    losses: BatchLosses, sub_batch: SubBatch, weights: list[tf.Tensor], one_trace: bool
) -> tuple[LossAndGradient, BatchLoss, LossFunction]:
    """Returns L~(B_i, w), L(B_i, w) and, for other weights, L~(B_i, .)."""
    both = functools.partial(losses.both_losses, sub_batch, again=one_trace)
    if not one_trace:
        return *both(weights), functools.partial(losses.hard_label_loss, sub_batch)
    # At other weights, TensorFlow drops L from the graph, as it is not used.
    both = traced_once(both)
    return *both(weights), lambda there: both(there)[0]
