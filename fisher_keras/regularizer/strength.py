r"""Strength of the regularizer relative to the one that SGD has by itself.

With steps of a small learning rate $\eta$, SGD follows the gradient of
$L(w) + \frac{\eta}{4} \|g_B\|^2$, in the mean over mini-batches $B$ (S. L. Smith, B. Dherin,
D. G. T. Barrett and S. De, "On the Origin of Implicit Regularization in Stochastic Gradient
Descent", ICLR 2021, arXiv 2101.12176); with its $g_i$ held constant, $\beta R_\alpha$ is
$\frac{\alpha \beta}{2}$ times the mean of $\|g_i\|^2$. If noise dominates the gradients, those of
$|B| / M$ examples are $\sqrt M$ times as long. A momentum of $m$ makes the learning rate
$1 / (1 - m)$ times as large in effect. The ratio of the two is therefore
$2 \alpha \beta M (1 - m) / \eta$. This assumes that $|B|$ is larger than $M$. If an update has the
mean of several mini-batches, those of $R$ replicas or accumulated ones, $M$ is the number of all
their sub-batches. If the ratio is far below 1, $\beta$ changes next to nothing. $L$ is taken for
the mean of the examples' losses: for a sum or a weighted loss there is no ratio.
"""

import math
import warnings
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.arguments import whole_number
from fisher_keras.classifier.hard_label_loss import is_mean, only_loss
from fisher_keras.graph import keras_private
from fisher_keras.regularizer.options import Option, number_or_schedule, positive
from fisher_keras.regularizer.step import TrainingMethod

DEFAULT_BETA = 10.0
_WEAK, _USEFUL = 0.1, 0.25  # Ratios: `fit` warns below the first, and names beta of the second.


def sgd_momentum(optimizer: keras.optimizers.Optimizer) -> float | None:
    """Returns the momentum of Keras' SGD; None for another optimizer, which has no such ratio."""
    optimizer = keras_private.unwrapped(optimizer)
    # A subclass with an update of its own is another optimizer.
    if getattr(type(optimizer), "update_step", None) is not keras.optimizers.SGD.update_step:
        return None
    return float(optimizer.momentum)


def explicit_to_implicit(
    alpha: float,
    beta: float | tf.Tensor,
    num_sub_batches: int,
    learning_rate: float | tf.Tensor,
    momentum: float | None = 0.0,
) -> tf.Tensor:
    """Returns the ratio of this regularizer's strength to that of SGD's own, float32 scalar.

    Args:
        alpha: Factor of the steps along g_i.
        beta: Weight of the regularizer.
        num_sub_batches: M, of all mini-batches of an update together.
        learning_rate: That of the step.
        momentum: That of SGD; None for another optimizer, or a loss that is no mean.

    Returns:
        The ratio. It is 0 if the learning rate is 0, as nothing moves then, and NaN without a
        momentum.
    """
    if momentum is None:
        return tf.constant(math.nan)
    beta, learning_rate = tf.cast(beta, tf.float32), tf.cast(learning_rate, tf.float32)
    explicit = 2 * alpha * beta * num_sub_batches * (1 - momentum)
    return tf.math.divide_no_nan(explicit, learning_rate)


class RelativeStrength(TrainingMethod):
    """A training method whose regularizer has a weight beta, given directly or by a ratio.

    Attributes:
        alpha: Factor of the steps along g_i.
        beta: Weight of the regularizer, a number or a schedule; None with a `strength`.
        strength: The ratio of `explicit_to_implicit` to keep, a number or a schedule; None with a
            `beta`. Setting one of the two removes the other.
        num_sub_batches: Number of sub-batches M.
        interval: k; every k-th step has the regularizer, with k times beta.
    """

    alpha = Option(positive)
    beta = Option(number_or_schedule, instead_of="strength")
    strength = Option(number_or_schedule, instead_of="beta")
    num_sub_batches = Option(lambda name, value: whole_number(name, value, least=1))
    interval = Option(lambda name, value: whole_number(name, value, least=1))

    def __init__(self, model: keras.Model, name: str | None, beta: Any, strength: Any) -> None:
        """Wraps a classifier.

        Args:
            model: A Keras classifier with one output.
            name: Name of the model.
            beta: Weight of the regularizer, or None.
            strength: A ratio instead, or None. If both are None, beta is `DEFAULT_BETA`.

        Raises:
            ValueError: If both are given, or one is out of range.
        """
        super().__init__(model, name)
        self._fitted = False
        if strength is None:
            self.beta = DEFAULT_BETA if beta is None else beta
        elif beta is None:
            self.strength = strength
        else:
            raise ValueError(
                "beta and strength are two ways to say the same: give one of them. Given: "
                f"beta={beta!r}, strength={strength!r}."
            )

    @property
    def regularizes(self) -> bool:
        """True if some step may have the regularizer."""
        given = self.beta if self.strength is None else self.strength
        # A schedule may have another value than 0 in some step.
        return callable(given) or given != 0

    def check_strength(self) -> None:
        """Raises a ValueError if a `strength` has no meaning for the optimizer or the loss."""
        if self.strength is None:
            return
        remedy = "give beta instead, and tune it on validation data. Given: "
        if sgd_momentum(self.optimizer) is None:
            name = type(keras_private.unwrapped(self.optimizer)).__name__
            raise ValueError(
                "strength is relative to the regularization of Keras' SGD, which other optimizers "
                f"do not have: {remedy}strength={self.strength!r}, optimizer={name}."
            )
        if self._momentum() is None:
            raise ValueError(
                "strength is for a loss that is the mean over the examples: without another "
                f"reduction, loss_weights or a compute_loss of the classifier. Else {remedy}"
                f"strength={self.strength!r}, loss={self.loss!r}."
            )

    def current_beta(self) -> float | tf.Tensor:
        """Returns beta in this step, a float if it is the same in all steps."""
        beta = self._mean_beta()
        if self.interval == 1 or not self.regularizes:
            return beta
        has_regularizer = keras_private.num_updates(self.optimizer) % self.interval == 0
        # Times the interval, so that the mean over the steps is beta.
        return tf.where(has_regularizer, tf.cast(beta, tf.float64) * self.interval, 0.0)

    def ratio(self, beta: float | tf.Tensor) -> tf.Tensor:
        """Returns `explicit_to_implicit` of this step at a beta."""
        if (momentum := self._momentum()) is None:
            return tf.constant(math.nan)  # Some of these optimizers have no learning rate, either.
        count, rate = self._sub_batches_of_update(), self.optimizer.learning_rate
        return explicit_to_implicit(self.alpha, beta, count, rate, momentum)

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains the classifier. The arguments are those of `keras.Model.fit`.

        The first call warns if the options have an effect that users may not expect.
        """
        if self.compiled and not self._fitted and self.optimizer is not None:
            for message in self.first_messages():
                warnings.warn(message, stacklevel=2)
            self._fitted = True
        return super().fit(*args, **kwargs)

    def first_messages(self) -> list[str]:
        """Returns the warnings of the first `fit`."""
        beta = float(self._mean_beta())
        ratio = float(self.ratio(beta))
        # At a learning rate of 0, as a warm-up begins with, the ratio tells nothing.
        if not 0 < ratio < _WEAK:
            return []
        useful = float(f"{beta * _USEFUL / ratio:.2g}")
        return [
            f"The regularizer is {ratio:.2g} times as strong as that which SGD has anyway "
            f"(explicit_to_implicit), and hardly changes anything: its share grows with beta, and "
            f"falls with the learning rate. strength={_USEFUL} keeps it at a quarter of SGD's; "
            f"beta={useful:g} is that at this learning rate."
        ]

    def _mean_beta(self) -> float | tf.Tensor:
        """Returns beta in the mean over `interval` steps around this one."""
        given = self.beta if self.strength is None else self.strength
        if callable(given):
            given = tf.convert_to_tensor(given(self.optimizer.iterations))
        if self.strength is None or not self.regularizes:
            return given
        self.check_strength()
        # `explicit_to_implicit` solved for beta.
        rate = tf.cast(self.optimizer.learning_rate, tf.float64)
        rate /= 1 - sgd_momentum(self.optimizer)
        return tf.cast(given, tf.float64) * rate / (2 * self.alpha * self._sub_batches_of_update())

    def _momentum(self) -> float | None:
        """Returns SGD's momentum; None if the optimizer or the loss has no ratio."""
        is_plain = self.has_plain_loss and is_mean(only_loss(self.loss))
        return sgd_momentum(self.optimizer) if is_plain else None

    def _sub_batches_of_update(self) -> int:
        """Returns the number of sub-batches on all replicas and in all accumulated steps."""
        steps = keras_private.accumulated_steps(self.optimizer)
        return self.num_sub_batches * self.distribute_strategy.num_replicas_in_sync * steps
