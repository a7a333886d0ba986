"""The regularizer of Section 6 (Equation 6, Algorithm 1) as a Keras model."""

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.classifier.hard_label_loss import hard_label_cross_entropy, needs_check
from fisher_keras.classifier.moments import exact_moments
from fisher_keras.classifier.wrapper import ClassifierWrapper
from fisher_keras.regularizer.sub_batches import split_batch

GRADIENTS = ("finite_difference", "hessian_vector_product")
_LOG_NAMES = ("fisher_regularizer", "fisher_trace", "gradient_norm")


@keras.saving.register_keras_serializable(package="fisher_keras")
class FisherRegularizedModel(ClassifierWrapper):
    r"""A Keras classifier trained with the Fisher-information regularizer.

    Wraps any Keras classifier; `compile`, `fit`, `train_on_batch`, `evaluate` and `predict` are
    Keras' own. One training step is Algorithm 1: the mini-batch B is split at random into M
    sub-batches B_i, and the update follows

    $$\nabla_w L(B, w) + \beta \frac{1}{M} \sum_{i=1}^M
        [g_i - \nabla_w \tilde L(B_i, w - \alpha g_i)],
        \qquad g_i = \nabla_w \tilde L(B_i, w),$$

    which is the gradient of L(B, w) + beta R_alpha(w) (Equation 6) with g_i held constant.
    R_alpha(w) is alpha times the mean of ||g_i||^2 to first order: with one example a sub-batch,
    alpha times the trace of the observed Fisher information. The gradient is then clipped to the
    global norm tau.

    L is the compiled loss with all penalties of the model. L~ is the cross-entropy against the
    most probable label, weighted by the sample weights, (1/|B_i|) sum_j s_j l_j, without
    penalties. BatchNormalization takes its moments from the sub-batch in L~, and from the whole
    batch in L; its moving statistics, like the seeds of dropout, end a step as they would without
    the regularizer.

    The training logs also have `fisher_regularizer` (R_alpha), `fisher_trace` (R_alpha / alpha)
    and `gradient_norm` (before clipping), as means over the epoch's steps; the first two are NaN
    where no step of the epoch computed them, because beta was 0.

    Attributes:
        model: The plain Keras classifier, to be saved, evaluated or served without this class.

    Example:
    >>> classifier = keras.Sequential(
    ...     [keras.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)]
    ... )
    >>> model = FisherRegularizedModel(classifier, beta=10.0, num_sub_batches=4)
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> history = model.fit(np.ones((32, 8)), np.arange(32) % 3, verbose=0)
    >>> model.model.save("classifier.keras")
    """

    def __init__(
        self,
        model: keras.Model,
        alpha: float = 1e-4,
        beta: float | keras.optimizers.schedules.LearningRateSchedule = 10.0,
        num_sub_batches: int = 8,
        clip_norm: float | None = 10.0,
        gradient: str = "finite_difference",
        share_gradients: bool = False,
        seed: int | None = None,
        name: str | None = None,
    ) -> None:
        """Wraps a classifier.

        Args:
            model: A Keras classifier with one output of shape (B, K): logits or probabilities,
                as the loss given to `compile` says. Or (B, 1) with a binary cross-entropy.
            alpha: Length of the step along g_i (the paper's alpha, 0.0001 in all its
                experiments); > 0.
            beta: Weight of the regularizer (beta, 10 to 125 in the paper); >= 0. A Keras
                `LearningRateSchedule` makes it a function of the optimizer's step. Where it is 0,
                the step is a plain Keras step, to the last bit: neither R nor the clipping.
            num_sub_batches: M (4, 8 or 16 in the paper). Sizes that do not divide are split as
                evenly as they can be; a batch of fewer than M examples is split into single ones.
            clip_norm: The global norm that gradients are clipped to (tau, 1 to 15 in the paper);
                None does not clip.
            gradient: "finite_difference" as in the paper, or "hessian_vector_product": its limit
                as alpha falls to 0, alpha H_i g_i, which takes no difference of almost equal
                gradients and so also works in half precision.
            share_gradients: Take L as the mean of the sub-batches' losses (BatchNormalization's
                moments too), so that the g_i serve for L as well: a step costs two gradients
                instead of three. The moving statistics move by the mean over the sub-batches.
                Labels that may be soft (one-hot or smoothed) cost one more backward pass.
            seed: Seed of the random splits, an int; None draws one.
            name: Name of the model.

        Raises:
            ValueError: If an argument is out of range; the message says what was expected.
        """
        _check_arguments(model, alpha, beta, num_sub_batches, clip_norm, gradient, seed)
        # The wrapped model casts its inputs itself; its policy decides about loss scaling.
        super().__init__(name=name, dtype=model.dtype_policy, autocast=False)
        self.model = model
        self.alpha = float(alpha)
        self.beta = beta
        self.num_sub_batches = num_sub_batches
        self.clip_norm = clip_norm
        self.gradient = gradient
        self.share_gradients = share_gradients
        self.seed = random.randrange(2**31) if seed is None else seed
        self._hard_label_loss = None
        self._fisher_trackers = [_Mean(name=log_name) for log_name in _LOG_NAMES]

    # ---------------------------------------------------------------- what Keras asks of a model

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        """Returns the wrapped classifier's outputs."""
        return stateless.apply(self.model, inputs, training)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Configures training; the arguments are those of `keras.Model.compile`.

        Raises:
            ValueError: If the loss is not a cross-entropy of Keras, or contradicts the model's
                last activation; or if the model computes in half precision, where the finite
                difference is lost in rounding.
        """
        super().compile(*args, **kwargs)
        if self.loss is not None:
            self._hard_label_loss = hard_label_cross_entropy(self.loss, self.model)
            if self._compile_loss._user_loss_weights is not None:
                # L is a multiple of L~ then: its gradient is another one.
                self._hard_label_loss = dataclasses.replace(
                    self._hard_label_loss, is_the_loss=False
                )
        half = {layer.compute_dtype for layer in self._flatten_layers()} & {"float16", "bfloat16"}
        if half and self.gradient == "finite_difference" and self.beta != 0:
            raise ValueError(
                f"gradient='finite_difference' cannot be used with a model that computes in "
                f"{half.pop()}: w and w - alpha g_i (alpha={self.alpha:g}) give losses and "
                "gradients that are equal to within its rounding, so that their difference is "
                "noise. Use gradient='hessian_vector_product', or train in float32."
            )

    def get_compile_config(self) -> dict[str, Any]:
        """Returns what `compile` was given."""
        return super().get_compile_config()

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as the saved model was, and makes room for its optimizer's state."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

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

    def save_own_variables(self, store: dict[str, Any]) -> None:
        """Stores the wrapped model's seeds, which Keras leaves out of a saved model."""
        for index, state in enumerate(_seed_states(self.model)):
            store[f"seed_generator_{index}"] = state

    def load_own_variables(self, store: dict[str, Any]) -> None:
        """Restores what `save_own_variables` stored."""
        for index, state in enumerate(_seed_states(self.model)):
            state.assign(store[f"seed_generator_{index}"][()])

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Evaluates one batch as Keras does; the regularizer's logs are of training alone."""
        logs = super().test_step(data)
        return {name: value for name, value in logs.items() if name not in _LOG_NAMES}

    # ---------------------------------------------------------------------------- the algorithm

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Does one step of Algorithm 1 and returns the logs."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._prepare(x)
        beta = self._current_beta()
        if not isinstance(beta, tf.Tensor):
            step = self._plain_step if beta == 0 else self._regularized_step
            results = step(x, y, sample_weight, beta)
        elif self.share_gradients:
            results = tf.cond(
                tf.equal(beta, 0),
                lambda: _dense(self._plain_step(x, y, sample_weight, beta)),
                lambda: self._regularized_step(x, y, sample_weight, beta),
            )
        else:
            whole_batch = self._whole_batch_gradients(x, y, sample_weight)
            results = tf.cond(
                tf.equal(beta, 0),
                lambda: _dense(self._plain_results(*whole_batch)),
                lambda: self._regularized_step(x, y, sample_weight, beta, whole_batch),
            )
        loss, outputs, gradients, logs = results
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        size = _batch_size(x)
        self._loss_tracker.update_state(loss, sample_weight=size)
        for tracker, value in zip(self._fisher_trackers, logs, strict=True):
            tracker.update_state(value)
        return self.compute_metrics(x, y, outputs, sample_weight=sample_weight)

    def regularized_gradients(
        self, x: Any, y: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """Returns the gradient that the next training step on this batch would clip and apply.

        Nothing changes: neither weights nor moving statistics, seeds or metrics. Also for use in
        a training loop of one's own; inside a `tf.function` it is as fast as `fit`.

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
        self._prepare(x)
        beta = self._current_beta()
        weights = stateless.values(self.model.trainable_variables)
        with stateless.scope(
            self.model, weights, stateless.values(self.model.non_trainable_variables)
        ):
            whole_batch = None
            if not self.share_gradients:
                whole_batch = self._whole_batch_gradients(x, y, sample_weight, weights)
            loss, _, gradients, regularizer = self._regularized(
                x, y, sample_weight, beta, whole_batch
            )
        return gradients, loss, regularizer

    def _prepare(self, x: Any) -> None:
        """Builds what is not built, and refuses what cannot be trained."""
        if not self.compiled or self._hard_label_loss is None:
            raise ValueError(
                "FisherRegularizedModel has no loss. Call compile(optimizer=..., loss=...) with "
                "a cross-entropy before training."
            )
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise ValueError(
                "FisherRegularizedModel trains on one replica; the strategy in scope has "
                f"{tf.distribute.get_strategy().num_replicas_in_sync}. Train it outside of "
                "tf.distribute."
            )
        if not all(layer.built for layer in self._flatten_layers()):
            self.compute_output_spec(_symbolic(x))
        if not self.trainable_variables:
            raise ValueError(
                f"The model {self.model.name!r} has no trainable variables: nothing can be "
                "trained. Set layer.trainable = True for some, and compile again."
            )

    def _current_beta(self) -> float | tf.Tensor:
        if callable(self.beta):
            beta = self.beta(self.optimizer.iterations)
            return tf.cast(beta, self.model.trainable_variables[0].dtype)
        return self.beta

    def _plain_step(self, x: Any, y: Any, sample_weight: Any, beta: Any) -> tuple:
        return self._plain_results(*self._whole_batch_gradients(x, y, sample_weight))

    def _plain_results(self, loss: tf.Tensor, outputs: Any, gradients: list) -> tuple:
        """Completes a plain step: the gradients go to the optimizer as they are."""
        scale = self._loss_scale()
        norm = tf.linalg.global_norm(gradients)
        not_computed = tf.constant(math.nan, norm.dtype)
        norm = norm if scale is None else norm / tf.cast(scale, norm.dtype)
        return loss, outputs, gradients, [not_computed, not_computed, norm]

    def _regularized_step(
        self, x: Any, y: Any, sample_weight: Any, beta: Any, whole_batch: tuple | None = None
    ) -> tuple:
        """Completes a regularized step: clipped gradients, and the three values for the logs."""
        loss, outputs, gradients, regularizer = self._regularized(
            x, y, sample_weight, beta, whole_batch
        )
        scale = self._loss_scale()
        if self.clip_norm is None:
            norm = tf.linalg.global_norm(gradients)
        else:
            gradients, norm = tf.clip_by_global_norm(gradients, self.clip_norm)
        if scale is not None:
            # The optimizer divides by its scale: what it gets must have that scale again.
            gradients = _map(lambda g: g * tf.cast(scale, g.dtype), gradients)
        trace = regularizer / self.alpha
        logs = [tf.cast(value, norm.dtype) for value in (regularizer, trace, norm)]
        return loss, outputs, gradients, logs

    def _regularized(
        self, x: Any, y: Any, sample_weight: Any, beta: Any, whole_batch: tuple | None = None
    ) -> tuple:
        """Returns L, the outputs, the gradient of L + beta R_alpha, and R_alpha."""
        if self.share_gradients:
            loss, outputs, gradients, means = self._shared_means(x, y, sample_weight)
        else:
            if whole_batch is None:
                whole_batch = self._whole_batch_gradients(x, y, sample_weight)
            loss, outputs, gradients = whole_batch
            scale = self._loss_scale()
            if scale is not None:
                gradients = _map(lambda g: g / tf.cast(scale, g.dtype), gradients)
            state = stateless.values(self.model.non_trainable_variables)
            means = self._means_over_sub_batches(
                self._regularizer_terms, x, y, sample_weight, state
            )
        gradients = [
            None if g is None else tf.convert_to_tensor(g) + beta * d
            for g, d in zip(gradients, means["differences"], strict=True)
        ]
        return loss, outputs, gradients, means["regularizer"]

    def _whole_batch_gradients(
        self, x: Any, y: Any, sample_weight: Any, weights: list | None = None
    ) -> tuple:
        """Returns L(B, w), the outputs and the gradient, scaled as the optimizer wants it.

        These are the operations of Keras' own step: the moving statistics and the seeds move.
        Given the weights of the scope that the model is in, it is the gradient at those.
        """
        with tf.GradientTape() as tape:
            if weights is None:
                weights = self.trainable_weights
            else:
                tape.watch(weights)
            outputs = self(x, training=True)
            with tf.control_dependencies(self._check_outputs(outputs)):
                loss = self._compute_loss(
                    x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=True
                )
            scaled_loss = self.optimizer.scale_loss(loss)
        return loss, outputs, tape.gradient(scaled_loss, weights)

    def _shared_means(self, x: Any, y: Any, sample_weight: Any) -> tuple:
        """Returns L, the outputs, the gradient of L and the means, all from the sub-batches."""
        variables = self.model.non_trainable_variables
        state = stateless.values(variables)
        outputs = self.compute_output_spec(_symbolic(x))
        outputs = tf.zeros([_batch_size(x), *outputs.shape[1:]], outputs.dtype)
        means = self._means_over_sub_batches(
            self._shared_terms, x, y, sample_weight, state, outputs
        )
        for variable, value, change in zip(variables, state, means["changes"], strict=True):
            variable.assign(value + change)
        return means["loss"], means["outputs"], means["gradients"], means

    def _means_over_sub_batches(
        self,
        terms: Callable,
        x: Any,
        y: Any,
        sample_weight: Any,
        state: list,
        outputs: tf.Tensor | None = None,
    ) -> dict[str, Any]:
        """Takes the mean of what `terms` gives for each of the M sub-batches.

        Args:
            terms: `_regularizer_terms` or `_shared_terms`.
            x: Inputs of the mini-batch.
            y: Labels.
            sample_weight: Weights or None.
            state: The non-trainable variables as they were before the step.
            outputs: Zeros of the outputs' shape, if they are to be collected.

        Returns:
            The means, except that "outputs" are those of the whole batch, in its order.
        """
        weights = stateless.values(self.model.trainable_variables)
        sums = {"regularizer": tf.zeros((), weights[0].dtype), "differences": _zeros(weights)}
        if outputs is not None:
            sums |= {
                "loss": sums["regularizer"],
                "gradients": _zeros(weights),
                "changes": _zeros(state),
                "outputs": outputs,
            }
        iterations = tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.int64)
        seed = tf.stack([tf.constant(self.seed, tf.int64), iterations])
        split = split_batch(_batch_size(x), self.num_sub_batches, seed)
        if not tf.executing_eagerly():
            # Loops and sub-batches of every size share one trace.
            terms = tf.function(terms, autograph=False, reduce_retracing=True)

        def terms_of(index: tf.Tensor, where: tf.Tensor) -> dict[str, Any]:
            sub_batch = _gather((x, y, sample_weight), where)
            values = terms(weights, self._state_of(index, state), *sub_batch)
            if "outputs" in values:
                # The rows of all sub-batches add up to the whole.
                values["outputs"] = tf.scatter_nd(
                    where[:, tf.newaxis], values["outputs"], tf.shape(outputs)
                )
            return values

        sums = split.sum_over(terms_of, sums, static_sizes=bool(self.jit_compile))
        outputs = sums.pop("outputs", None)
        means = keras.tree.map_structure(lambda total: _divide(total, split.count), sums)
        return means if outputs is None else means | {"outputs": outputs}

    def _regularizer_terms(
        self, weights: list, state: list, x: Any, y: Any, sample_weight: Any
    ) -> dict[str, Any]:
        """Returns R_alpha of one sub-batch, and g_i - grad L~(B_i, w - alpha g_i)."""
        if self.gradient == "hessian_vector_product":
            _, gradients = self._hard_label_gradients(weights, state, x, y, sample_weight)
            return self._hessian_terms(gradients, weights, state, x, y, sample_weight)
        evaluate = self._hard_label_gradients
        if not tf.executing_eagerly():
            # Both weights share one trace.
            evaluate = tf.function(evaluate, autograph=False)
        loss, gradients = evaluate(weights, state, x, y, sample_weight)
        return self._finite_difference_terms(
            evaluate, loss, gradients, weights, state, x, y, sample_weight
        )

    def _shared_terms(
        self, weights: list, state: list, x: Any, y: Any, sample_weight: Any
    ) -> dict[str, Any]:
        """Returns `_regularizer_terms`, and what a step needs of L on the sub-batch."""
        scale = self._loss_scale()
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(weights)
            with stateless.scope(self.model, weights, state) as scope:
                outputs = self(x, training=True)
                with tf.control_dependencies(self._check_outputs(outputs)):
                    loss = self._compute_loss(
                        x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=True
                    )
                penalties = self.losses
            hard_loss = self._hard_label_mean(y, outputs, sample_weight)
            # Where L is L~ but for penalties, the gradient of the penalties is all that is new.
            shared = self._hard_label_loss.is_the_loss
            rest = tf.add_n(penalties or [tf.zeros_like(loss)]) if shared else loss
            scaled_hard_loss, scaled_rest = _scale(hard_loss, scale), _scale(rest, scale)
        hard = _unscale(_gradient(tape, scaled_hard_loss, weights), scale)
        gradients = _unscale(_gradient(tape, scaled_rest, weights), scale)
        if shared:
            gradients = [tf.add(g, h) for g, h in zip(gradients, hard, strict=True)]
        del tape
        arguments = (weights, state, x, y, sample_weight)
        if self.gradient == "hessian_vector_product":
            terms = self._hessian_terms(hard, *arguments)
        else:
            terms = self._finite_difference_terms(
                self._hard_label_gradients, hard_loss, hard, *arguments
            )
        after = [
            tf.convert_to_tensor(scope.get_current_value(v))
            for v in self.model.non_trainable_variables
        ]
        return terms | {
            "loss": tf.cast(loss, weights[0].dtype),
            "gradients": gradients,
            "changes": [tf.subtract(a, b) for a, b in zip(after, state, strict=True)],
            "outputs": outputs,
        }

    def _finite_difference_terms(
        self, evaluate: Callable, loss: tf.Tensor, gradients: list, weights: list, *batch: Any
    ) -> dict[str, Any]:
        """Returns the terms of Equation 6: the loss and its gradient at w and at w - alpha g_i."""
        steps = [tf.stop_gradient(g) * self.alpha for g in gradients]
        there = [w - step for w, step in zip(weights, steps, strict=True)]
        loss_there, gradients_there = evaluate(there, *batch)
        return {
            "regularizer": loss - loss_there,
            "differences": [g - t for g, t in zip(gradients, gradients_there, strict=True)],
        }

    def _hessian_terms(self, gradients: list, weights: list, *batch: Any) -> dict[str, Any]:
        """Returns the limit of Equation 6 for small alpha: alpha ||g_i||^2 and alpha H_i g_i."""
        norm = tf.linalg.global_norm(gradients)
        # A unit direction keeps tangents inside the range of half precision.
        unit = [tf.stop_gradient(tf.math.divide_no_nan(g, norm)) for g in gradients]
        with exact_moments(), tf.autodiff.ForwardAccumulator(weights, unit) as accumulator:
            _, gradients = self._hard_label_gradients(weights, *batch)
        products = [
            accumulator.jvp(g, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            for g in gradients
        ]
        return {
            "regularizer": self.alpha * norm**2,
            "differences": [self.alpha * norm * product for product in products],
        }

    def _hard_label_gradients(
        self, weights: list, state: list, x: Any, y: Any, sample_weight: Any
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Returns L~(B_i, w) and its gradient at any weights w, without a trace in the model."""
        scale = self._loss_scale()
        with tf.GradientTape() as tape:
            tape.watch(weights)
            with stateless.scope(self.model, weights, state):
                outputs = self(x, training=True)
            loss = self._hard_label_mean(y, outputs, sample_weight)
            scaled_loss = _scale(loss, scale)
        return loss, _unscale(_gradient(tape, scaled_loss, weights), scale)

    def _hard_label_mean(self, y: Any, outputs: tf.Tensor, sample_weight: Any) -> tf.Tensor:
        losses = self._hard_label_loss(y, outputs)
        if sample_weight is not None:
            losses *= tf.cast(tf.reshape(sample_weight, [-1]), losses.dtype)
        return tf.cast(tf.reduce_mean(losses), self.trainable_variables[0].dtype)

    def _state_of(self, index: tf.Tensor, state: list) -> list:
        """Gives each sub-batch its own seeds, which it uses at w and at w - alpha g_i alike."""
        seeds = {id(v) for v in _seed_states(self.model)}
        # Weyl's sequence: far apart from the small steps between the seeds of different layers.
        shift = tf.cast(tf.cast(index, tf.int64) * 0x9E3779B1 % 2**32, tf.uint32)
        return [
            value + tf.cast(tf.stack([shift, 0]), value.dtype) if id(variable) in seeds else value
            for variable, value in zip(self.model.non_trainable_variables, state, strict=True)
        ]

    def _loss_scale(self) -> tf.Tensor | None:
        """Returns the factor that the optimizer wants losses scaled by, None for 1."""
        one = tf.ones(())
        scaled = self.optimizer.scale_loss(one)
        return None if scaled is one else scaled

    def _check_outputs(self, outputs: tf.Tensor) -> list:
        if needs_check(self.model):
            return self._hard_label_loss.check_outputs(outputs)
        return []


class _Mean(keras.metrics.Mean):
    """Mean of the values that are not NaN; NaN if there is none."""

    def update_state(self, value: tf.Tensor) -> None:
        known = ~tf.math.is_nan(value)
        super().update_state(tf.where(known, value, 0), sample_weight=tf.cast(known, value.dtype))

    def result(self) -> tf.Tensor:
        return self.total / self.count


def _check_arguments(
    model: Any,
    alpha: Any,
    beta: Any,
    num_sub_batches: Any,
    clip_norm: Any,
    gradient: Any,
    seed: Any,
) -> None:
    """Raises a ValueError that says which argument is out of range."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            "FisherRegularizedModel wraps a keras.Model (functional, Sequential or subclassed). "
            f"Given: {model!r} of type {type(model).__name__}."
        )
    outputs = getattr(model, "outputs", None)
    if outputs is not None and len(outputs) != 1:
        raise ValueError(
            "FisherRegularizedModel wraps a classifier with one output; "
            f"{model.name!r} has {len(outputs)}. Wrap a model with the output to be classified."
        )
    if not _is_number(alpha) or alpha <= 0:
        raise ValueError(f"alpha must be a number greater than 0. Given: alpha={alpha!r}.")
    scheduled = isinstance(beta, keras.optimizers.schedules.LearningRateSchedule)
    if not scheduled and (not _is_number(beta) or beta < 0):
        raise ValueError(
            "beta must be a number, 0 or greater, or a keras LearningRateSchedule. "
            f"Given: beta={beta!r}."
        )
    if not _is_whole(num_sub_batches) or num_sub_batches < 1:
        raise ValueError(
            "num_sub_batches must be a whole number, 1 or greater. "
            f"Given: num_sub_batches={num_sub_batches!r}."
        )
    if clip_norm is not None and (not _is_number(clip_norm) or clip_norm <= 0):
        raise ValueError(
            "clip_norm must be a number greater than 0, or None for no clipping. "
            f"Given: clip_norm={clip_norm!r}."
        )
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {GRADIENTS}. Given: gradient={gradient!r}.")
    if seed is not None and not _is_whole(seed):
        raise ValueError(f"seed must be a whole number or None. Given: seed={seed!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _seed_states(model: keras.Model) -> list[keras.Variable]:
    """Returns the states of a model's seed generators, in its own order."""
    return [v for v in model.non_trainable_variables if v.name == "seed_generator_state"]


def _symbolic(x: Any) -> Any:
    return keras.tree.map_structure(
        lambda t: keras.KerasTensor(t.shape, keras.backend.standardize_dtype(t.dtype)), x
    )


def _batch_size(x: Any) -> tf.Tensor:
    return tf.shape(keras.tree.flatten(x)[0])[0]


def _gather(structure: Any, where: tf.Tensor) -> Any:
    return keras.tree.map_structure(
        lambda values: None if values is None else tf.gather(values, where), structure
    )


def _gradient(tape: tf.GradientTape, loss: tf.Tensor, weights: list) -> list[tf.Tensor]:
    """Returns dense gradients, zero where the loss does not depend on a weight."""
    gradients = tape.gradient(loss, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [tf.convert_to_tensor(g) for g in gradients]


def _dense(results: tuple) -> tuple:
    """Gives a plain step's results the structure of a regularized step's."""
    loss, outputs, gradients, logs = results
    return loss, outputs, _map(tf.convert_to_tensor, gradients), logs


def _map(function: Callable, gradients: Sequence) -> list:
    return [None if g is None else function(g) for g in gradients]


def _zeros(tensors: list) -> list[tf.Tensor]:
    return [tf.zeros_like(t) for t in tensors]


def _scale(loss: tf.Tensor, scale: tf.Tensor | None) -> tf.Tensor:
    return loss if scale is None else loss * tf.cast(scale, loss.dtype)


def _unscale(gradients: list, scale: tf.Tensor | None) -> list:
    return gradients if scale is None else [g / tf.cast(scale, g.dtype) for g in gradients]


def _divide(total: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Divides a sum by M; counters, which all move alike, stay whole."""
    if total.dtype.is_floating:
        return total / tf.cast(count, total.dtype)
    return total // tf.cast(count, total.dtype)
