"""The regularizer of Section 6 (Equation 6, Algorithm 1) as a Keras model."""

import functools
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.classifier.hard_label_loss import hard_label_cross_entropy
from fisher_keras.classifier.inputs import tensor
from fisher_keras.regularizer.algorithm import (
    DIRECTIONS,
    EQUATION_6,
    Equation6,
    finite_difference,
)
from fisher_keras.regularizer.arithmetic import global_norm, map_parts
from fisher_keras.regularizer.batches import Batch
from fisher_keras.regularizer.fisher_step import algorithm_1, step_with_or_without
from fisher_keras.regularizer.loss_forms import check_mean, established
from fisher_keras.regularizer.losses import BatchLosses
from fisher_keras.regularizer.options import Option, one_of, positive_or_none, seed_or_random
from fisher_keras.regularizer.preconditions import check_difference, normalizes_batches
from fisher_keras.regularizer.step_types import Step
from fisher_keras.regularizer.strength import RelativeStrength
from fisher_keras.regularizer.traces import check_sub_batches, decomposes_over_examples

GRADIENTS = tuple(EQUATION_6)


@keras.saving.register_keras_serializable(package="fisher_keras")
class FisherRegularizedModel(RelativeStrength):
    r"""A Keras classifier trained with the Fisher-information regularizer.

    Wraps any Keras classifier; `compile`, `fit`, `train_on_batch`, `evaluate` and `predict` are
    Keras' own. One training step is Algorithm 1: the mini-batch $B$ is split at random into
    $M$ sub-batches $B_i$, and the update follows

    $$\nabla_w L(B, w) + \beta \frac{1}{M} \sum_{i=1}^M
        [g_i - \nabla_w \tilde L(B_i, w - \alpha g_i)],
        \qquad g_i = \nabla_w \tilde L(B_i, w),$$

    which is the gradient of $L(B, w) + \beta R_\alpha(w)$ (Equation 6) with $g_i$ held constant.
    To first order $R_\alpha(w)$ is $\alpha$ times the mean of $\|g_i\|^2$: with one example a
    sub-batch, $\alpha$ times the trace of the observed Fisher information. The gradient is then
    clipped to the global norm $\tau$.

    $L$ is the compiled loss with all penalties of the model. $\tilde L$ is the cross-entropy
    against the most probable label, weighted by the sample weights,
    $\frac{1}{|B_i|} \sum_j s_j \ell_j$, without penalties. BatchNormalization takes its moments
    from the sub-batch in $\tilde L$, and from the whole batch in $L$; its moving statistics, like
    the seeds of dropout, end a step as they would without the regularizer.

    A classifier's own `compute_loss` is $L$, and its own `compute_metrics` adds to the logs. With
    an optimizer that accumulates gradients, each mini-batch has a split of its own, and what is
    clipped is their mean. What $\tilde L$ cannot be evaluated with at other weights is refused
    when the first step is traced: functions that have captured a weight (`tf.function`,
    `keras.remat`), random numbers that are not of `keras.random`, and second derivatives that do
    not exist.

    Under a `tf.distribute.MirroredStrategy` or `MultiWorkerMirroredStrategy`, made and compiled in
    its scope, $R$ replicas do what one device does with $R M$ sub-batches of the same examples;
    docs/several_devices.md has the details.

    The training logs also have `fisher_regularizer`, $R_\alpha$, `fisher_trace`,
    $R_\alpha / \alpha$, and `gradient_norm` (before clipping), as means over the epoch's steps;
    the first two are NaN where no step of the epoch computed them, because beta was 0.

    They have `explicit_to_implicit`, too, by how much this regularizer is stronger than the one
    that SGD has anyway: $2 \alpha \beta M (1 - m) / \eta$ at a learning rate of $\eta$ and a
    momentum of $m$, with $R M$ for $M$ on $R$ replicas (`fisher_keras.regularizer.strength`
    derives it); NaN with other optimizers. Far below 1, $\beta$ changes next to nothing: the
    first `fit` warns of that.

    Attributes:
        model: The plain Keras classifier, to be saved, evaluated or served without this class.

    Examples:
        >>> classifier = keras.Sequential(
        ...     [keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)]
        ... )
        >>> model = FisherRegularizedModel(classifier, beta=10.0, num_sub_batches=4)
        >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> history = model.fit(np.ones((32, 8)), np.arange(32) % 3, verbose=0)
        >>> model.model.save("classifier.keras")
    """

    training_logs = ("fisher_regularizer", "fisher_trace", "gradient_norm", "explicit_to_implicit")
    clip_norm = Option(positive_or_none)
    gradient = Option(one_of(*GRADIENTS))
    step_length = Option(positive_or_none)
    direction = Option(one_of(*DIRECTIONS))
    share_gradients = Option(one_of(True, False, "auto"))
    seed = Option(seed_or_random)
    check_losses = staticmethod(check_sub_batches)

    def __init__(
        self,
        model: keras.Model,
        alpha: float = 1e-4,
        beta: float | keras.optimizers.schedules.LearningRateSchedule | None = None,
        num_sub_batches: int = 8,
        clip_norm: float | None = 10.0,
        gradient: str = "finite_difference",
        share_gradients: bool | str = "auto",
        seed: int | None = None,
        name: str | None = None,
        *,
        strength: float | keras.optimizers.schedules.LearningRateSchedule | None = None,
        step_length: float | None = None,
        direction: str = "descent",
        interval: int = 1,
    ) -> None:
        r"""Wraps a classifier.

        Args:
            model: A Keras classifier with one output of shape (B, K): logits or probabilities,
                as the loss given to `compile` says. Or (B, 1) with a binary cross-entropy. Several
                predictions an example, (B, ..., K), or labels that are yes or no, (B, K), have
                Keras' mean over them as their loss (docs/more_than_one_prediction.md).
            alpha: Length of the step along $g_i$ ($\alpha$, 0.0001 in all experiments of the
                paper); > 0.
            beta: Weight of the regularizer ($\beta$, 10 to 125 in the paper), >= 0; by default 10,
                without `strength`. A Keras `LearningRateSchedule` makes it a function of the
                optimizer's step: where that is 0, the step is plain but for the clipping, which
                is the same in all steps. The number 0 makes all steps plain Keras steps, the same
                operations, not clipped.
            num_sub_batches: $M$ (4, 8 or 16 in the paper). Sizes that do not divide are split as
                evenly as they can be; a batch of fewer than M examples is split into single ones.
                On R replicas each splits its share of the batch into M: R M sub-batches in all.
            clip_norm: The global norm that gradients are clipped to ($\tau$, 1 to 15 in the
                paper); None does not clip.
            gradient: "finite_difference" as in the paper, or "hessian_vector_product": its limit
                as $\alpha$ falls to 0, $\alpha H_i g_i$, which takes no difference of almost equal
                gradients and so also works in half precision.
            share_gradients: Let the $g_i$ serve for $L$ as well: a step costs two gradients
                instead of three. "auto" does where the step is the same but for rounding: no layer
                takes examples together, draws random numbers or has a state, and labels are
                integers; on several replicas it never does. True always does: L is then the mean
                of the sub-batches' losses, and the moving statistics move by the mean over the
                sub-batches. Labels that may be soft (one-hot or smoothed) cost one more backward
                pass. BatchNormalization takes its moments from the sub-batches, which is ghost
                batch normalization (Hoffer et al., 2017), and regularizes by itself: the control
                is True with beta=0, the same step but for R. False never does.
            seed: Seed of the random splits, an int, 0 or greater; None draws one.
            name: Name of the model.
            strength: `explicit_to_implicit`, instead of beta: in each step
                $\beta = s \eta / (2 \alpha M (1 - m))$, with the learning rate and the momentum of
                Keras' SGD, so that the regularizer is $s$ times as strong as SGD's own in all
                phases of the training. A number or a schedule, >= 0.
            step_length: Distance $\epsilon$ at which the finite difference takes its second
                gradient: $\frac{\alpha \|g_i\|}{\epsilon} [g_i - \nabla_w \tilde L(B_i, w -
                \epsilon g_i / \|g_i\|)]$ and $R$ likewise, to first order the same as the paper's
                and possible in half precision; 0.05 to 0.2 are usual. None is the paper's step,
                $\alpha g_i$. A strength of its own is best for each.
            direction: Side of $w$ that it is taken on: "descent", the paper's, "ascent", at
                $w + \epsilon g_i / \|g_i\|$, or "central", half the difference of both: one
                gradient more.
            interval: $k$; every $k$-th step has the regularizer, with $k \beta$.

        Raises:
            ValueError: If an argument is out of range; the message says what was expected.
        """
        super().__init__(model, name, beta, strength)
        self.alpha, self.interval = alpha, interval
        self.num_sub_batches, self.clip_norm = num_sub_batches, clip_norm
        self.gradient, self.step_length, self.direction = gradient, step_length, direction
        self.share_gradients = share_gradients
        self.seed = seed
        self._cross_entropy = None
        self._separable: dict[tuple, bool] = {}  # By signature: whether "auto" shares gradients.

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Configures training; the arguments are those of `keras.Model.compile`.

        Raises:
            ValueError: If the loss is not a cross-entropy of Keras, or contradicts the model's
                last activation; if the model computes in half precision or TensorFloat-32, where
                the finite difference is lost in rounding; or if options contradict each other.
        """
        super().compile(*args, **kwargs)
        if self.loss is not None:
            self._cross_entropy = hard_label_cross_entropy(self.loss, self.model)

    def forget_traces(self) -> None:
        """Forgets what was traced with other options, and refuses options that do not go together.

        Raises:
            ValueError: If the finite difference would be lost in rounding, or if the optimizer has
                no `strength`.
        """
        self.check_optimizer()
        if self.regularizes:
            check_difference(self)
        self._separable, self._cross_entropies = {}, {}
        self._gradients_by_xla = tf.function(self._gradients, autograph=False, jit_compile=True)
        super().forget_traces()

    def losses_of(self, batch: Batch) -> BatchLosses:
        """Returns L and L~ on a mini-batch."""
        if self._cross_entropy is None:
            raise ValueError(
                "FisherRegularizedModel has no loss. Call compile(optimizer=..., loss=...) with "
                "a cross-entropy before training."
            )
        signature = batch.signature()
        if signature not in self._cross_entropies:
            cross_entropy = established(self._cross_entropy, self, batch)
            if self.share_gradients is True:
                check_mean(cross_entropy, self, batch)
            self._cross_entropies[signature] = cross_entropy
        twice = self.gradient == "hessian_vector_product"
        cross_entropy = self._cross_entropies[signature]
        return BatchLosses(self, batch, cross_entropy, self.num_sub_batches, twice)

    def optimizer_step(self, losses: BatchLosses) -> Step:
        """Returns one step of Algorithm 1, up to the update; without R where beta is 0.

        It splits the mini-batch, takes the mean of Equation 6 over the sub-batches, adds beta
        times it to the loss and clips the gradient (`regularized_step`).
        """
        beta = self.current_beta()
        ratio = self.ratio(beta)
        step = step_with_or_without(self, losses, beta)
        norm = step.gradient_norm
        loss, regularizer, gradient = losses.replica.all_reduce_sum(
            (step.loss, step.regularizer, step.gradient)
        )
        if losses.replica.count > 1:
            norm = losses.scale().remove(global_norm(gradient))
        logs = (regularizer, regularizer / self.alpha, norm, ratio)
        return Step(loss, gradient, step.outputs, dict(zip(self.training_logs, logs, strict=True)))

    # As Keras does with steps: to rewrite all of this for AutoGraph takes longer than the trace.
    @tf.autograph.experimental.do_not_convert
    def regularized_gradients(
        self,
        x: Any,
        y: tf.Tensor,
        sample_weight: tf.Tensor | None = None,
        update_state: bool = False,
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """Returns the gradient that the next training step on this batch would clip and apply.

        Also for use in a custom training loop: there, let the state be updated. Inside a
        `tf.function` it is as fast as `fit`, and random as that function is: with XLA, other
        examples are dropped out than without. It then keeps the options (alpha, beta, ...) that
        the model had when it was traced. On several replicas, by `strategy.run`, all get the
        gradient of the whole mini-batch.

        Args:
            x: Inputs, as the wrapped model takes them, B examples.
            y: Labels, as the compiled loss takes them.
            sample_weight: Weights of the examples, shape (B,), or None.
            update_state: Whether moving statistics and the seeds of dropout move as in a step.
                Without, nothing changes, and the next call has the same masks.

        Returns:
            The unclipped gradients of L + beta R_alpha in the order of `trainable_variables`
            (None for a variable that the loss does not depend on), the loss L(B, w) and
            R_alpha(w), scalars.

        Raises:
            ValueError: If the model is not compiled with a loss.
        """
        given = {"x": x, "y": y, "sample_weight": sample_weight}
        x, y, sample_weight = self._arguments("train_on_batch", (), given).values()
        x = keras.tree.map_structure(tensor, x)
        y = tf.convert_to_tensor(y)
        if sample_weight is not None:
            sample_weight = tf.convert_to_tensor(sample_weight)
        batch = Batch(x, y, sample_weight)
        self.prepare(batch)
        self.check_once(self.losses_of(batch))
        if self.jit_compile and not self.run_eagerly and tf.executing_eagerly():
            # From the same seeds XLA draws other masks of dropout.
            return self._gradients_by_xla(update_state, x, y, sample_weight)
        return self._gradients(update_state, x, y, sample_weight)

    def _gradients(
        self, update_state: bool, *batch: Any
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        losses = self.losses_of(Batch(*batch))
        weights, scope = None, self.averaging(losses)
        if not update_state:
            weights = losses.weights
            scope = stateless.scope(self.model, weights, losses.state)
        with scope:
            loss = None if self.shares(losses) else losses.whole_batch(weights)
            step = algorithm_1(self, losses, loss, self.current_beta(), None, self.equation_6())
        gradient = map_parts(tf.convert_to_tensor, step.gradient)
        return losses.replica.all_reduce_sum((gradient, step.loss, step.regularizer))

    def equation_6(self) -> Equation6:
        """Returns the way to take Equation 6 that the options ask for."""
        if self.gradient != "finite_difference":
            return EQUATION_6[self.gradient]
        options = {"step_length": self.step_length, "direction": self.direction}
        return functools.partial(finite_difference, **options)

    def shares(self, losses: BatchLosses) -> bool:
        """Returns whether the gradients of the sub-batches serve for L, too."""
        if self.share_gradients != "auto":
            return self.share_gradients
        signature = losses.batch.signature()
        if signature not in self._separable:
            self._separable[signature] = decomposes_over_examples(losses)
        return self._separable[signature]

    def statistics_weight(self, losses: BatchLosses) -> tf.Tensor | None:
        """Returns the weight of this replica's moving statistics, which move as L is taken."""
        weights = losses.replica_weights
        if weights is None:
            return None
        return weights.sub_batches if self.shares(losses) else weights.examples

    def accumulated_clip_norm(self) -> float | None:
        """Returns tau where gradients are clipped after they are summed; plain steps never are."""
        return self.clip_norm if self.regularizes or self.share_gradients is True else None

    def first_messages(self) -> list[str]:
        """Returns what the first `fit` warns of: ghost batch normalization, too."""
        messages = super().first_messages()
        if self.share_gradients is True and self.regularizes and normalizes_batches(self.model):
            messages.append(
                "share_gradients=True is ghost batch normalization (Hoffer et al., 2017): "
                "BatchNormalization takes its moments from each of the "
                f"{self.num_sub_batches} sub-batches, which regularizes by itself. To tell apart "
                "what R does, compare with share_gradients=True and beta=0."
            )
        return messages
