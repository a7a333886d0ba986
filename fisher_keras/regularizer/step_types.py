"""What the functions of a step give each other."""

import dataclasses
from typing import Any

import tensorflow as tf


class Structure:
    """Base of dataclasses that TensorFlow takes apart into their tensors, as it does lists.

    So they go in and out of a `tf.function`, a loop or a branch. A field that is None is no part
    of the structure.
    """

    def __tf_flatten__(self) -> tuple[tuple[str, ...], tuple]:
        """Returns the names of the fields that are not None, and their values."""
        fields = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]
        given = {name: value for name, value in fields if value is not None}
        return tuple(given), tuple(given.values())

    @classmethod
    def __tf_unflatten__(cls, names: tuple[str, ...], values: tuple) -> Any:
        """Puts together what `__tf_flatten__` took apart."""
        return cls(**dict(zip(names, values, strict=True)))


@dataclasses.dataclass(frozen=True)
class LossAndGradient(Structure):
    """A loss and its gradient at some weights.

    Attributes:
        loss: Scalar.
        gradient: Its derivatives in the order of the weights.
    """

    loss: tf.Tensor
    gradient: list[tf.Tensor]

    def times(self, factor: tf.Tensor) -> "LossAndGradient":
        """Returns both times a scalar."""

        def times(tensor: tf.Tensor) -> tf.Tensor:
            return tensor * tf.cast(factor, tensor.dtype)

        return dataclasses.replace(
            self, loss=times(self.loss), gradient=list(map(times, self.gradient))
        )


@dataclasses.dataclass(frozen=True)
class BatchLoss(LossAndGradient):
    """The compiled loss L on examples, and what else the pass that computes it gives.

    The gradient is None for a weight that L does not depend on.

    Attributes:
        outputs: The model's outputs, shape (B, K).
        changes: By how much the pass moves the model's state (moving statistics, seeds); None if
            it has moved it.
        overwrites: The next values of the variables that are overwritten instead of descended.
    """

    outputs: tf.Tensor | None = None
    changes: list[tf.Tensor] | None = None
    overwrites: list[tf.Tensor] | None = None


@dataclasses.dataclass(frozen=True)
class Terms(Structure):
    """What a sub-batch adds to a step.

    Attributes:
        regularizer: Its part of R_alpha(w), and the gradient of that (Equation 6).
        loss: L(B_i, w), if gradients are shared. Its outputs are for all of B, 0 for the examples
            of other sub-batches.
    """

    regularizer: LossAndGradient
    loss: BatchLoss | None = None

    def part(self, share: tf.Tensor | None) -> "Terms":
        """Returns losses and gradients times a share of all sub-batches; None is all of them."""
        if share is None:
            return self
        loss = None if self.loss is None else self.loss.times(share)
        return Terms(self.regularizer.times(share), loss)


@dataclasses.dataclass(frozen=True)
class Step(Structure):
    """What a step computes.

    Attributes:
        loss: L(B, w), scalar.
        gradient: What the optimizer is given, in the order of the weights.
        regularizer: R_alpha(w), scalar; NaN where it was not computed.
        gradient_norm: The global norm before clipping, scalar.
        outputs: The model's outputs, shape (B, K).
        changes: By how much the model's state has yet to be moved; None for not at all.
    """

    loss: tf.Tensor
    gradient: list[tf.Tensor]
    regularizer: tf.Tensor
    gradient_norm: tf.Tensor
    outputs: tf.Tensor
    changes: list[tf.Tensor] | None = None
