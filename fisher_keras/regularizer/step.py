"""The base of training methods: all that Keras needs from a model with its own step."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.classifier.wrapper import ClassifierWrapper
from fisher_keras.devices import count_processes
from fisher_keras.graph import keras_private
from fisher_keras.regularizer.arithmetic import clip, global_norm, map_parts
from fisher_keras.regularizer.batches import Batch
from fisher_keras.regularizer.loss_forms import REPLICAS, check_mean
from fisher_keras.regularizer.losses import BatchLosses
from fisher_keras.regularizer.options import WithOptions
from fisher_keras.regularizer.replicas import (
    Replica,
    check_in_scope,
    check_replicas,
    replica_logs,
    synchronized_layers,
)
from fisher_keras.regularizer.step_types import Step
from fisher_keras.regularizer.traces import check_whole_batch


class TrainingLog(keras.metrics.Metric):
    """Mean of a training log over the steps where it is not NaN; NaN if there is none.

    The logs of a model share the variable of the first log. So a step adds to only one variable,
    and Keras resets only one, which it does before each `train_on_batch`.
    """

    @classmethod
    def of(cls, names: tuple[str, ...]) -> "list[TrainingLog]":
        """Returns the logs of these names."""
        logs = [cls(name=name) for name in names]
        sums = logs[0].add_variable((len(names), 2), "zeros", name="sums") if logs else None
        for index, log in enumerate(logs):
            # By a function, or Keras would take the variable for one that each log has to reset.
            log.shared_sums = lambda index=index: (sums, index)
        return logs

    def update_state(self, values: list[tf.Tensor]) -> None:
        """Adds the values that all logs have in a step."""
        sums, _ = self.shared_sums()
        values = tf.stack([tf.cast(value, self.dtype) for value in values])
        known = ~tf.math.is_nan(values)
        sums.assign_add(tf.stack([tf.where(known, values, 0), tf.cast(known, self.dtype)], axis=1))

    def result(self) -> tf.Tensor:
        """Returns the mean so far."""
        sums, index = self.shared_sums()
        total, count = tf.unstack(tf.gather(sums, index))
        return total / count  # Keras would return 0 for 0 / 0.


class TrainingMethod(keras_private.TrainerHooks, WithOptions, ClassifierWrapper):
    """A Keras classifier trained by steps that need gradients at several weights.

    A method is a subclass with a `step`, its `Option`s (all arguments of the constructor except
    the classifier and the name) and the names of its `training_logs`. This class does all the
    rest: the data, the checks of overridden methods, replicas, moving statistics, loss scaling,
    the optimizer, logs and saving.

    Attributes:
        model: The plain Keras classifier, to be saved, evaluated or served without this class.
        training_logs: Names of the logs that only training has.
    """

    training_logs: tuple[str, ...] = ()
    # Refuses a classifier that `step` cannot evaluate at other weights.
    check_losses = staticmethod(check_whole_batch)

    def __init__(self, model: keras.Model, name: str | None = None) -> None:
        """Wraps a classifier.

        Args:
            model: A Keras classifier with one output.
            name: Name of the model.

        Raises:
            ValueError: See `ClassifierWrapper`.
        """
        super().__init__(model, name)
        self._found: dict[tuple, Any] = {}
        self._log_trackers = TrainingLog.of(self.training_logs)

    # -------------------------------------------------------------------- what a method defines

    def step(self, losses: BatchLosses) -> Step:
        """Returns the step of the method on a mini-batch.

        Args:
            losses: L and L~ on the mini-batch, at any weights.

        Returns:
            Loss, gradient and logs of all replicas.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step(losses).")

    def optimizer_step(self, losses: BatchLosses) -> Step:
        """Returns `step` with its gradient scaled as the optimizer wants it."""
        self.check_once(losses)
        step = self.step(losses)
        gradient = map_parts(losses.scale().times, step.gradient)
        return dataclasses.replace(step, gradient=gradient)

    def losses_of(self, batch: Batch) -> BatchLosses:
        """Returns the losses that `step` takes, on a mini-batch."""
        return BatchLosses(self, batch)

    def check_once(self, losses: BatchLosses, *call: Any) -> None:
        """Calls `check_losses` for the first batch of each signature."""
        self.once(losses.batch.signature(), lambda: self.check_losses(losses, *call))

    def once(self, key: tuple, find: Callable[[], Any]) -> Any:
        """Returns the result of a function; that of the first call since traces were forgotten."""
        if key not in self._found:
            self._found[key] = find()
        return self._found[key]

    def statistics_weight(self, losses: BatchLosses) -> tf.Tensor | None:
        """Returns the weight of this replica's moving statistics; None for a single replica."""
        weights = losses.replica_weights
        return None if weights is None else weights.examples

    def accumulated_clip_norm(self) -> float | tf.Tensor | None:
        """Returns the norm to clip a sum of several gradients to; None does not clip."""
        return None

    def sums_gradients(self) -> bool:
        """Returns whether an update uses the sum of several replicas' or steps' gradients."""
        return keras_private.accumulated_steps(self.optimizer) > 1 or Replica.current().count > 1

    # ------------------------------------------------------------------------------ Keras' steps

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Does one step and returns the logs."""
        batch = Batch(*keras.utils.unpack_x_y_sample_weight(data))
        self.prepare(batch)
        losses = self.losses_of(batch)
        replica = losses.replica
        with self.averaging(losses):
            step = self.optimizer_step(losses)
        self._update(replica, step.gradient)
        for tracker in self._log_trackers[:1]:
            tracker.update_state([step.logs[log.name] for log in self._log_trackers])
        loss_tracker = next(metric for metric in self.metrics if metric.name == "loss")
        # As in Keras, so that an epoch's loss is a mean over examples and not over batches.
        loss_tracker.update_state(step.loss, sample_weight=batch.size())
        # A replica without examples has one of zeros.
        outputs = step.outputs[: batch.size()] if replica.count > 1 else step.outputs
        logs = self.compute_metrics(batch.x, batch.y, outputs, sample_weight=batch.sample_weight)
        return replica_logs(logs)

    @contextlib.contextmanager
    def averaging(self, losses: BatchLosses) -> Iterator[None]:
        """Averages over the replicas how much moving statistics change in the context."""
        statistics = losses.replica.statistics(self.model)
        before = stateless.values(statistics)
        yield
        losses.replica.average_updates(statistics, before, self.statistics_weight(losses))

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Evaluates one batch as Keras does, without the logs that only training has."""
        logs = super().test_step(data)
        return replica_logs({n: v for n, v in logs.items() if n not in self.training_logs})

    def prepare(self, batch: Batch) -> None:
        """Builds the model if needed, and refuses a model that cannot be trained.

        Args:
            batch: A mini-batch.

        Raises:
            ValueError: If there are no trainable variables. See also `Batch.check` and
                `check_replicas`.
        """
        batch.check()
        if not keras_private.is_built(self.model):
            self.compute_output_spec(stateless.symbolic(batch.x))
        if not stateless.weights(self):
            raise ValueError(
                f"The model {self.model.name!r} has no trainable variables: nothing can be "
                "trained. Set layer.trainable = True for some, and compile again."
            )
        check_replicas(self)
        if tf.distribute.get_strategy().num_replicas_in_sync == 1:
            return
        self.once((REPLICAS, batch.signature()), lambda: check_mean(None, self, batch, *REPLICAS))
        if synchronized_layers(self):
            tf.debugging.assert_positive(
                batch.size(),
                "A replica got no example of a mini-batch, and "
                "BatchNormalization(synchronized=True) takes its moments over all. Give batches "
                "of one size, by drop_remainder=True.",
            )

    def _update(self, replica: Replica, gradient: list) -> None:
        """Clips a sum of gradients, and updates the weights."""
        clipping = contextlib.nullcontext()
        # Of several steps or replicas it is the sum of the gradients that is to be clipped.
        clip_norm = self.accumulated_clip_norm()
        if clip_norm is not None and self.sums_gradients():
            clipping = keras_private.clipping(
                self.optimizer, lambda g: clip(g, clip_norm, global_norm(g))
            )
        with clipping:
            replica.apply(self.optimizer, gradient, self.trainable_weights)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Configures the training. The arguments are those of `keras.Model.compile`."""
        super().compile(*args, **kwargs)
        stateless.weights(self)  # Refuses float8.
        self.forget_traces()

    def forget_traces(self) -> None:
        """Forgets traces, and facts established with other options."""
        self._found = {}
        if self.train_function is not None:  # `fit` may be running: it needs another one.
            self.make_train_function(force=True)

    def make_train_function(self, force: bool = False) -> Any:
        """Makes Keras' function of a training step, and the optimizer's variables before it."""
        ready = keras_private.is_built(self.model) and self.trainable_variables
        if ready and self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def epoch_logs(self, logs: Any) -> Any:
        """Returns the metrics that are in the logs of an epoch's last step."""
        # Unless all metrics are in them, Keras takes the last step's logs, a mean of what each
        # replica has seen, however little.
        found = self.get_metrics_result()
        if not isinstance(logs, dict) or not logs.keys() <= found.keys():
            return logs
        return {name: found[name] for name in logs}

    def build_from(self, iterator: Any, data_batch: Any) -> None:
        """Builds as Keras does, and also the parts that would make a step be traced twice."""
        # Keras' own takes the batches of several workers for tensors.
        strategy = self.distribute_strategy
        check_in_scope(self, strategy)
        if iterator is not None and count_processes(strategy) > 1:
            _, _, batches = next(iter(iterator))
            local = strategy.experimental_local_results
            data_batch = tf.nest.map_structure(lambda batch: local(batch)[0], next(batches))
            iterator = None
        super().build_from(iterator, data_batch)
        built, metrics = keras_private.is_built(self.model), keras_private.unbuilt_metrics(self)
        if built and metrics is None:
            return
        batch = keras_private.batch_spec(iterator, data_batch)
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        # Sparse and ragged tensors, and those of unknown rank, are left to the step itself.
        if not all(map(_is_known, keras.tree.flatten((x, y)))):
            return
        outputs = self.output_spec(x)
        if metrics is not None:
            metrics.build(stateless.symbolic(y), outputs)


def _is_known(tensor: Any) -> bool:
    """Returns whether the shape and dtype of a dense tensor are known."""
    if isinstance(tensor, (np.ndarray, tf.Tensor, tf.TensorSpec)):
        return tf.TensorShape(tensor.shape).rank is not None
    return False
