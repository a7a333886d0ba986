"""A training step on the replicas of a `tf.distribute` strategy, each with its share of the batch.

Replica r has |B_r| of the |B| examples, and splits them into M sub-batches. The gradient, the
losses and the moving statistics of a step are sums over the replicas of their parts, weighted by
their shares of the examples (L) and of the sub-batches (R_alpha): R replicas with M sub-batches
each do what one device does with R M sub-batches of the same examples.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.classifier.wrapper import ClassifierWrapper, plain_classifier
from fisher_keras.devices import count_processes
from fisher_keras.graph import keras_private

# What a classifier must leave to Keras, for here a training method has its own.
_STEPS = ("train_step", "test_step", "predict_step")
_MEANS = ("sum_over_batch_size", "mean")


@dataclasses.dataclass(frozen=True)
class Shares:
    """What a replica has of a mini-batch. All are 1 together; float64 scalars.

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
        count: R. With 1, nothing is added up.
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

    def shares(self, batch_size: tf.Tensor, num_sub_batches: int) -> Shares | None:
        """Returns the shares of this replica; None if it is the only one.

        Args:
            batch_size: |B_r|, int32 scalar, may be 0.
            num_sub_batches: M.
        """
        if self.count == 1:
            return None
        parts = tf.stack([batch_size, tf.minimum(num_sub_batches, batch_size)])
        parts = tf.cast(parts, tf.float64)
        return Shares(*tf.unstack(parts / self.add_up(parts)))

    def add_up(self, values: Any) -> Any:
        """Returns the sums over all replicas.

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
        sums = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, given))
        flat = [None if value is None else next(sums) for value in flat]
        return tf.nest.pack_sequence_as(values, flat)

    def statistics(self, model: keras.Model) -> list[keras.Variable]:
        """Returns what replicas move apart and `agree` on: the model's moving statistics."""
        if self.count == 1:
            return []
        return [v for v in model.non_trainable_variables if tf.as_dtype(v.dtype).is_floating]

    def agree(
        self, variables: list[keras.Variable], before: list[tf.Tensor], share: tf.Tensor | None
    ) -> None:
        """Moves variables by the mean over the replicas of what each has moved them by.

        Args:
            variables: What `statistics` returned.
            before: Their values before, the same on all replicas.
            share: The weight of this replica in the mean.
        """
        if not variables:
            return
        moved = zip(stateless.values(variables), before, strict=True)
        changes = self.add_up([(a - b) * tf.cast(share, b.dtype) for a, b in moved])
        for variable, value, change in zip(variables, before, changes, strict=True):
            variable.assign(value + change)

    @contextlib.contextmanager
    def own_moments(self, model: keras.Model) -> Iterator[None]:
        """The context in which synchronized batch normalization is that of this replica alone.

        So it is where the examples are those of a sub-batch, which no other replica knows of.
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


def check_replicas(model: keras.Model, own_loss: bool) -> None:
    """Refuses what would not be right on several replicas.

    Args:
        model: A compiled model around a classifier, `model.model`.
        own_loss: Whether the classifier has a `compute_loss` of its own.

    Raises:
        ValueError: If there are several replicas and the strategy, the model, the loss or the
            optimizer is none that trains as one device would.
    """
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync == 1:
        return
    what = f"{type(model).__name__} on {strategy.num_replicas_in_sync} replicas"
    known = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
    if not isinstance(strategy, known):
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
    if stateless.overwritten(model.model):
        raise ValueError(
            f"{what} cannot train in float8, whose scales would differ between replicas. Use "
            "another dtype policy."
        )
    if model.jit_compile or model.steps_per_execution > 1:
        raise ValueError(
            f"{what} needs compile(jit_compile=False, steps_per_execution=1): Keras' own steps on "
            f"replicas have nothing else. Given: jit_compile={model.jit_compile}, "
            f"steps_per_execution={model.steps_per_execution}."
        )
    _check_loss(model, own_loss, what)
    keras_private.check_gradients_already_reduced(model.optimizer)


def check_not_synchronized(model: keras.Model) -> None:
    """Raises a ValueError if a layer needs all replicas where they cannot meet, in a branch."""
    layers = synchronized_layers(model)
    if layers:
        raise ValueError(
            "On several replicas, a schedule of beta with share_gradients=True has a plain step "
            "in a branch, where replicas cannot meet. Use synchronized=False or "
            f"share_gradients=False. Given: layer {layers[0].name!r} with synchronized=True."
        )


def check_in_scope(model: keras.Model, strategy: tf.distribute.Strategy) -> None:
    """Raises a ValueError if replicas have no copies of their own of a model's variables."""
    if strategy.num_replicas_in_sync == 1:
        return
    variables = [*model.model.variables, *(model.optimizer.variables if model.optimizer else ())]
    if not all(isinstance(v.value, tf.distribute.DistributedValues) for v in variables):
        raise ValueError(
            f"{type(model).__name__} needs variables on each of {strategy.num_replicas_in_sync} "
            "replicas: make the classifier, the model and the optimizer, and compile, in "
            "strategy.scope()."
        )


def _check_loss(model: keras.Model, own_loss: bool, what: str) -> None:
    if own_loss:
        raise ValueError(
            f"{what} cannot tell how a compute_loss of one's own divides by the number of "
            f"replicas. Use a loss of Keras in compile(). Given: {model.model.name!r}, which "
            "overrides compute_loss."
        )
    for loss in keras.tree.flatten(model.loss):
        reduction = getattr(loss, "reduction", _MEANS[0])
        if reduction not in _MEANS:
            raise ValueError(
                f"{what} needs a loss that is a mean over the examples, reduction={_MEANS[0]!r}. "
                f"Given: reduction={reduction!r}."
            )


class ReplicatedModel(ClassifierWrapper):
    """A model whose steps may run on several replicas, and what Keras' trainer lacks for that.

    Attributes:
        training_logs: Names of the logs that are of training alone.
    """

    training_logs: tuple[str, ...] = ()

    def __init__(self, model: keras.Model, name: str | None = None) -> None:
        """Wraps a classifier.

        Args:
            model: A Keras classifier with one output.
            name: Name of the model.

        Raises:
            ValueError: If it overrides a step, or see `ClassifierWrapper`.
        """
        super().__init__(model, name)
        overridden = [step for step in _STEPS if overrides(model, step)]
        if overridden:
            raise ValueError(
                f"{type(model).__name__}.{overridden[0]} would not be used, for "
                f"{type(self).__name__} has steps of its own. Override call, compute_loss or "
                f"compute_metrics instead. Given: {model.name!r}."
            )

    @property
    def output_names(self) -> list[str]:
        """The classifier's, by which losses and metrics may be given; only some models have any.

        Raises:
            AttributeError: If the classifier has none.
        """
        return self.model.output_names

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Configures training; the arguments are those of `keras.Model.compile`."""
        super().compile(optimizer, loss, loss_weights, *args, **kwargs)
        if overrides(self.model, "compute_loss"):
            # It may call Keras' own, which asks for the classifier's compiled loss.
            self.model.compile(self.optimizer, loss, loss_weights)

    def compute_loss(
        self, x: Any, y: Any, y_pred: tf.Tensor, sample_weight: Any = None, training: bool = True
    ) -> tf.Tensor:
        """Returns L, as the classifier computes it if it has a way of its own."""
        arguments = {"x": x, "y": y, "y_pred": y_pred, "sample_weight": sample_weight}
        if not overrides(self.model, "compute_loss"):
            return super().compute_loss(**arguments, training=training)
        if "training" in inspect.signature(self.model.compute_loss).parameters:
            arguments["training"] = training
        return self.model.compute_loss(**arguments)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: tf.Tensor, sample_weight: Any = None
    ) -> dict[str, tf.Tensor]:
        """Returns the logs, with those of the classifier if it computes some itself."""
        arguments = {"x": x, "y": y, "y_pred": y_pred, "sample_weight": sample_weight}
        logs = {}
        if overrides(self.model, "compute_metrics"):
            logs = self.model.compute_metrics(**arguments)
        return {**logs, **super().compute_metrics(**arguments)}

    def reset_metrics(self) -> None:
        """Resets all metrics, the classifier's own too."""
        super().reset_metrics()
        self.model.reset_metrics()

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Evaluates one batch as Keras does; what is logged of training alone is left out."""
        logs = super().test_step(data)
        return replica_logs({n: v for n, v in logs.items() if n not in self.training_logs})

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        # Unless all metrics are in them, Keras takes the last step's logs, a mean of what each
        # replica has seen, however little.
        found = self.get_metrics_result()
        if not isinstance(logs, dict) or not logs.keys() <= found.keys():
            return logs
        return {name: found[name] for name in logs}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras' own takes the batches of several workers for tensors.
        strategy = self.distribute_strategy
        check_in_scope(self, strategy)
        if iterator is not None and count_processes(strategy) > 1:
            _, _, batches = next(iter(iterator))
            local = strategy.experimental_local_results
            data_batch = tf.nest.map_structure(lambda batch: local(batch)[0], next(batches))
            iterator = None
        keras_private.symbolic_build(super(), iterator, data_batch)
        self._build_before_tracing(iterator, data_batch)

    def _build_before_tracing(self, iterator: Any, data_batch: Any) -> None:
        """Makes variables that a step would make: `tf.function` traces such a step twice."""
        built, metrics = keras_private.is_built(self.model), keras_private.unbuilt_metrics(self)
        if built and metrics is None:
            return
        batch = keras_private.batch_spec(iterator, data_batch)
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        if not all(map(_is_known, keras.tree.flatten((x, y)))):
            return
        # Of a functional model that is built, this computes nothing.
        outputs = (self.model if built else self).compute_output_spec(stateless.symbolic(x))
        if metrics is not None:
            metrics.build(stateless.symbolic(y), outputs)

    def make_train_function(self, force: bool = False) -> Any:
        """Makes Keras' function of a training step, and the optimizer's variables before it."""
        ready = keras_private.is_built(self.model) and self.trainable_variables
        if ready and self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)


def overrides(model: keras.Model, method: str) -> bool:
    """Returns whether a classifier has a way of its own to do what Keras does."""
    own = getattr(plain_classifier(model), method)
    return getattr(own, "__func__", own) is not getattr(keras.Model, method)


def _is_known(tensor: Any) -> bool:
    """Returns whether something tells the shape and dtype of a dense tensor."""
    if isinstance(tensor, (np.ndarray, tf.Tensor, tf.TensorSpec)):
        return tf.TensorShape(tensor.shape).rank is not None
    return False


def replica_logs(logs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns the logs of a step on this replica in the form that Keras reduces."""
    if count_processes(tf.distribute.get_strategy()) == 1:
        return logs
    # For several workers, it takes the mean along an axis that a number has not.
    return {name: tf.reshape(value, [1]) for name, value in logs.items()}
