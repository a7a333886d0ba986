r"""Sharpness-aware minimization (SAM), the baseline of the regularizer, as a Keras model.

P. Foret, A. Kleiner, H. Mobahi and B. Neyshabur, "Sharpness-Aware Minimization for Efficiently
Improving Generalization", ICLR 2021; its adaptive form (ASAM): J. Kwon, J. Kim, H. Park and
I. K. Choi, "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep
Neural Networks", ICML 2021.
"""

import functools
from collections.abc import Callable

import keras
import tensorflow as tf

from fisher_keras.arguments import whole_number
from fisher_keras.classifier import stateless
from fisher_keras.graph.tracing import traced_once
from fisher_keras.regularizer.arithmetic import global_norm, in_dtype, with_zeros
from fisher_keras.regularizer.loss_forms import SPLIT, check_mean
from fisher_keras.regularizer.losses import BatchLosses
from fisher_keras.regularizer.options import Option, choice_of, number_or_schedule
from fisher_keras.regularizer.preconditions import check_layers
from fisher_keras.regularizer.step import TrainingMethod
from fisher_keras.regularizer.step_types import BatchLoss, LossAndGradient, Step
from fisher_keras.regularizer.sub_batches import split_batch
from fisher_keras.regularizer.traces import check_whole_batch

RHO = {False: 0.05, True: 0.5}  # By `adaptive`: the papers' defaults, for CIFAR-10.
_ETA = 0.01  # ASAM's, which keeps weights of 0 from standing still.


@keras.saving.register_keras_serializable(package="fisher_keras")
class SharpnessAwareModel(TrainingMethod):
    r"""A Keras classifier trained by sharpness-aware minimization.

    It wraps any Keras classifier, as `FisherRegularizedModel` does. Its `compile`, `fit`,
    `train_on_batch`, `evaluate` and `predict` are Keras' own. A training step follows

    $$\nabla_w L(B, w + \epsilon), \qquad
        \epsilon = \rho\, \frac{\nabla_w L(B, w)}{\|\nabla_w L(B, w)\|},$$

    which is the gradient of $\max_{\|\epsilon\| \le \rho} L(B, w + \epsilon)$ to first order, with
    $\epsilon$ held constant. A step takes two gradients. The adaptive form measures $\epsilon$ in
    units of the weights, $T = \mathrm{diag}(|w_k| + 0.01)$: $\epsilon = \rho\, T^2 g / \|T g\|$.
    With several sub-batches (m-SAM), the step follows the mean of such gradients. Each sub-batch
    $B_i$ then has its own $\epsilon_i$, and BatchNormalization takes its moments from the
    sub-batches.

    $L$ is the compiled loss, which may be any loss of Keras, with all penalties of the model.
    Dropout has the same masks at both weights, and BatchNormalization takes its moments from the
    batch. After a step, its moving statistics and the seeds of dropout are the same as without
    SAM. The logs are those at $w$. They also have `sharpness`, $L(B, w + \epsilon) - L(B, w)$, as
    a mean over the epoch's steps.

    Under a `tf.distribute.MirroredStrategy` or `MultiWorkerMirroredStrategy`, $\epsilon$ is that
    of the whole batch, and is the same on all replicas; see docs/several_devices.md.

    Attributes:
        model: The plain Keras classifier, to be saved, evaluated or served without this class.

    Examples:
        >>> classifier = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> model = SharpnessAwareModel(classifier, rho=0.05)
        >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> history = model.fit(np.ones((32, 8)), np.arange(32) % 3, verbose=0)
        >>> model.model.save("classifier.keras")
    """

    training_logs = ("sharpness",)
    rho = Option(number_or_schedule)
    adaptive = Option(choice_of(False, True))
    sub_batches = Option(lambda name, value: whole_number(name, value, least=1))

    def __init__(
        self,
        model: keras.Model,
        rho: float | keras.optimizers.schedules.LearningRateSchedule | None = None,
        adaptive: bool = False,
        name: str | None = None,
        *,
        sub_batches: int = 1,
    ) -> None:
        """Wraps a classifier.

        Args:
            model: A Keras classifier with one output.
            rho: Length of the step to w + epsilon, >= 0. The default is 0.05 (SAM's value for
                CIFAR-10 and CIFAR-100), or 0.5 for the adaptive form (ASAM's value for CIFAR-10).
                A Keras `LearningRateSchedule` makes it a function of the optimizer's step. If it
                is 0, the step is a plain one with one gradient; with several sub-batches, this is
                the mean of their gradients.
            adaptive: Whether to use the adaptive form, ASAM.
            name: Name of the model.
            sub_batches: The number of sub-batches that the examples of a batch are split into, in
                their order. On R replicas, it is the number of sub-batches of each. If there are
                several, the loss and all penalties must be means over the examples.

        Raises:
            ValueError: If an argument is out of range; the message says what was expected.
        """
        super().__init__(model, name)
        self.adaptive = adaptive
        self.rho = RHO[self.adaptive] if rho is None else rho
        self.sub_batches = sub_batches

    @staticmethod
    def check_losses(losses: BatchLosses) -> None:
        """Refuses a classifier or a loss for which L at other weights would be wrong."""
        check_whole_batch(losses)
        if losses.model.sub_batches > 1:
            check_layers(losses.model.model)
            check_mean(None, losses.model, losses.batch, *SPLIT)

    def step(self, losses: BatchLosses) -> Step:
        """Returns the gradient at w + epsilon."""
        if self.sub_batches > 1:
            here, there = self._by_sub_batches(losses)
        else:
            here = losses.whole_batch_sum()
            there = self._ascended(losses, losses.at, here)
        # Keras warns of a weight that the loss does not depend on, and leaves it alone.
        gradient = [
            None if g is None else t for g, t in zip(here.gradient, there.gradient, strict=True)
        ]
        # Of a loss without a reduction, Keras also descends the sum, and logs the mean.
        logs = {"sharpness": tf.reduce_mean(there.loss - here.loss)}
        return Step(here.loss, gradient, here.outputs, logs)

    def _ascended(
        self,
        losses: BatchLosses,
        loss: Callable[[list[tf.Tensor]], LossAndGradient],
        here: BatchLoss,
    ) -> LossAndGradient:
        """Returns a loss and its gradient at w + epsilon, given those at w."""
        rho = self.rho(self.optimizer.iterations) if callable(self.rho) else self.rho

        def ascended() -> LossAndGradient:
            weights = perturbed_weights(losses.weights, here.gradient, rho, self.adaptive)
            there = loss(weights)
            return LossAndGradient(there.loss, there.gradient)

        def unmoved() -> LossAndGradient:
            # A branch cannot return None: zeros stand for it, and `step` puts None back.
            return LossAndGradient(here.loss, with_zeros(here.gradient, losses.weights))

        if not callable(self.rho):
            return ascended() if rho else unmoved()
        if losses.replica.count > 1:
            return ascended()  # In a branch, replicas cannot synchronize.
        return tf.cond(tf.equal(rho, 0), unmoved, ascended)

    def _by_sub_batches(self, losses: BatchLosses) -> tuple[BatchLoss, LossAndGradient]:
        """Returns the means over the examples of L(B_i, .) at w, and at w + epsilon_i."""
        sub_batches = split_batch(losses.batch_size, self.sub_batches, seed=None)

        def terms(index: tf.Tensor, rows: tf.Tensor, scratch: list) -> tuple[tuple, list]:
            sub_batch = losses.sub_batch(index, rows, losses.state)

            # One trace for both weights.
            at = traced_once(functools.partial(losses.compiled_loss, sub_batch))
            here, weight = at(losses.weights), sub_batches.weight(rows)
            there = self._ascended(losses, at, here)
            return (here.scaled(weight), there.scaled(weight)), scratch

        sums = sub_batches.sum_over(terms, equal_sizes=bool(self.jit_compile))
        here, there = sub_batches.mean(sums)
        # The mean over the sub-batches: statistics and seeds move once a step.
        moved = stateless.statistics_and_seeds(self.model)
        stateless.move(moved, stateless.values(moved), here.changes)
        if losses.replica_weights is not None:
            here, there = (one.scaled(losses.replica_weights.examples) for one in (here, there))
        loss, gradient, there = losses.replica.all_reduce_sum((here.loss, here.gradient, there))
        return BatchLoss(loss, gradient, sums[0].outputs), there


def perturbed_weights(
    weights: list[tf.Tensor],
    gradient: list[tf.Tensor | None],
    rho: float | tf.Tensor,
    adaptive: bool,
) -> list[tf.Tensor]:
    """Returns w + epsilon: to first order, the weights of the highest loss nearby.

    Args:
        weights: w.
        gradient: The gradient of the loss at w; None for a weight that it does not depend on.
        rho: Length of epsilon.
        adaptive: Whether this length is measured in units of the weights.

    Returns:
        The other weights; w itself if the gradient is zero.
    """
    units = [tf.abs(w) + _ETA if adaptive else tf.ones_like(w) for w in weights]
    directions = [None if g is None else t * g for g, t in zip(gradient, units, strict=True)]
    # With d = T g, epsilon is rho T d / ||d||, which is rho T^2 g / ||T g||.
    norm = global_norm(directions)
    return [
        w
        if d is None
        else w + tf.math.divide_no_nan(in_dtype(rho, d.dtype) * t * d, tf.cast(norm, d.dtype))
        for w, d, t in zip(weights, directions, units, strict=True)
    ]
