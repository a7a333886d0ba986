#!/usr/bin/env python3
"""Compares the gradient of the regularizer with H g, for several steps, sides of w and dtypes.

On a sub-batch of 16 digits, for a ResNet-8 of ReLUs and one of GELUs, at three moments of a
training: cosine and ratio of lengths of the finite difference, in each dtype, and of the
Hessian-vector product in float64. As Markdown tables on stdout. README.md beside this file
explains them.
"""

import functools
import itertools
from collections.abc import Callable

import keras
import numpy as np
import reporting
import tensorflow as tf
from absl import app, flags

from fisher_keras import FisherRegularizedModel
from fisher_keras.datasets import load_dataset
from fisher_keras.models import build_model
from fisher_keras.regularizer.algorithm import (
    DIRECTIONS,
    finite_difference,
    hessian_vector_product,
)
from fisher_keras.regularizer.batches import Batch

ALPHA = 1e-4
STEP_LENGTHS = (None, 0.01, 0.03, 0.1, 0.3)
POLICIES = ("float64", "float32", "mixed_bfloat16", "mixed_float16")
MOMENTS = (0, 200, 1000)
_SIZE = 16  # Of the sub-batch.
Differences = Callable[[list[np.ndarray]], dict[tuple[str, float | None], np.ndarray]]


def network(activation: str) -> keras.Model:
    """Returns a ResNet-8 in Keras' present dtype policy.

    Args:
        activation: "relu" or another of Keras', instead of all ReLUs.
    """

    def layer(one: keras.Layer) -> keras.Layer:
        config = one.get_config()
        if isinstance(one, keras.layers.ReLU):
            return keras.layers.Activation(activation, name=one.name)
        config.pop("dtype", None)
        return type(one).from_config(config)

    model = build_model("resnet", 10, (16, 16, 1), depth=8, width=8)
    return keras.models.clone_model(model, clone_function=layer)


def differences(activation: str, policy: str, x: np.ndarray, y: np.ndarray) -> Differences:
    """Returns the function of a network's weights that computes gradients of R_alpha / alpha.

    It is traced once for all weights, steps and directions. Its results are by direction and step
    length; with "float64" there is also H g itself, of the direction "product".

    Args:
        activation: Of the network.
        policy: Keras' dtype policy of the network.
        x: Images of one sub-batch.
        y: Their classes.
    """
    floatx = "float64" if policy == "float64" else "float32"
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
    classifier = network(activation)
    model = FisherRegularizedModel(classifier, beta=0.0, num_sub_batches=1)
    optimizer = keras.optimizers.SGD()
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = model.losses_of(Batch(tf.constant(x.astype(floatx)), tf.constant(y)))
    sub_batch = losses.sub_batch(tf.constant(0), tf.range(len(x)), losses.state)
    loss = tf.function(functools.partial(losses.hard_label_loss, sub_batch), autograph=False)
    product = tf.function(
        lambda weights: hessian_vector_product(
            functools.partial(losses.hard_label_loss, sub_batch), weights, ALPHA
        ),
        autograph=False,
    )

    def at(values: list[np.ndarray]) -> dict[tuple[str, float | None], np.ndarray]:
        classifier.set_weights(values)
        weights = [tf.convert_to_tensor(v) for v in classifier.trainable_variables]
        here = loss(weights)
        found = {
            (direction, length): finite_difference(loss, weights, ALPHA, here, length, direction)
            for direction in DIRECTIONS
            for length in STEP_LENGTHS
        }
        if policy == "float64":
            found["product", None] = product(weights)
        return {
            key: np.concatenate([np.ravel(g) for g in one.gradient]).astype(np.float64) / ALPHA
            for key, one in found.items()
        }

    return at


def table(found: dict[str, dict[tuple[str, float | None], np.ndarray]]) -> list[list[str]]:
    """Returns rows of cells: for each step and direction, cosine and length in each dtype.

    Args:
        found: By dtype policy, results of `differences`.
    """
    limit = found["float64"]["product", None]
    rows = [["step", "direction", *POLICIES]]
    for length in STEP_LENGTHS:
        for direction in DIRECTIONS:
            row = ["alpha g" if length is None else f"{length:g}", direction]
            for policy in POLICIES:
                one = found[policy][direction, length]
                ratio = np.linalg.norm(one) / np.linalg.norm(limit)
                cosine = one @ limit / np.linalg.norm(one) / np.linalg.norm(limit)
                row.append(f"{cosine:.3f}, {ratio:.3g}")
            rows.append(row)
    return rows


def _main(_: list[str]) -> None:
    data = load_dataset("digits")
    images, labels = data.train_images / 127.5 - 1, data.train_labels
    batches = tf.data.Dataset.from_tensor_slices((images.astype("float32"), labels))
    batches = batches.shuffle(len(labels), seed=0).repeat().batch(64)
    for activation in flags.FLAGS.activation:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
        keras.utils.set_random_seed(0)
        trained = network(activation)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trained.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
        weights = {0: trained.get_weights()}
        for before, moment in itertools.pairwise(MOMENTS):
            trained.fit(batches, steps_per_epoch=moment - before, verbose=0, shuffle=False)
            weights[moment] = trained.get_weights()
        at = {
            policy: differences(activation, policy, images[:_SIZE], labels[:_SIZE])
            for policy in POLICIES
        }
        for moment in MOMENTS:
            rows = table({policy: at[policy](weights[moment]) for policy in POLICIES})
            print(f"\n{activation}, after {moment} steps:\n")
            print(reporting.markdown(rows), flush=True)


if __name__ == "__main__":
    flags.DEFINE_list("activation", ["relu", "gelu"], "Of the networks.")
    app.run(_main)
