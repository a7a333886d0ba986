"""The regularizer of Section 6 (Equation 6, Algorithm 1) as a Keras model."""

import contextlib
import dataclasses
import math
import random
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.arguments import real_number, whole_number
from fisher_keras.classifier import stateless
from fisher_keras.classifier.hard_label_loss import hard_label_cross_entropy
from fisher_keras.classifier.precision import coarse_formats
from fisher_keras.graph import keras_private
from fisher_keras.regularizer.algorithm import EQUATION_6, regularized_step
from fisher_keras.regularizer.gradients import clip, global_norm
from fisher_keras.regularizer.logs import MeanOfKnown
from fisher_keras.regularizer.losses import Batch, Objective, prepare
from fisher_keras.regularizer.replicas import (
    Replica,
    ReplicatedModel,
    check_not_synchronized,
    overrides,
    replica_logs,
)
from fisher_keras.regularizer.step_types import BatchLoss, Step

GRADIENTS = tuple(EQUATION_6)
_SPLITS = 2**32  # Between the seeds of replicas, which split their shares each in its own way.
_LOG_NAMES = ("fisher_regularizer", "fisher_trace", "gradient_norm", "explicit_to_implicit")


@keras.saving.register_keras_serializable(package="fisher_keras")
class FisherRegularizedModel(ReplicatedModel):
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
    its scope, $R$ replicas do what one device does with $R M$ sub-batches of the same examples:
    gradients are added up before they are clipped, and the moving statistics move by the mean over
    the replicas. BatchNormalization takes its moments in $L$ from each replica's share of the
    batch, or, `synchronized=True`, from the whole of it. docs/several_devices.md has the details.

    The training logs also have `fisher_regularizer`, $R_\alpha$, `fisher_trace`,
    $R_\alpha / \alpha$, and `gradient_norm` (before clipping), as means over the epoch's steps;
    the first two are NaN where no step of the epoch computed them, because beta was 0.

    They have `explicit_to_implicit`, too, by how much this regularizer is stronger than the one
    that SGD has anyway: $2 \alpha \beta M / \eta$, with $R M$ for $M$ on $R$ replicas. With steps
    of a small learning rate $\eta$, SGD follows the gradient of $L(w) + \frac{\eta}{4} \|g_B\|^2$,
    in the mean over mini-batches $B$ (S. L. Smith, B. Dherin, D. G. T. Barrett and S. De, "On the
    Origin of Implicit Regularization in Stochastic Gradient Descent", ICLR 2021, arXiv
    2101.12176); $\beta R_\alpha$, its $g_i$ held constant, is $\frac{\alpha \beta}{2}$ times the
    mean of $\|g_i\|^2$. Where noise dominates gradients, those of $|B| / M$ examples are $\sqrt M$
    times as long: the ratio follows. It takes $|B|$ for larger than $M$, and no momentum $m$: the
    learning rate is in effect $1 / (1 - m)$ times as large, the ratio smaller by that. Far below
    1, $\beta$ changes next to nothing.

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

    training_logs = _LOG_NAMES

    def __init__(
        self,
        model: keras.Model,
        alpha: float = 1e-4,
        beta: float | keras.optimizers.schedules.LearningRateSchedule = 10.0,
        num_sub_batches: int = 8,
        clip_norm: float | None = 10.0,
        gradient: str = "finite_difference",
        share_gradients: bool | str = "auto",
        seed: int | None = None,
        name: str | None = None,
    ) -> None:
        r"""Wraps a classifier.

        Args:
            model: A Keras classifier with one output of shape (B, K): logits or probabilities,
                as the loss given to `compile` says. Or (B, 1) with a binary cross-entropy.
            alpha: Length of the step along $g_i$ ($\alpha$, 0.0001 in all experiments of the
                paper); > 0.
            beta: Weight of the regularizer ($\beta$, 10 to 125 in the paper); >= 0. A Keras
                `LearningRateSchedule` makes it a function of the optimizer's step. Where it is 0,
                the step is a plain Keras step, the same operations: neither R nor the clipping.
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
                of the sub-batches' losses (BatchNormalization's moments too), and the moving
                statistics move by the mean over the sub-batches. Labels that may be soft (one-hot
                or smoothed) cost one more backward pass. False never does.
            seed: Seed of the random splits, an int, 0 or greater; None draws one.
            name: Name of the model.

        Raises:
            ValueError: If an argument is out of range; the message says what was expected.
        """
        super().__init__(model, name)
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {GRADIENTS}. Given: gradient={gradient!r}.")
        self.alpha = real_number("alpha", alpha, above=0)
        self.beta = beta
        if not isinstance(beta, keras.optimizers.schedules.LearningRateSchedule):
            self.beta = real_number("beta, if it is no LearningRateSchedule,", beta, least=0)
        self.num_sub_batches = whole_number("num_sub_batches", num_sub_batches, least=1)
        self.clip_norm = clip_norm
        if clip_norm is not None:
            self.clip_norm = real_number("clip_norm, if it is not None,", clip_norm, above=0)
        self.gradient = gradient
        if share_gradients not in (True, False, "auto"):
            raise ValueError(
                "share_gradients must be True, False or 'auto'. "
                f"Given: share_gradients={share_gradients!r}."
            )
        self.share_gradients = share_gradients
        self.seed = random.randrange(2**31)
        if seed is not None:
            self.seed = whole_number("seed, if it is not None,", seed, least=0)
        self._cross_entropy = None
        self._checked: frozenset[tuple] = frozenset()
        self._separable: dict[tuple, bool] = {}  # By signature: whether "auto" shares gradients.
        self._fisher_trackers = [MeanOfKnown(name=log_name) for log_name in _LOG_NAMES]

    # ---------------------------------------------------------------- what Keras asks of a model

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Configures training; the arguments are those of `keras.Model.compile`.

        Raises:
            ValueError: If the loss is not a cross-entropy of Keras, or contradicts the model's
                last activation; or if the model computes in half precision or
                TensorFloat-32, where the finite difference is lost in rounding.
        """
        super().compile(optimizer, loss, loss_weights, *args, **kwargs)
        self._checked, self._separable = frozenset(), {}
        self._gradients_by_xla = tf.function(
            lambda *batch: self._gradients(self._objective(Batch(*batch))),
            autograph=False,
            jit_compile=True,
        )
        own_loss = overrides(self.model, "compute_loss")
        if loss is not None:
            self._cross_entropy = hard_label_cross_entropy(loss, self.model)
            if loss_weights is not None or own_loss:
                # L is not L~ then: its gradient is another one.
                self._cross_entropy = dataclasses.replace(self._cross_entropy, is_the_loss=False)
        coarse = coarse_formats(self.model)
        coarse |= {"float8"} if stateless.overwritten(self.model) else set()
        if coarse and self.gradient == "finite_difference" and self.beta != 0:
            name = coarse.pop()
            way_out = "train in float32"
            if name == "TensorFloat-32":
                way_out = "call tf.config.experimental.enable_tensor_float_32_execution(False)"
            raise ValueError(
                f"gradient='finite_difference' cannot be used with a model that computes in "
                f"{name}: w and w - alpha g_i (alpha={self.alpha:g}) give losses and "
                "gradients that are equal to within its rounding, so that their difference is "
                f"noise. Use gradient='hessian_vector_product', or {way_out}."
            )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make this model again."""
        scheduled = isinstance(self.beta, keras.optimizers.schedules.LearningRateSchedule)
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "alpha": self.alpha,
            "beta": keras.saving.serialize_keras_object(self.beta) if scheduled else self.beta,
            "num_sub_batches": self.num_sub_batches,
            "clip_norm": self.clip_norm,
            "gradient": self.gradient,
            "share_gradients": self.share_gradients,
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FisherRegularizedModel":
        """Makes a model from what `get_config` returned."""
        config = dict(config)
        for key in ("model", "beta"):
            if isinstance(config[key], dict):
                config[key] = keras.saving.deserialize_keras_object(config[key])
        return cls(**config)

    # ---------------------------------------------------------------------------- the algorithm

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Does one step of Algorithm 1 and returns the logs.

        It splits the mini-batch, takes the mean of Equation 6 over the sub-batches, adds beta
        times it to the loss and clips the gradient (`regularized_step`), and applies that.
        """
        batch = Batch(*keras.utils.unpack_x_y_sample_weight(data))
        objective = self._objective(batch)
        replica = objective.replica
        explicit_to_implicit = self._explicit_to_implicit(replica)
        statistics = replica.statistics(self.model)
        before = stateless.values(statistics)
        step = objective.added_up(self._step(objective))
        replica.agree(statistics, before, self._share(objective))
        self._apply(replica, step.gradient)  # Line 10
        logs = (step.regularizer, step.regularizer / self.alpha, step.gradient_norm)
        logs += (explicit_to_implicit,)
        for tracker, value in zip(self._fisher_trackers, logs, strict=True):
            tracker.update_state(value)
        tracker = next(metric for metric in self.metrics if metric.name == "loss")
        tracker.update_state(step.loss, sample_weight=batch.size())
        outputs = step.outputs[: batch.size()] if replica.count > 1 else step.outputs
        logs = self.compute_metrics(batch.x, batch.y, outputs, sample_weight=batch.sample_weight)
        return replica_logs(logs)

    def regularized_gradients(
        self, x: Any, y: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """Returns the gradient that the next training step on this batch would clip and apply.

        Nothing changes: neither weights nor moving statistics, seeds or metrics. Also for use in
        a training loop of one's own; inside a `tf.function` it is as fast as `fit`, and random as
        that function is: with XLA, other examples are dropped out than without. On several
        replicas, by `strategy.run`, all get the gradient of the whole mini-batch.

        Args:
            x: Inputs, as the wrapped model takes them, B examples.
            y: Labels, as the compiled loss takes them.
            sample_weight: Weights of the examples, shape (B,), or None.

        Returns:
            The unclipped gradients of L + beta R_alpha in the order of `trainable_variables`
            (None for a variable that the loss does not depend on), the loss L(B, w) and
            R_alpha(w), scalars.

        Raises:
            ValueError: If the model is not compiled with a loss.
        """
        x = keras.tree.map_structure(tf.convert_to_tensor, x)
        y = tf.convert_to_tensor(y)
        if sample_weight is not None:
            sample_weight = tf.convert_to_tensor(sample_weight)
        objective = self._objective(Batch(x, y, sample_weight))
        self._check(objective)
        if self.jit_compile and not self.run_eagerly and tf.executing_eagerly():
            # From the same seeds XLA draws other masks of dropout.
            return self._gradients_by_xla(x, y, sample_weight)
        return self._gradients(objective)

    def _gradients(self, objective: Objective) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        weights = stateless.values(stateless.weights(self.model))
        state = stateless.values(self.model.non_trainable_variables)
        with objective.scope(weights, state):
            loss = None if self._shares(objective) else objective.whole_batch(weights)
            step = self._algorithm_1(objective, loss, self._current_beta(), clip_norm=None)
        step = objective.added_up(step)
        return objective.with_overwrites(step.gradient, loss), step.loss, step.regularizer

    def _objective(self, batch: Batch) -> Objective:
        """Builds what is not built, refuses what cannot be trained, and returns L and L~."""
        if not self.compiled or self._cross_entropy is None:
            raise ValueError(
                "FisherRegularizedModel has no loss. Call compile(optimizer=..., loss=...) with "
                "a cross-entropy before training."
            )
        prepare(self, batch, own_loss=overrides(self.model, "compute_loss"))
        objective = Objective.of(self, self._cross_entropy, batch, self.num_sub_batches)
        scheduled = isinstance(self.beta, keras.optimizers.schedules.LearningRateSchedule)
        if objective.shares is not None and scheduled and self.share_gradients is True:
            check_not_synchronized(self.model)
        return objective

    def _check(self, objective: Objective) -> None:
        """Refuses a classifier that cannot be evaluated at other weights, once a signature."""
        signature = objective.batch.signature()
        if signature not in self._checked:
            objective.check()
            self._checked |= {signature}

    def _current_beta(self) -> float | tf.Tensor:
        if callable(self.beta):
            return tf.convert_to_tensor(self.beta(self.optimizer.iterations))
        return self.beta

    def _explicit_to_implicit(self, replica: Replica) -> tf.Tensor:
        beta = tf.cast(self._current_beta(), tf.float32)
        learning_rate = tf.cast(self.optimizer.learning_rate, tf.float32)
        return 2 * self.alpha * beta * replica.count * self.num_sub_batches / learning_rate

    def _share(self, objective: Objective) -> tf.Tensor | None:
        """Returns the weight of this replica's moving statistics, which move as L is taken."""
        shares = objective.shares
        if shares is None:
            return None
        return shares.sub_batches if self._shares(objective) else shares.examples

    def _shares(self, objective: Objective) -> bool:
        """Returns whether the gradients of the sub-batches serve for L, too."""
        if self.share_gradients != "auto":
            return self.share_gradients
        signature = objective.batch.signature()
        if signature not in self._separable:
            self._separable[signature] = objective.is_separable()
        return self._separable[signature]

    def _step(self, objective: Objective) -> Step:
        """Returns a plain step where beta is 0, and a regularized step elsewhere."""
        beta = self._current_beta()
        regularizes = isinstance(beta, tf.Tensor) or beta != 0
        if regularizes:
            self._check(objective)
        # Both kinds of step need L(B, w), unless gradients are shared.
        loss = None if regularizes and self._shares(objective) else objective.whole_batch()

        def plain() -> Step:
            return objective.plain_step(objective.whole_batch() if loss is None else loss)

        def regularized() -> Step:
            clip_norm = None if self._clips_when_applied(objective.replica) else self.clip_norm
            step = self._algorithm_1(objective, loss, beta, clip_norm)
            return objective.for_optimizer(step)

        if not isinstance(beta, tf.Tensor):
            step = plain() if beta == 0 else regularized()
        else:
            step = tf.cond(
                tf.equal(beta, 0),
                lambda: objective.dense(plain(), loss is None),
                regularized,
            )
        gradient = objective.with_overwrites(step.gradient, loss)
        return dataclasses.replace(step, gradient=gradient)

    def _clips_when_applied(self, replica: Replica) -> bool:
        """Returns whether what is clipped is the sum of several replicas' or steps' gradients."""
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        return bool(optimizer.gradient_accumulation_steps) or replica.count > 1

    def _apply(self, replica: Replica, gradient: list) -> None:
        """Updates the weights; with a sum of gradients it does line 9 as well."""
        beta = self._current_beta()
        off = not isinstance(beta, tf.Tensor) and beta == 0
        clipping = contextlib.nullcontext()
        if self.clip_norm is not None and self._clips_when_applied(replica) and not off:
            no_norm = tf.constant(math.inf, tf.float64)
            clip_norm = tf.where(tf.equal(beta, 0), no_norm, self.clip_norm)
            clipping = keras_private.clipping(
                self.optimizer, lambda g: clip(g, clip_norm, global_norm(g))
            )
        with clipping:
            replica.apply(self.optimizer, gradient, self.trainable_weights)

    def _algorithm_1(
        self,
        objective: Objective,
        loss: BatchLoss | None,
        beta: float | tf.Tensor,
        clip_norm: float | None,
    ) -> Step:
        """Returns what lines 2 to 9 compute, and moves the state of the classifier."""
        variables = self.model.non_trainable_variables
        state = stateless.values(variables)
        updates, replica = keras_private.num_updates(self.optimizer), objective.replica
        step = regularized_step(
            objective,
            stateless.values(stateless.weights(self.model)),
            state,
            None if loss is None else objective.unscaled(loss),
            alpha=self.alpha,
            beta=beta,
            num_sub_batches=self.num_sub_batches,
            clip_norm=clip_norm,
            equation_6=EQUATION_6[self.gradient],
            seed=tf.stack([tf.constant(self.seed, tf.int64) + _SPLITS * replica.index, updates]),
            static_sizes=bool(self.jit_compile),
            by_examples=self.share_gradients == "auto",
            share=None if objective.shares is None else objective.shares.sub_batches,
        )
        if step.changes is not None:
            for variable, value, change in zip(variables, state, step.changes, strict=True):
                variable.assign(value + change)
        return dataclasses.replace(step, changes=None)
