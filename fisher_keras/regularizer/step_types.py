"""Dataclasses of a training step."""

import dataclasses
from typing import Any

import tensorflow as tf

from fisher_keras.regularizer.arithmetic import Part, scale


class Structure:
    """Base of dataclasses that TensorFlow splits into their tensors, as it does with lists.

    Therefore they can go in and out of a `tf.function`, a loop or a branch. A field that is None
    is not a part of the structure.
    """

    def __tf_flatten__(self) -> tuple[tuple[str, ...], tuple]:
        """Returns the names of the fields that are not None, and their values."""
        fields = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]
        given = {name: value for name, value in fields if value is not None}
        return tuple(given), tuple(given.values())

    @classmethod
    def __tf_unflatten__(cls, names: tuple[str, ...], values: tuple) -> Any:
        """Makes the dataclass again from the values of `__tf_flatten__`."""
        return cls(**dict(zip(names, values, strict=True)))


@dataclasses.dataclass(frozen=True)
class LossAndGradient(Structure):
    """A loss and its gradient at some weights.

    Attributes:
        loss: Scalar.
        gradient: Its derivatives in the order of the weights.
    """

    loss: tf.Tensor
    gradient: list[Part]

    def scaled(self, factor: tf.Tensor) -> "LossAndGradient":
        """Returns both times a scalar."""
        loss, *gradient = scale([self.loss, *self.gradient], factor)
        return dataclasses.replace(self, loss=loss, gradient=gradient)


@dataclasses.dataclass(frozen=True)
class BatchLoss(LossAndGradient):
    """The compiled loss L on examples, with the model's outputs and changes of its state.

    The gradient is None for a weight that L does not depend on.

    Attributes:
        outputs: The model's outputs, shape (B, K).
        changes: The changes of the model's state (moving statistics, seeds) by the pass; None if
            the state itself has changed.
    """

    outputs: tf.Tensor | None = None
    changes: list[tf.Tensor] | None = None


@dataclasses.dataclass(frozen=True)
class SubBatchTerms(Structure):
    """Terms of a sub-batch in the sums of a step.

    Attributes:
        regularizer: Its part of R_alpha(w), and the gradient of that (Equation 6).
        loss: L(B_i, w), if gradients are shared. Its outputs are for all of B, 0 for the examples
            of other sub-batches.
    """

    regularizer: LossAndGradient
    loss: BatchLoss | None = None

    def weighted(self, weight: tf.Tensor | None) -> "SubBatchTerms":
        """Returns losses and gradients times a replica's weight; None stands for 1."""
        if weight is None:
            return self
        loss = None if self.loss is None else self.loss.scaled(weight)
        return SubBatchTerms(self.regularizer.scaled(weight), loss)


@dataclasses.dataclass(frozen=True)
class RegularizedStep(BatchLoss):
    """Result of Algorithm 1, up to the update.

    Its loss is L(B, w), and its gradient is that of L + beta R_alpha, clipped.

    Attributes:
        regularizer: R_alpha(w), scalar; NaN where it was not computed.
        gradient_norm: The global norm before clipping, scalar.
    """

    regularizer: tf.Tensor | None = None
    gradient_norm: tf.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Step(Structure):
    """Result of a training method's step.

    Attributes:
        loss: L(B, w), scalar: the "loss" of the logs.
        gradient: The gradient to follow, in the order of the weights; None for a weight that the
            loss does not depend on.
        outputs: The model's outputs, shape (B, K), for the metrics.
        logs: Scalars by the names in `training_logs`.
    """

    loss: tf.Tensor
    gradient: list[tf.Tensor | None]
    outputs: tf.Tensor
    logs: dict[str, tf.Tensor] = dataclasses.field(default_factory=dict)
