#!/usr/bin/env python3
"""Measures the Gram matrix with its log-determinant against one gradient of the same images.

For each network: time and peak memory of `loss_gradient_gram`, of a plain `tf.vectorized_map`
and, for ResNet-20 and where they are installed, of PyTorch's `torch.func` and BackPACK; as a
Markdown table on stdout and as JSON. README.md beside this file explains the columns.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import keras
import measuring
import numpy as np
import reporting
import tensorflow as tf
from absl import app, flags

from fisher_keras.classifier import Classifier
from fisher_keras.fisher import loss_gradient_gram
from fisher_keras.metrics import log_determinant
from fisher_keras.models import build_model

_NUM_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that is evaluated.

    Attributes:
        arch: One of `fisher_keras.models.ARCHITECTURES`.
        width: Its width; None for the architecture's own.
        depth: Its depth, likewise.
        only_memory: Measure the memory of the Gram matrix and of the gradient, and nothing else.
    """

    arch: str
    width: float | None = None
    depth: int | None = None
    only_memory: bool = False


NETWORKS = {
    "resnet": Network("resnet"),
    "wide_resnet": Network("wide_resnet"),
    "densenet": Network("densenet"),
    "cnn": Network("cnn"),
    # 36.5 million parameters: a Jacobian of 100 rows has 14 GB, and twice as many in float64.
    "wrn_28_10": Network("wide_resnet", width=10, only_memory=True),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of the measurement.

    Attributes:
        num_samples: N'.
        rounds: How often each time is taken.
    """

    num_samples: int
    rounds: int


def batch_gradient(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> Callable:
    """Makes the action that takes the gradient of the mean loss, in inference mode."""
    x, y = tf.constant(images), tf.constant(labels)

    @tf.function(autograph=False)
    def gradient(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(_losses(model, x, y))
        return tape.gradient(loss, model.trainable_variables)

    return lambda: gradient(x, y)[0].numpy()


def gram_log_determinant(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> Callable:
    """Makes the action that takes ln det J J^T with `loss_gradient_gram`."""
    classifier = Classifier(model)
    return lambda: log_determinant(loss_gradient_gram(classifier, images, labels))


def vectorized_map_log_determinant(
    model: keras.Model, images: np.ndarray, labels: np.ndarray
) -> Callable:
    """Makes the action that takes ln det J J^T with one float64 product of the whole J."""
    x, y = tf.constant(images), tf.constant(labels)

    def gradients_of_one(example):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(_losses(model, example[0][None], example[1][None]))
        return tape.gradient(loss, model.trainable_variables)

    @tf.function(autograph=False)
    def evaluate(x, y):
        gradients = tf.vectorized_map(gradients_of_one, (x, y))
        rows = [tf.reshape(g, [len(labels), -1]) for g in gradients]
        jacobian = tf.cast(tf.concat(rows, axis=1), tf.float64)
        return tf.linalg.slogdet(tf.matmul(jacobian, jacobian, transpose_b=True))[1]

    return lambda: float(evaluate(x, y))


_GRADIENT, _GRAM = "batch gradient", "Gram matrix"
# Each makes its action from a model, images and labels.
VARIANTS: dict[str, Callable[[keras.Model, np.ndarray, np.ndarray], Callable]] = {
    _GRADIENT: batch_gradient,
    _GRAM: gram_log_determinant,
    "vectorized_map": vectorized_map_log_determinant,
}


def measure(name: str, settings: Settings) -> dict[str, dict]:
    """Measures all variants on one network.

    Args:
        name: Key of `NETWORKS`.
        settings: What is measured.

    Returns:
        For each variant its figures, as `measuring.compared_with` has them. PyTorch's are
        compared with PyTorch's batch gradient.
    """
    network = NETWORKS[name]
    variants = [_GRADIENT, _GRAM] if network.only_memory else list(VARIANTS)
    times = {} if network.only_memory else _times(name, variants, settings)
    memory = {}
    for variant in variants:
        measuring.progress(f"{name}: memory, {variant}")
        memory[variant] = measuring.in_fresh_process(_peak_memory, variant, name, settings)
    results = measuring.compared_with(_GRADIENT, times, memory)
    if name == "resnet" and importlib.util.find_spec("torch"):
        results |= _pytorch(settings)
    return results


def table(results: dict[str, dict]) -> str:
    """Formats what `measure` returned as a Markdown table."""
    columns = {
        "time (s)": ("time_s", ".3f"),
        "/ batch gradient": ("time_s_ratio", ".2f"),
        "peak (MiB)": ("peak_mib", ".0f"),
        "above batch gradient (MiB)": ("peak_mib_above", "+.0f"),
    }
    rows = [["", *columns]]
    for variant, figures in results.items():
        cells = [
            format(figures[name], form) if name in figures else ""
            for name, form in columns.values()
        ]
        rows.append([variant, *cells])
    return reporting.markdown(rows)


def run(names: list[str], settings: Settings, output: str | os.PathLike | None = None) -> None:
    """Measures, prints a table for each network, and writes JSON after each.

    Args:
        names: Keys of `NETWORKS`.
        settings: What is measured.
        output: The JSON file to write, or None.
    """
    headline = f"N' = {settings.num_samples}, {settings.rounds} rounds"
    reporting.run(headline, names, settings, lambda name: measure(name, settings), table, output)


def _losses(model: keras.Model, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    logits = model(x, training=False)
    return keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)


def start(variant: str | Callable, name: str, settings: Settings) -> Callable:
    """Makes a network, the same for all variants, and the action of one.

    Args:
        variant: Key of `VARIANTS`, or what makes an action as these do.
        name: Key of `NETWORKS`.
        settings: What is measured.
    """
    keras.utils.set_random_seed(0)
    network = NETWORKS[name]
    model = build_model(network.arch, _NUM_CLASSES, depth=network.depth, width=network.width)
    random = np.random.default_rng(0)
    images = random.normal(size=(settings.num_samples, 32, 32, 3)).astype(np.float32)
    labels = np.arange(settings.num_samples, dtype=np.int32) % _NUM_CLASSES
    make = variant if callable(variant) else VARIANTS[variant]
    return make(model, images, labels)


def _times(name: str, variants: list[str], settings: Settings) -> dict[str, list[float]]:
    actions = {variant: start(variant, name, settings) for variant in variants}
    for variant, action in actions.items():
        measuring.progress(f"{name}: first calls, {variant}")
        action()
        action()
    return measuring.interleaved(actions, settings.rounds, name)


def _peak_memory(variant: str, name: str, settings: Settings) -> float:
    """Returns MiB, in a process of its own."""
    return measuring.peak_memory(lambda: start(variant, name, settings), warm_calls=1)[0]


def _pytorch(settings: Settings) -> dict[str, dict]:
    """Measures in a process without TensorFlow, as Triton's library does not load beside it."""
    script = pathlib.Path(__file__).with_name("torch_resnet.py")
    command = [sys.executable, script, str(settings.num_samples), str(settings.rounds)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _define_flags() -> None:
    flags.DEFINE_list("network", list(NETWORKS), "Networks, separated by commas.")
    flags.DEFINE_integer("num_samples", 100, "N'.", lower_bound=1)
    flags.DEFINE_integer("rounds", 10, "Rounds of timed calls.", lower_bound=1)
    flags.DEFINE_string("output", None, "JSON file to write.")
    flags.register_validator(
        "network",
        lambda names: names and set(names) <= set(NETWORKS),
        f"must be some of {', '.join(NETWORKS)}.",
    )


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    settings = Settings(values.num_samples, values.rounds)
    run(values.network, settings, values.output)


if __name__ == "__main__":
    _define_flags()
    app.run(_main)
