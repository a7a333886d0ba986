"""A training step on the replicas of a `tf.distribute` strategy, each with its share of the batch.

Replica r has |B_r| of the |B| examples, and splits them into M sub-batches. The gradient, the
losses and the moving statistics of a step are sums over the replicas of their parts, weighted by
their shares of the examples (L) and of the sub-batches (R_alpha): R replicas with M sub-batches
each do what one device does with R M sub-batches of the same examples.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.classifier.hard_label_loss import MEANS, is_mean
from fisher_keras.classifier.wrapper import ClassifierWrapper
from fisher_keras.devices import MIRRORED, count_processes
from fisher_keras.graph import keras_private


@dataclasses.dataclass(frozen=True)
class ReplicaWeights:
    """A replica's fractions of a mini-batch, float64 scalars. Over all replicas, they add up to 1.

    Attributes:
        examples: |B_r| / |B|.
        sub_batches: The number of its sub-batches over that of all replicas.
    """

    examples: tf.Tensor
    sub_batches: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Replica:
    """The replica that a step runs on.

    Attributes:
        index: r, from 0; int64 scalar.
        count: R. If it is 1, nothing is summed.
    """

    index: int | tf.Tensor = 0
    count: int = 1

    @classmethod
    def current(cls) -> "Replica":
        """Returns the replica in whose context the caller is."""
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return cls()
        index = tf.cast(context.replica_id_in_sync_group, tf.int64)
        return cls(index, context.num_replicas_in_sync)

    def weights(self, batch_size: tf.Tensor, num_sub_batches: int) -> ReplicaWeights | None:
        """Returns the weights of this replica; None if it is the only one.

        Args:
            batch_size: |B_r|, int32 scalar, may be 0.
            num_sub_batches: Number of sub-batches M.
        """
        if self.count == 1:
            return None
        # A share of fewer than M examples has that many sub-batches; one all-reduce sums both.
        parts = tf.stack([batch_size, tf.minimum(num_sub_batches, batch_size)])
        parts = tf.cast(parts, tf.float64)
        return ReplicaWeights(*tf.unstack(parts / self.all_reduce_sum(parts)))

    def all_reduce_sum(self, values: Any) -> Any:
        """All-reduces by sum.

        Args:
            values: A structure of tensors; None and `tf.IndexedSlices` may be among them.

        Returns:
            The sums, dense and the same on all replicas; None where there is None.
        """
        if self.count == 1:
            return values
        flat = tf.nest.flatten(values)
        given = [tf.convert_to_tensor(value) for value in flat if value is not None]
        context = tf.distribute.get_replica_context()
        # Only tensors can be reduced; each None goes back to its place after that.
        sums = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, given))
        flat = [None if value is None else next(sums) for value in flat]
        return tf.nest.pack_sequence_as(values, flat)

    def statistics(self, model: keras.Model) -> list[keras.Variable]:
        """Returns the moving statistics, which `average_updates` keeps equal on all replicas."""
        if self.count == 1:
            return []
        return [v for v in model.non_trainable_variables if tf.as_dtype(v.dtype).is_floating]

    def average_updates(
        self, variables: list[keras.Variable], before: list[tf.Tensor], weight: tf.Tensor | None
    ) -> None:
        """Averages the replicas' updates of variables.

        Args:
            variables: The result of `statistics`.
            before: Their values before, the same on all replicas.
            weight: The weight of this replica in the mean.
        """
        if not variables:
            return
        moved = zip(stateless.values(variables), before, strict=True)
        # Values before and sums are the same on all replicas, and so are the values afterwards.
        changes = self.all_reduce_sum([(a - b) * tf.cast(weight, b.dtype) for a, b in moved])
        stateless.move(variables, before, changes)

    @contextlib.contextmanager
    def local_batch_norm(self, model: keras.Model) -> Iterator[None]:
        """Lets synchronized batch normalization take the moments of only this replica.

        This is for the examples of a sub-batch, which no other replica has.
        """
        layers = []
        if self.count > 1:
            layers = synchronized_layers(model)
        for layer in layers:
            layer.synchronized = False
        try:
            yield
        finally:
            for layer in layers:
                layer.synchronized = True

    def apply(self, optimizer: keras.optimizers.Optimizer, gradient: list, weights: list) -> None:
        """Updates weights with a gradient that is the same on all replicas.

        Args:
            optimizer: The optimizer.
            gradient: The sums over the replicas, as the optimizer wants them.
            weights: The variables.
        """
        with contextlib.ExitStack() as stack:
            if self.count > 1:
                stack.enter_context(keras_private.gradients_already_reduced(optimizer))
            optimizer.apply_gradients(zip(gradient, weights, strict=True))


def synchronized_layers(model: keras.Model) -> list[keras.Layer]:
    """Returns the layers that take their moments from the examples of all replicas."""
    return [one for one in keras_private.all_layers(model) if getattr(one, "synchronized", False)]


def check_replicas(model: ClassifierWrapper) -> None:
    """Refuses combinations that would not be right on several replicas.

    Args:
        model: A compiled model around a classifier.

    Raises:
        ValueError: If there are several replicas, and with the strategy, the model, the loss or
            the optimizer they would not train as one device does.
    """
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync == 1:
        return
    what = f"{type(model).__name__} on {strategy.num_replicas_in_sync} replicas"
    if not isinstance(strategy, MIRRORED):
        raise ValueError(
            f"{what} needs a tf.distribute.MirroredStrategy or MultiWorkerMirroredStrategy. "
            f"Given: {type(strategy).__name__}."
        )
    if tf.distribute.in_cross_replica_context():
        raise ValueError(
            f"{what} computes gradients on each of them: call this by strategy.run, not in "
            "strategy.scope() alone."
        )
    check_in_scope(model, strategy)
    if model.jit_compile or model.steps_per_execution > 1:
        raise ValueError(
            f"{what} needs compile(jit_compile=False, steps_per_execution=1): Keras' own steps on "
            f"replicas have nothing else. Given: jit_compile={model.jit_compile}, "
            f"steps_per_execution={model.steps_per_execution}."
        )
    _check_loss(model, what)
    keras_private.check_gradients_already_reduced(model.optimizer)


def check_in_scope(model: keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Raises a ValueError if replicas do not have their own copies of a model's variables."""
    if strategy.num_replicas_in_sync == 1:
        return
    variables = [*model.model.variables, *(model.optimizer.variables if model.optimizer else ())]
    if not all(isinstance(v.value, tf.distribute.DistributedValues) for v in variables):
        raise ValueError(
            f"{type(model).__name__} needs variables on each of {strategy.num_replicas_in_sync} "
            "replicas: make the classifier, the model and the optimizer, and compile, in "
            "strategy.scope()."
        )


def _check_loss(model: ClassifierWrapper, what: str) -> None:
    if model.has_custom_loss:
        raise ValueError(
            f"{what} cannot tell how a custom compute_loss divides by the number of "
            f"replicas. Use a loss of Keras in compile(). Given: {model.model.name!r}, which "
            "overrides compute_loss."
        )
    for loss in keras.tree.flatten(model.loss):
        if not is_mean(loss):
            raise ValueError(
                f"{what} needs a loss that is a mean over the examples, reduction={MEANS[0]!r}. "
                f"Given: reduction={loss.reduction!r}."
            )


def replica_logs(logs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns the logs of a step on this replica in the form that Keras reduces."""
    if count_processes(tf.distribute.get_strategy()) == 1:
        return logs
    # For several workers, it takes the mean along an axis that a number has not.
    return {name: tf.reshape(value, [1]) for name, value in logs.items()}
