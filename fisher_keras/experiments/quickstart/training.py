"""Training and evaluation of one network of the quickstart."""

import dataclasses
import functools
import pathlib
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier import Classifier
from fisher_keras.experiments.runs.store import Run
from fisher_keras.experiments.training.building import trained_by
from fisher_keras.extras import require
from fisher_keras.metrics import SingularGramWarning, evaluate_local_minimum
from fisher_keras.metrics.trials import json_ready

STOPS = (8, 15, 30, 60, 300)  # Steps after which plain training might have been stopped.
VALIDATION_SIZE = 397
_NUM_SUB_BATCHES = 10  # M.
_CLIP_NORM = 1.0  # tau, of all methods.
_LEARNING_RATE = 0.05  # The first; it falls to 0 as a cosine.
LABEL_SMOOTHING = 0.1  # Without it no minimum exists (Section 4).


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images and labels of one seed.

    Attributes:
        x: Training images, float32, shape (N, 8, 8, 1).
        y: Their labels, int32, shape (N,); the first ones are random.
        smoothed: The same labels as distributions, float32, shape (N, 10).
        validation: Images and their right labels, the same for all seeds.
        test: All other images and their right labels.
    """

    x: np.ndarray
    y: np.ndarray
    smoothed: np.ndarray
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def draw_digits(train_size: int, wrong_labels: int, seed: int) -> Digits:
    """Draws training images at random and gives random labels to some of them.

    Args:
        train_size: The number of training images.
        wrong_labels: How many of them get labels drawn uniformly from all classes.
        seed: Decides both; another number of wrong labels leaves the images the same.

    Returns:
        The data.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    require("sklearn")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[..., np.newaxis] / 16).astype(np.float32)
    labels = digits.target.astype(np.int32)
    # The validation images chose the strengths: no test image may be among them.
    order = np.random.default_rng(0).permutation(len(images))
    rng = np.random.default_rng([seed, 1])
    # Drawn before the labels: so the images do not depend on how many labels are random.
    rows = rng.permutation(order[VALIDATION_SIZE:])
    validation, train, test = order[:VALIDATION_SIZE], rows[:train_size], rows[train_size:]
    y = labels[train]
    # The images are in random order, so that the first ones are a random choice.
    y[:wrong_labels] = rng.integers(0, 10, wrong_labels)
    return Digits(
        images[train],
        y,
        (1 - LABEL_SMOOTHING) * np.eye(10, dtype=np.float32)[y] + LABEL_SMOOTHING / 10,
        (images[validation], labels[validation]),
        (images[test], labels[test]),
    )


def train_network(run: Run, directory: pathlib.Path) -> dict[str, Any]:
    """Trains the network of a run and evaluates it.

    Args:
        run: Made by `quickstart_runs`.
        directory: Of the run's files; the network is written to `network.keras` there.

    Returns:
        The result for the store: `test_error` after the last step, in percent; `stops`, for each
        of `STOPS` the validation and the test error; `wrong_labels_fitted`, the percentage of the
        random labels that the network gives back, None where there are none; `gamma_hat`,
        `log_det_margins` (ln det Xi) and `excess_loss`, the training loss over the least that the
        labels allow.
    """
    settings = run.config
    tf.config.experimental.enable_tensor_float_32_execution(False)  # It has 10 bits, on a GPU.
    digits = draw_digits(settings["train_size"], settings["wrong_labels"], run.seed)
    # The networks of one process would add up in memory. Collecting garbage here takes longer than
    # a quarter of a training; Python does it often enough.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(run.seed)
    network = build_network()
    model = _compiled(network, run)
    # One epoch of many steps: between two epochs Keras needs longer than a step takes.
    data = (
        tf.data.Dataset.from_tensors((digits.x, digits.smoothed)).cache().repeat(settings["steps"])
    )
    errors = _ErrorsAtStops(network, digits)
    model.fit(data, verbose=0, shuffle=False, callbacks=[errors])
    network.save(directory / "network.keras")
    num_wrong = settings["wrong_labels"]
    fitted = classes(network, digits.x)[:num_wrong] == digits.y[:num_wrong]
    judge = _judge()
    judge.model.set_weights(network.get_weights())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularGramWarning)
        report = evaluate_local_minimum(
            judge,
            (digits.x, digits.smoothed),
            settings["num_samples"],
            settings["num_trials"],
            metrics=("log_determinant", "log_determinant_margins"),
            progress=False,
        )
    return json_ready(
        {
            "test_error": error_percent(network, *digits.test),
            "stops": errors.found,
            "wrong_labels_fitted": 100 * float(fitted.mean()) if num_wrong else None,
            "gamma_hat": report.metrics["log_determinant"].mean,
            "log_det_margins": report.metrics["log_determinant_margins"].mean,
            "excess_loss": report.train.excess_loss,
        }
    )


def build_network() -> keras.Model:
    """Returns a small CNN for images of 8 x 8 pixels, without batch normalization."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def classes(network: keras.Model, x: np.ndarray) -> np.ndarray:
    """Returns the predicted class of each image."""
    return network(x).numpy().argmax(axis=1)


def error_percent(network: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """Returns the percentage of images whose class is not predicted."""
    return 100 * float(np.mean(classes(network, x) != y))


@functools.cache
def _judge() -> Classifier:
    """Returns the classifier that is evaluated with the weights of each network, traced once."""
    return Classifier(build_network())


def _compiled(network: keras.Model, run: Run) -> keras.Model:
    """Returns the model whose `fit` trains the network by the run's method."""
    strength = run.config["strength"]
    options = {
        "plain": {},
        "sam": {"rho": strength},
        "fisher": {"beta": strength, "num_sub_batches": _NUM_SUB_BATCHES, "seed": run.seed},
    }
    method = run.config["method"]
    schedule = keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, run.config["steps"])
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9)
    model = trained_by(method, network, optimizer, _CLIP_NORM, **options[method])
    model.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True))
    return model


class _ErrorsAtStops(keras.callbacks.Callback):
    """Collects validation and test errors at the steps where training might be stopped."""

    def __init__(self, network: keras.Model, digits: Digits) -> None:
        super().__init__()
        self._network = network
        self._digits = digits
        self.found: dict[str, dict[str, float]] = {}

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        # `fit` has one epoch only: the batches of it count the steps of the whole training.
        if batch + 1 in STOPS:
            self.found[str(batch + 1)] = {
                "validation": error_percent(self._network, *self._digits.validation),
                "test": error_percent(self._network, *self._digits.test),
            }
