#!/usr/bin/env python3
"""Compares the gradient of the regularizer with its limit, alpha ||g||^2, for several alpha.

The gradient of Equation 6 on a batch of 16 digits, by the finite difference, against the
Hessian-vector product, for a ResNet-8 before and after training, in float32 and float64; as a
Markdown table on stdout. README.md beside this file explains it.
"""

import keras
import numpy as np
import reporting
from absl import app, flags

from fisher_keras import FisherRegularizedModel
from fisher_keras.datasets import load_dataset
from fisher_keras.models import build_model

_ALPHAS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)


def regularizer_gradient(
    classifier: keras.Model, x: np.ndarray, y: np.ndarray, **options: float | str
) -> np.ndarray:
    """Returns the gradient of R_alpha / alpha, all weights in one vector.

    Args:
        classifier: The network.
        x: Images of one sub-batch.
        y: Their classes.
        **options: `alpha` and `gradient` of `FisherRegularizedModel`.
    """
    with_r, without = (
        _flat_gradient(classifier, x, y, beta=beta, **options)
        for beta in (1 / options["alpha"], 0)
    )
    return with_r - without


def compare(classifier: keras.Model, x: np.ndarray, y: np.ndarray) -> dict[float, tuple]:
    """Returns for each alpha the length of the difference, in that of its limit, and their cosine.

    Args:
        classifier: The network.
        x: Images of one sub-batch.
        y: Their classes.
    """
    limit = regularizer_gradient(classifier, x, y, alpha=1.0, gradient="hessian_vector_product")
    figures = {}
    for alpha in _ALPHAS:
        found = regularizer_gradient(classifier, x, y, alpha=alpha, gradient="finite_difference")
        length = np.linalg.norm(found) / np.linalg.norm(limit)
        figures[alpha] = length, found @ limit / length / np.linalg.norm(limit) ** 2
    return figures


def _flat_gradient(
    classifier: keras.Model, x: np.ndarray, y: np.ndarray, **options: float | str
) -> np.ndarray:
    model = FisherRegularizedModel(classifier, num_sub_batches=1, clip_norm=None, **options)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    gradients, _, _ = model.regularized_gradients(x, y)
    return np.concatenate([np.ravel(g) for g in gradients]).astype(np.float64)


def _in_dtype(dtype: str, weights: list[np.ndarray]) -> keras.Model:
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    network = build_model("resnet", 10, (16, 16, 1), depth=8, width=8)
    network.set_weights(weights)
    return network


def _main(_: list[str]) -> None:
    keras.utils.set_random_seed(0)
    data = load_dataset("digits")
    images, labels = data.train_images / 127.5 - 1, data.train_labels
    network = build_model("resnet", 10, (16, 16, 1), depth=8, width=8)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
    weights = {"untrained": network.get_weights()}
    network.fit(images, labels, batch_size=64, epochs=flags.FLAGS.epochs, verbose=0)
    weights[f"after {flags.FLAGS.epochs} epochs"] = network.get_weights()
    rows = [["alpha"]] + [[f"{alpha:g}"] for alpha in _ALPHAS]
    for when, values in weights.items():
        for dtype in ("float32", "float64"):
            figures = compare(_in_dtype(dtype, values), images[:16].astype(dtype), labels[:16])
            rows[0] += [f"{when}, {dtype}: length", "cosine"]
            for row, (length, cosine) in zip(rows[1:], figures.values(), strict=True):
                row += [f"{length:.3g}", f"{cosine:.3f}"]
    print(reporting.markdown(rows))


if __name__ == "__main__":
    flags.DEFINE_integer("epochs", 10, "Of the training.", lower_bound=1)
    app.run(_main)
