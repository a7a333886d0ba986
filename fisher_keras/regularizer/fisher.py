"""The regularizer of Section 6 (Equation 6, Algorithm 1) as a Keras model."""

import functools
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.classifier.hard_label_loss import (
    HardLabelCrossEntropy,
    hard_label_cross_entropy,
)
from fisher_keras.classifier.inputs import tensors
from fisher_keras.regularizer.algorithm import (
    DIRECTIONS,
    EQUATION_6,
    Equation6,
    finite_difference,
)
from fisher_keras.regularizer.arithmetic import global_norm, map_parts
from fisher_keras.regularizer.batches import Batch
from fisher_keras.regularizer.fisher_step import algorithm_1, step_with_or_without
from fisher_keras.regularizer.loss_forms import SHARED, check_mean, established
from fisher_keras.regularizer.losses import BatchLosses
from fisher_keras.regularizer.options import Option, choice_of, positive_or_none, seed_or_random
from fisher_keras.regularizer.preconditions import (
    check_difference,
    check_unscaled,
    normalizes_batches,
)
from fisher_keras.regularizer.step_types import Step
from fisher_keras.regularizer.strength import RelativeStrength
from fisher_keras.regularizer.traces import check_sub_batches, decomposes_over_examples

GRADIENTS = tuple(EQUATION_6)


@keras.saving.register_keras_serializable(package="fisher_keras")
class FisherRegularizedModel(RelativeStrength):
    r"""A Keras classifier trained with the Fisher-information regularizer.

    It wraps any Keras classifier. Its `compile`, `fit`, `train_on_batch`, `evaluate` and `predict`
    are Keras' own. One training step is Algorithm 1: the mini-batch $B$ is split at random into
    $M$ sub-batches $B_i$, and the update follows

    $$\nabla_w L(B, w) + \beta \frac{1}{M} \sum_{i=1}^M
        [g_i - \nabla_w \tilde L(B_i, w - \alpha g_i)],
        \qquad g_i = \nabla_w \tilde L(B_i, w),$$

    which is the gradient of $L(B, w) + \beta R_\alpha(w)$ (Equation 6) with $g_i$ held constant.
    To first order, $R_\alpha(w)$ is $\alpha$ times the mean of $\|g_i\|^2$. If each sub-batch has
    one example, this is $\alpha$ times the trace of the observed Fisher information. The gradient
    is then clipped to the global norm $\tau$.

    $L$ is the compiled loss with all penalties of the model. $\tilde L$ is the cross-entropy
    against the most probable label, weighted by the sample weights,
    $\frac{1}{|B_i|} \sum_j s_j \ell_j$, without penalties. BatchNormalization takes its moments
    from the sub-batch in $\tilde L$, and from the whole batch in $L$. After a step, its moving
    statistics and the seeds of dropout are the same as without the regularizer.

    If a classifier has its own `compute_loss`, this is $L$. Its own `compute_metrics` adds to the
    logs. If an optimizer accumulates gradients, each mini-batch is split by itself, and the mean
    of their gradients is clipped. A model is refused when the first step is traced if $\tilde L$
    cannot be evaluated at other weights: a function has captured a weight (`tf.function`,
    `keras.remat`), random numbers are not from `keras.random`, or second derivatives do not exist.

    To train on $R$ replicas, make and compile the model in a strategy of `tf.distribute`. They
    do the same as one device with $R M$ sub-batches (docs/several_devices.md).

    The logs also have the means of `fisher_regularizer` ($R_\alpha$), `fisher_trace` ($R_\alpha /
    \alpha$) and `gradient_norm` (before clipping). The first two are NaN if beta was always 0.

    The log `explicit_to_implicit` is the strength of this regularizer relative to SGD's own. It is
    $2 \alpha \beta M (1 - m) / \eta$ at a learning rate of $\eta$ and a momentum of $m$, on $R$
    replicas with $R M$ for $M$ (see `fisher_keras.regularizer.strength`), and NaN with another
    optimizer or a loss that is no mean. If it is far below 1, $\beta$ changes little: `fit` warns.

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
    gradient = Option(choice_of(*GRADIENTS))
    step_length = Option(positive_or_none)
    direction = Option(choice_of(*DIRECTIONS))
    share_gradients = Option(choice_of(True, False, "auto"))
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
            model: A Keras classifier with one output of shape (B, K), logits or probabilities as
                the loss given to `compile` says, or of shape (B, 1) with a binary cross-entropy.
                With several predictions for each example, (B, ..., K), or with labels that are
                yes or no, (B, K), the loss is Keras' mean over them
                (docs/more_than_one_prediction.md).
            alpha: The factor $\alpha$ of the step $-\alpha g_i$ (0.0001 in all experiments of the
                paper); > 0. In float32, the paper's step needs 1e-6 or greater.
            beta: Weight of the regularizer ($\beta$, 10 to 125 in the paper), >= 0. The default
                is 10 if there is no `strength`. A Keras `LearningRateSchedule` makes it a function
                of the optimizer's step. If its value is 0, the step is a plain one, but its
                gradient is clipped as in all steps. The number 0 makes all steps plain Keras
                steps, without clipping, unless share_gradients is True.
            num_sub_batches: $M$ (4, 8 or 16 in the paper). If M does not divide the size of a
                batch, the batch is split as evenly as possible. A batch of fewer than M examples
                is split into single examples. On R replicas, each one splits its share of the
                batch into M parts, which makes R M sub-batches in all.
            clip_norm: The global norm that gradients are clipped to ($\tau$, 1 to 15 in the
                paper). With None, they are not clipped.
            gradient: "finite_difference" as in the paper, or "hessian_vector_product", which is
                its limit $\alpha H_i g_i$ as $\alpha$ falls to 0. The product takes no difference
                of almost equal gradients, and therefore also works in half precision.
            share_gradients: Whether the $g_i$ are used for $L$ as well. A step then costs two
                gradients instead of three. "auto" shares them if the step is the same except for
                rounding: no layer processes examples together, draws random numbers or has a
                state, labels are integers, and there is one replica. True always shares them. $L$
                is then the mean of the losses of the sub-batches, and the moving statistics move
                by the mean over the sub-batches. Labels that may be soft (one-hot or smoothed)
                cost one more backward pass. BatchNormalization takes its moments from the
                sub-batches. This is ghost batch normalization (Hoffer et al., 2017), which
                regularizes by itself. Its control is True with beta=0, which is the same step
                without R. False never shares them.
            seed: Seed of the random splits, an int, 0 or greater. With None, a seed is drawn.
            name: Name of the model.
            strength: The value $s$ of `explicit_to_implicit` to keep, instead of beta. Each step
                has $\beta = s \eta / (2 \alpha M (1 - m))$, with the learning rate and the
                momentum of Keras' SGD. Thus the regularizer is $s$ times as strong as that of SGD
                in all phases of the training. It is a number or a schedule, >= 0.
            step_length: Distance $\epsilon$ at which the finite difference takes its second
                gradient: $\frac{\alpha \|g_i\|}{\epsilon} [g_i - \nabla_w \tilde L(B_i, w -
                \epsilon g_i / \|g_i\|)]$, and $R$ likewise. To first order, this is the same as
                with the paper's step, and it is possible in half precision. Values from 0.05 to
                0.2 are usual. In float32, it must be 1e-5 or greater. None is the paper's step,
                $\alpha g_i$. Each length has its own best strength.
            direction: The side of $w$ on which the second gradient is taken: "descent" as in the
                paper, "ascent" at $w + \epsilon g_i / \|g_i\|$, or "central", which is the mean of
                both and takes one more gradient.
            interval: $k$. Every $k$-th step has the regularizer, with $k \beta$.

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

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Configures the training. The arguments are those of `keras.Model.compile`.

        Raises:
            ValueError: If the loss is not a cross-entropy of Keras; if the finite difference is
                lost in rounding, in float32 with alpha < 1e-6 or step_length < 1e-5, in coarser
                formats by default; or if options, or loss and model, contradict each other.
        """
        self._cross_entropy = None
        super().compile(*args, **kwargs)
        if self.loss is not None:
            self._cross_entropy = hard_label_cross_entropy(self.loss, self.model)

    def forget_traces(self) -> None:
        """Forgets what was traced with other options, and refuses options that do not go together.

        Raises:
            ValueError: If the finite difference would be lost in rounding, or if the optimizer
                or the loss has no `strength`.
        """
        self.check_strength()
        if self.regularizes:
            check_difference(self)
        self._gradients_by_xla = tf.function(self._gradients, autograph=False, jit_compile=True)
        super().forget_traces()

    def losses_of(self, batch: Batch) -> BatchLosses:
        """Returns L and L~ on a mini-batch."""
        if self._cross_entropy is None:
            raise ValueError(
                "FisherRegularizedModel has no loss. Call compile(optimizer=..., loss=...) with "
                "a cross-entropy before training."
            )

        def find() -> HardLabelCrossEntropy:
            cross_entropy = established(self._cross_entropy, self, batch)
            if self.share_gradients is True:
                check_mean(cross_entropy, self, batch, *SHARED)
            return cross_entropy

        cross_entropy = self.once(("cross-entropy", batch.signature()), find)
        twice = self.gradient == "hessian_vector_product"
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

        In a custom training loop, set `update_state`, and apply the gradient with the model's
        `optimizer`: schedules, `interval` and splits follow its count. In a `tf.function`, it is
        as fast as `fit`, draws that function's random numbers (with XLA, dropout drops other
        units), and keeps the options of the time of the trace. On several replicas, with
        `strategy.run`, all of them get the gradient of the whole mini-batch.

        Args:
            x: Inputs, as the wrapped model takes them, B examples.
            y: Labels, as the compiled loss takes them.
            sample_weight: Weights of the examples, shape (B,), or None.
            update_state: Whether moving statistics and the seeds of dropout change as in a step.
                If not, nothing changes, and the next call has the same masks.

        Returns:
            The unclipped gradients of L + beta R_alpha in the order of `trainable_variables`
            (None for a variable that the loss does not depend on), the loss L(B, w) and
            R_alpha(w), scalars.

        Raises:
            ValueError: If the model is not compiled with a loss; or if the state is updated and
                the optimizer scales the loss, for the gradient is not scaled.
        """
        if update_state and self.compiled:
            check_unscaled(self.optimizer)
        given = {"x": x, "y": y, "sample_weight": sample_weight}
        given = self._arguments("train_on_batch", (), given)
        batch = Batch(*map(tensors, given.values()))
        self.prepare(batch)
        self.check_once(self.losses_of(batch))
        if self.jit_compile and not self.run_eagerly and tf.executing_eagerly():
            # From the same seeds XLA draws other masks of dropout.
            return self._gradients_by_xla(update_state, batch.x, batch.y, batch.sample_weight)
        return self._gradients(update_state, batch.x, batch.y, batch.sample_weight)

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
        """Returns the form of Equation 6 that the options ask for."""
        if self.gradient != "finite_difference":
            return EQUATION_6[self.gradient]
        options = {"step_length": self.step_length, "direction": self.direction}
        return functools.partial(finite_difference, **options)

    def shares(self, losses: BatchLosses) -> bool:
        """Returns whether the gradients of the sub-batches are used for L, too."""
        if self.share_gradients != "auto":
            return self.share_gradients
        key = "decomposes", losses.batch.signature()
        return self.once(key, lambda: decomposes_over_examples(losses))

    def statistics_weight(self, losses: BatchLosses) -> tf.Tensor | None:
        """Returns the weight of this replica's moving statistics, which move as L is taken."""
        weights = losses.replica_weights
        if weights is None:
            return None
        return weights.sub_batches if self.shares(losses) else weights.examples

    def accumulated_clip_norm(self) -> float | None:
        """Returns tau if gradients are clipped after they are summed; plain steps never are."""
        return self.clip_norm if self.regularizes or self.share_gradients is True else None

    def first_messages(self) -> list[str]:
        """Returns the warnings of the first `fit`, with that of ghost batch normalization."""
        messages = super().first_messages()
        if self.share_gradients is True and self.regularizes and normalizes_batches(self.model):
            messages.append(
                "share_gradients=True is ghost batch normalization (Hoffer et al., 2017): "
                "BatchNormalization takes its moments from each of the "
                f"{self.num_sub_batches} sub-batches, which regularizes by itself. To tell apart "
                "what R does, compare with share_gradients=True and beta=0."
            )
        return messages
