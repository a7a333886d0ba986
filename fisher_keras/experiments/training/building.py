"""The networks of a training: the plain classifier, and the model that trains it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.experiments.names import STRATEGIES
from fisher_keras.experiments.training.arch import build_network, recipe_of
from fisher_keras.experiments.training.config import TrainingConfig
from fisher_keras.experiments.training.data import TrainingData
from fisher_keras.experiments.training.option_checks import REGULARIZER_OPTIONS, phase_factors
from fisher_keras.models import build_optimizer, learning_rate_falls
from fisher_keras.regularizer import FisherRegularizedModel, SharpnessAwareModel

# From a classifier to the model whose `fit` trains it, for methods that need another one.
WRAPPERS: Mapping[str, Callable[..., keras.Model]] = {
    # By beta=0 alone all steps would be plain ones.
    "ghost": functools.partial(FisherRegularizedModel, beta=0.0, share_gradients=True),
    "fisher": FisherRegularizedModel,
    "sam": SharpnessAwareModel,
}


def make_repeatable(seed: int) -> None:
    """Makes what follows in this process the same each time, and float32 exact on a GPU.

    It must be called before a model is compiled, which is when Keras decides about XLA.

    Args:
        seed: Of everything that is random.
    """
    tf.config.experimental.enable_op_determinism()
    # With its 10 bits a GPU's finite difference is noise, and no metric is exact.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    keras.utils.set_random_seed(seed)


def build_models(config: TrainingConfig, data: TrainingData) -> tuple[keras.Model, keras.Model]:
    """Builds the networks of a training.

    Args:
        config: The configuration, as `resolve` returns it.
        data: Its data.

    Returns:
        The plain classifier, and the compiled model that trains it.
    """
    plain_model = build_network(config, data.dataset.num_classes, data.dataset.image_shape)
    optimizer = build_optimizer(recipe_of(config.arch), config.learning_rate)
    options = _options(config, data.steps_per_epoch)
    model = trained_by(config.method, plain_model, optimizer, config.clip_norm, **options)
    if model is plain_model and config.strategy != STRATEGIES[0]:
        # Keras' own model clips the gradients of each replica, and has no steps on many workers.
        model = FisherRegularizedModel(plain_model, beta=0.0, clip_norm=None, seed=config.seed)
    model.build(plain_model.input_shape)  # A backup can be restored into a built model only.
    if config.label_smoothing > 0:
        loss = keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=config.label_smoothing
        )
        cross_entropy = keras.metrics.CategoricalCrossentropy
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        cross_entropy = keras.metrics.SparseCategoricalCrossentropy
    model.compile(
        optimizer=optimizer,
        loss=loss,
        metrics=["accuracy", cross_entropy(name="cross_entropy", from_logits=True)],
        jit_compile=config.jit_compile,
    )
    return plain_model, model


def trained_by(
    method: str,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    clip_norm: float | None,
    **options: Any,
) -> keras.Model:
    """Returns the model whose `fit` trains a classifier by a method.

    Args:
        method: One of `config.METHODS`.
        model: The classifier.
        optimizer: What it is to be compiled with.
        clip_norm: Norm that gradients are clipped to; 0 or None for no clipping.
        **options: Of the class in `WRAPPERS`.
    """
    if method in ("ghost", "fisher"):  # These clip themselves.
        options["clip_norm"] = clip_norm or None
    elif clip_norm:
        optimizer.global_clipnorm = clip_norm
    return WRAPPERS[method](model, **options) if method in WRAPPERS else model


def _options(config: TrainingConfig, steps_per_epoch: int) -> dict[str, Any]:
    """Returns the options of the model that trains by the method of the configuration."""
    if config.method == "sam":
        sub_batches = config.sub_batches or 1
        return {"rho": config.rho, "adaptive": config.adaptive, "sub_batches": sub_batches}
    if config.method == "ghost":
        return {"num_sub_batches": config.num_sub_batches, "seed": config.seed}
    if config.method != "fisher":
        return {}
    options = {name: getattr(config, name) for name in REGULARIZER_OPTIONS if name != "clip_norm"}
    # What is not given has the model's default, which stands there alone.
    options = {name: value for name, value in options.items() if value is not None}
    if config.beta_phases is not None:
        epochs = config.schedule_epochs or config.epochs
        falls = learning_rate_falls(recipe_of(config.arch), epochs)
        weight = "beta" if config.strength is None else "strength"
        options[weight] = keras.optimizers.schedules.PiecewiseConstantDecay(
            [epoch * steps_per_epoch - 1 for epoch in falls],  # The last step of each phase.
            [options[weight] * factor for factor in phase_factors(config.beta_phases)],
        )
    return options | {"seed": config.seed}
