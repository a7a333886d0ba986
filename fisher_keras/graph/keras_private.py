"""The private interfaces of Keras and TensorFlow that this package uses, all of them.

Each function says why no public name serves. tests/graph/test_keras_private.py names them all: a
new Keras fails there first.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

# The methods in which a Keras optimizer asks all replicas to synchronize.
_SYNC_POINTS = (
    "_apply_weight_decay",
    "_backend_increment_gradient_accumulators",
    "_backend_update_step",
    "_overwrite_model_variables_with_average_value",
)
if hasattr(keras.optimizers.Optimizer, "_backend_maybe_overwrite_model_variables"):  # From 3.16.
    _SYNC_POINTS = (*_SYNC_POINTS, "_backend_maybe_overwrite_model_variables")


def unwrapped(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer inside a `LossScaleOptimizer`, and any other as it is."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def num_updates(optimizer: keras.optimizers.Optimizer) -> tf.Tensor:
    """Returns the number of gradients that an optimizer has been given, int64 scalar."""
    # `iterations` stands still while gradients accumulate.
    return tf.cast(unwrapped(optimizer)._iterations.value, tf.int64)


def accumulated_steps(optimizer: keras.optimizers.Optimizer) -> int:
    """Returns of how many steps an optimizer adds up the gradients; raises if its parts do."""
    optimizer = unwrapped(optimizer)
    inner = getattr(optimizer, "optimizers", ())  # Of a `MultiOptimizer`.
    if any(one.gradient_accumulation_steps for one in inner):
        raise ValueError(
            "If each of several optimizers accumulates gradients, their sum cannot be clipped as "
            "a whole. Use clip_norm=None, or no gradient_accumulation_steps. Given: "
            f"{type(optimizer).__name__} of {', '.join(type(one).__name__ for one in inner)}."
        )
    return optimizer.gradient_accumulation_steps or 1


@contextlib.contextmanager
def clipping(
    optimizer: keras.optimizers.Optimizer, clip: Callable[[list[tf.Tensor]], list[tf.Tensor]]
) -> Iterator[None]:
    """Lets an optimizer clip where it clips itself: the mean of the gradients it accumulates.

    Args:
        optimizer: An optimizer, maybe in a `LossScaleOptimizer`.
        clip: Takes the gradients and clips them, before the optimizer's own clipping.
    """
    # `global_clipnorm` is a number for good, and excludes the other ways to clip.
    optimizer = unwrapped(optimizer)
    own = type(optimizer)._clip_gradients
    with _replaced(optimizer, _clip_gradients=lambda g: own(optimizer, clip(g))):
        yield


@contextlib.contextmanager
def gradients_already_reduced(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """The context in which an optimizer treats its gradients as already all-reduced.

    Keras adds them up after it has clipped those of each replica, and needs all replicas to
    synchronize to do so and to update, which is impossible in a branch of a graph: where it
    accumulates gradients, or overwrites weights with their means.

    Args:
        optimizer: An optimizer that `check_gradients_already_reduced` lets pass.
    """
    optimizer = unwrapped(optimizer)
    methods = {"_all_reduce_sum_gradients": lambda pairs: pairs}
    if _branches(optimizer):
        # What Keras does with other backends: each replica updates its own copies, all alike.
        for name in _SYNC_POINTS:
            methods[name] = functools.partial(_definitions(optimizer, name)[-1], optimizer)
    with _replaced(optimizer, **methods):
        yield


def check_gradients_already_reduced(optimizer: keras.optimizers.Optimizer) -> None:
    """Raises a ValueError if `gradients_already_reduced` is not for this optimizer."""
    optimizer = unwrapped(optimizer)
    name = type(optimizer).__name__
    if len(_definitions(optimizer, "apply")) > 1:
        raise ValueError(
            f"On several replicas, an optimizer must leave apply() to Keras. Given: {name}."
        )
    if _branches(optimizer) and any(len(_definitions(optimizer, m)) > 2 for m in _SYNC_POINTS):
        raise ValueError(
            "On several replicas, an optimizer with gradient_accumulation_steps or "
            "ema_overwrite_frequency must update as Keras' own most do (SGD, Adam, AdamW...). "
            f"Given: {name}."
        )


def _branches(optimizer: keras.optimizers.Optimizer) -> bool:
    """Returns whether an optimizer updates weights in some steps only."""
    return bool(optimizer.gradient_accumulation_steps or optimizer.ema_overwrite_frequency)


def _definitions(optimizer: keras.optimizers.Optimizer, method: str) -> list[Callable]:
    """Returns the definitions of a method in an optimizer's classes, the most general last."""
    return [vars(c)[method] for c in type(optimizer).__mro__ if method in vars(c)]


@contextlib.contextmanager
def _replaced(optimizer: keras.optimizers.Optimizer, **methods: Callable) -> Iterator[None]:
    """The context in which an optimizer has other methods."""
    for name, method in methods.items():
        setattr(optimizer, name, method)
    try:
        yield
    finally:
        # Replicas synchronize inside: the first to leave does so for all.
        for name in methods.keys() & vars(optimizer).keys():
            delattr(optimizer, name)


def batch_spec(iterator: Any, data_batch: Any) -> Any:
    """Returns the element spec of the coming batches, without taking one.

    Args:
        iterator: The batches, as Keras' trainer has them, or None.
        data_batch: A batch, if there is no iterator.
    """
    return data_batch if iterator is None else iterator._distributed_dataset.element_spec


def unbuilt_metrics(model: keras.Model) -> Any:
    """Returns a compiled model's metrics if Keras knows no more than their names, or else None."""
    metrics = model._compile_metrics
    return None if metrics is None or metrics.built else metrics


def metrics_made_by(model: keras.Model) -> list[keras.metrics.Metric]:
    """Returns the metrics that a model has made for itself, without those of `compile`."""
    # `Model.metrics` mixes them, and leaves out both of a model that is a layer of another one.
    made = model._metrics
    if type(model).metrics is keras.Model.metrics:
        return list(made)
    compiled = {id(m) for m in model._get_own_metrics()} - {id(m) for m in made}
    return [metric for metric in model.metrics if id(metric) not in compiled]


def is_built(model: keras.Model) -> bool:
    """Returns whether a model and all layers in it have their variables.

    A model that builds some of its layers in `build`, and the others when it is first called, is
    `built` in between.
    """
    return all(layer.built for layer in all_layers(model))


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """Returns a model and all layers in it, at any depth."""
    # `Model.layers` has the first level alone, and a layer that holds layers has no such list.
    return model._flatten_layers()


def penalties_of_call(model: keras.Model) -> list[tf.Tensor]:
    """Returns the penalties that layers have added in a call of a model, in any scope."""
    # `Layer.losses` would compute those of weights, too.
    return [penalty for layer in all_layers(model) for penalty in layer._get_own_losses()]


def computes(layer: keras.Layer) -> bool:
    """Returns whether a layer computes itself, unlike inputs and models that only hold layers."""
    # Those are `Sequential` and functional models, unless a subclass has a call of its own.
    contains = isinstance(layer, keras.Model) and type(layer).call.__module__.startswith("keras.")
    return not (contains or isinstance(layer, keras.layers.InputLayer))


def loss_arguments(loss: Any) -> dict[str, Any]:
    """Returns what one of Keras' losses gives its function; empty for other losses."""
    # Some of them, such as the axis of a sparse cross-entropy, are no attributes, nor in configs.
    return loss._fn_kwargs if hasattr(loss, "_fn_kwargs") else {}


def output_layer(model: keras.Model) -> keras.Operation:
    """Returns the layer or operation that gives the output of a functional model."""
    # No public name tells the operation of a tensor: `Operation.output` tells the tensor of one,
    # but not of one that is used twice. And the last of `Model.layers` need not be the output's.
    return model.outputs[0]._keras_history.operation


def mask_of(outputs: tf.Tensor) -> tf.Tensor | None:
    """Returns the mask of a model's outputs, by which Keras' losses leave examples out."""
    return outputs._keras_mask if hasattr(outputs, "_keras_mask") else None


def seed_states(model: keras.Model) -> list[keras.Variable]:
    """Returns the states of a model's seed generators, in its own order."""
    # Keras lists them among `non_trainable_variables`, and nothing but their name sets them apart.
    return [v for v in model.non_trainable_variables if v.name == "seed_generator_state"]


def moves_seeds(scope: keras.StatelessScope, model: keras.Model) -> bool:
    """Returns whether a call of a model moved seeds, its own or that which all layers share.

    Args:
        scope: The scope of the call.
        model: The model.
    """
    seeds = {id(v) for v in seed_states(model)}
    return bool(assigned_others(scope, [v for v in model.variables if id(v) not in seeds]))


def assigned_others(scope: keras.StatelessScope, variables: list[keras.Variable]) -> set[int]:
    """Returns the ids of variables that were assigned in a scope, but for the given ones."""
    # What a scope has been assigned has no public name but that of each variable in turn.
    return scope.state_mapping.keys() - {id(variable) for variable in variables}


def with_own_seeds(
    model: keras.Model, state: list[tf.Tensor], index: tf.Tensor
) -> list[tf.Tensor]:
    """Gives a model's seed generators other seeds, which depend on an index alone.

    Args:
        model: A built Keras model.
        state: Values of its `non_trainable_variables`.
        index: 0 or greater, scalar; 0 leaves the seeds as they are.

    Returns:
        The state with the seeds changed.
    """
    seeds = {id(v) for v in seed_states(model)}
    if not seeds:
        return state
    # That a state is (seed, number of draws) is Keras' own affair, but a `SeedGenerator` can only
    # be made with a seed, not be given one later. The shifts are Weyl's sequence: far apart from
    # the small steps between the seeds of different layers.
    shift = tf.cast(tf.cast(index, tf.int64) * 0x9E3779B1 % 2**32, tf.uint32)
    return [
        value + tf.cast(tf.stack([shift, 0]), value.dtype) if id(variable) in seeds else value
        for variable, value in zip(model.non_trainable_variables, state, strict=True)
    ]


class TrainerHooks(keras.Model):
    """A Keras model with public names for two private methods of Keras' trainer.

    Subclasses override `build_from` and `epoch_logs`, and call them by `super()` for Keras' own.
    """

    def build_from(self, iterator: Any, data_batch: Any) -> None:
        """Builds what is not built before the first batch is trained on or evaluated.

        Args:
            iterator: The batches, as Keras' trainer has them, or None.
            data_batch: A batch, if there is no iterator.
        """
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def epoch_logs(self, logs: Any) -> Any:
        """Returns the logs of an epoch, given those of its last step."""
        return super()._get_metrics_result_or_logs(logs)

    # No public method runs between the first batch's arrival and the first trace, where variables
    # are still made outside of the step, nor between the last step and the callbacks.

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        self.build_from(iterator, data_batch)

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        return self.epoch_logs(logs)


def infer_no_more_shapes(call: tf.Operation) -> None:
    """Lets a graph with a call be called without inferring all shapes inside of the call again.

    They are known by then, and a deep network has thousands of them. No public function gives an
    operation an attribute. Without this one, traces only take a tenth longer.

    Args:
        call: The call of a traced function.
    """
    with contextlib.suppress(AttributeError):
        call._set_attr("_disable_call_shape_inference", tf.compat.v1.AttrValue(b=True))
