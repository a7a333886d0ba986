"""How each network is trained in its own paper, as data, and the regularizer's settings for it."""

import dataclasses
import json
import math
import os
import pathlib
from typing import Any

import keras

from fisher_keras.arguments import real_number, whole_number
from fisher_keras.atomic import replacing
from fisher_keras.models import ARCHITECTURES, cnn, densenet, resnet, wide_resnet

# Names a file that is read and written in place of the package's own table.
SETTINGS_VARIABLE = "FISHER_KERAS_REGULARIZER_SETTINGS"
_PACKAGE_SETTINGS = pathlib.Path(__file__).with_name("regularizer_settings.json")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training recipe.

    Attributes:
        arch: the architecture, one of `fisher_keras.models.ARCHITECTURES`.
        optimizer: name of a Keras optimizer.
        momentum: of the optimizer.
        nesterov: whether the momentum is Nesterov's.
        learning_rate: the initial learning rate.
        schedule: pairs (epoch, factor) by rising epoch: after so many epochs of `epochs` the
            learning rate is multiplied by the factor.
        epochs: passes over the training images.
        batch_size: images a step, |B|.
        l2_penalty: coefficient of the sum of squares of the weights; what
            `fisher_keras.models.build_model` applies by default.
        augmentation: the scheme's name in the paper's Section 7.1.
        initialization: of the convolutions; what `fisher_keras.models.build_model` applies.
        source: where the recipe is from.
    """

    arch: str
    optimizer: str
    momentum: float
    nesterov: bool
    learning_rate: float
    schedule: tuple[tuple[int, float], ...]
    epochs: int
    batch_size: int
    l2_penalty: float
    augmentation: str
    initialization: str
    source: str


RECIPES = {
    # "We initialize the weights according to the scheme in He et al. (2016a) and apply l2
    # regularization of a coefficient 0.0001. [...] stochastic gradient descent with Nesterov
    # momentum set to 0.9 and a batch size of 128. We train 200 epochs in total with the learning
    # rate initially set to 0.01 and then divided by 10 at epoch 100 and 150."
    "cnn": Recipe(
        arch="cnn",
        optimizer="SGD",
        momentum=0.9,
        nesterov=True,
        learning_rate=0.01,
        schedule=((100, 0.1), (150, 0.1)),
        epochs=200,
        batch_size=128,
        l2_penalty=cnn.L2_PENALTY,
        augmentation="4-crop-f",
        initialization="He normal, fan-in",
        source="Information-Theoretic Local Minima Characterization and Regularization, "
        "Appendix E",
    ),
    # Weight decay 1e-4 and momentum 0.9 (not Nesterov's) as in their Section 3.4, batches of 128,
    # learning rate 0.1, divided by 10 at 32k and 48k of 64k iterations: at 391 iterations an epoch
    # epochs 82 and 123 of 164. Their warm-up is for depth 110 alone.
    "resnet": Recipe(
        arch="resnet",
        optimizer="SGD",
        momentum=0.9,
        nesterov=False,
        learning_rate=0.1,
        schedule=((82, 0.1), (123, 0.1)),
        epochs=164,
        batch_size=128,
        l2_penalty=resnet.L2_PENALTY,
        augmentation="4-crop-f",
        initialization="He normal, fan-out",
        source="He et al., Deep Residual Learning for Image Recognition, CVPR 2016, Section 4.2",
    ),
    # Nesterov momentum 0.9, weight decay 5e-4, batches of 128, learning rate 0.1, multiplied by
    # 0.2 at 60, 120 and 160 of 200 epochs. Their crops fill the 4 padded pixels with reflections.
    "wide_resnet": Recipe(
        arch="wide_resnet",
        optimizer="SGD",
        momentum=0.9,
        nesterov=True,
        learning_rate=0.1,
        schedule=((60, 0.2), (120, 0.2), (160, 0.2)),
        epochs=200,
        batch_size=128,
        l2_penalty=wide_resnet.L2_PENALTY,
        augmentation="4-crop-f",
        initialization="He normal, fan-out",
        source="Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, Section 3",
    ),
    # Nesterov momentum 0.9 without dampening, weight decay 1e-4, batches of 64, learning rate 0.1,
    # divided by 10 at 50% and 75% of 300 epochs; no dropout with augmentation.
    "densenet": Recipe(
        arch="densenet",
        optimizer="SGD",
        momentum=0.9,
        nesterov=True,
        learning_rate=0.1,
        schedule=((150, 0.1), (225, 0.1)),
        epochs=300,
        batch_size=64,
        l2_penalty=densenet.L2_PENALTY,
        augmentation="4-crop-f",
        initialization="He normal, fan-out",
        source="Huang et al., Densely Connected Convolutional Networks, CVPR 2017, Section 4.2",
    ),
}


def learning_rate_at(
    recipe: Recipe, epoch: int, epochs: int | None = None, learning_rate: float | None = None
) -> float:
    """Returns the learning rate of one epoch, for `keras.callbacks.LearningRateScheduler`.

    Args:
        recipe: the recipe whose schedule applies.
        epoch: the epoch, counted from 0.
        epochs: length of the training, if not the recipe's: the schedule's epochs are scaled in
            proportion.
        learning_rate: the initial learning rate, if not the recipe's.

    Returns:
        The learning rate.

    Raises:
        ValueError: if epoch is negative, or epochs or learning_rate is not positive.
    """
    epochs = recipe.epochs if epochs is None else epochs
    epoch, epochs = whole_number("epoch", epoch, 0), whole_number("epochs", epochs, 1)
    # In whole numbers: a quotient of floats could miss the boundary.
    passed = [
        factor for start, factor in recipe.schedule if epoch * recipe.epochs >= start * epochs
    ]
    return math.prod(passed, start=_initial_learning_rate(recipe, learning_rate))


def build_optimizer(
    recipe: Recipe, learning_rate: float | None = None
) -> keras.optimizers.Optimizer:
    """Builds the recipe's optimizer. Weight decay is not in it, but in the model's L2 penalties.

    Args:
        recipe: the recipe.
        learning_rate: the initial learning rate, if not the recipe's.

    Returns:
        A new Keras optimizer.

    Raises:
        ValueError: if learning_rate is not positive.
    """
    config = {
        "learning_rate": _initial_learning_rate(recipe, learning_rate),
        "momentum": recipe.momentum,
        "nesterov": recipe.nesterov,
    }
    return keras.optimizers.get({"class_name": recipe.optimizer, "config": config})


def _initial_learning_rate(recipe: Recipe, learning_rate: float | None) -> float:
    """Returns the learning rate given, or the recipe's."""
    if learning_rate is None:
        return recipe.learning_rate
    return real_number("learning_rate", learning_rate, above=0)


@dataclasses.dataclass(frozen=True)
class RegularizerSettings:
    """The hyper-parameters of Algorithm 1; the defaults are `FisherRegularizedModel`'s.

    Attributes:
        alpha: length of the step along a sub-batch's gradient, alpha.
        beta: strength of the regularizer, beta.
        num_sub_batches: sub-batches of a batch, M.
        clip_norm: largest global norm of the gradient, tau; None for no clipping.
    """

    alpha: float = 1e-4
    beta: float = 10.0
    num_sub_batches: int = 8
    clip_norm: float | None = 10.0


def regularizer_settings(arch: str, dataset: str) -> RegularizerSettings:
    """Returns the regularizer's hyper-parameters for a network on a dataset.

    They are read from `settings_file()`, where `tuned` says whether an entry was chosen on a
    validation split (Section 7.2), and `tuning` how, or it still holds the defaults.

    Args:
        arch: the architecture, one of `fisher_keras.models.ARCHITECTURES`.
        dataset: the dataset's name; one that the table does not have gets the defaults.

    Returns:
        The settings.

    Raises:
        ValueError: if the architecture is unknown, or the file is not such a table.
        OSError: if the file cannot be read.
    """
    _check_arch(arch)
    entry = _settings_table().get(dataset, {}).get(arch, {})
    names = [field.name for field in dataclasses.fields(RegularizerSettings)]
    return RegularizerSettings(**{name: entry[name] for name in names if name in entry})


def write_regularizer_settings(
    arch: str, dataset: str, settings: RegularizerSettings, tuning: dict[str, Any]
) -> pathlib.Path:
    """Puts tuned hyper-parameters into `settings_file()`; its other entries stay as they are.

    Args:
        arch: the architecture, one of `fisher_keras.models.ARCHITECTURES`.
        dataset: the dataset's name.
        settings: the best hyper-parameters.
        tuning: how they were found, for JSON.

    Returns:
        The file. If it was not there, it has the package's other entries.

    Raises:
        ValueError: if the architecture is unknown, or the file is not such a table.
        OSError: if the file cannot be read or written.
    """
    _check_arch(arch)
    table = _settings_table()
    entry = {**dataclasses.asdict(settings), "tuned": True, "tuning": tuning}
    table[dataset] = {**table.get(dataset, {}), arch: entry}
    datasets = []
    for name, networks in table.items():
        lines = (f"    {json.dumps(key)}: {json.dumps(networks[key])}" for key in networks)
        joined = ",\n".join(lines)
        datasets.append(f"  {json.dumps(name)}: {{\n{joined}\n  }}")
    path = settings_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, shared=True) as part:
        part.write_text("{\n" + ",\n".join(datasets) + "\n}\n", encoding="utf-8")
    return path


def settings_file() -> pathlib.Path:
    """Returns the table's file: $FISHER_KERAS_REGULARIZER_SETTINGS, or the one in the package."""
    return pathlib.Path(os.environ.get(SETTINGS_VARIABLE) or _PACKAGE_SETTINGS).expanduser()


def _check_arch(arch: str) -> None:
    if arch not in ARCHITECTURES:
        raise ValueError(f"Unknown architecture {arch!r}: use one of {', '.join(ARCHITECTURES)}.")


def _settings_table() -> dict[str, dict[str, dict]]:
    """Reads the table: dataset -> architecture -> hyper-parameters, `tuned` and `tuning`."""
    path = settings_file()
    if not path.exists():
        path = _PACKAGE_SETTINGS
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(entry, dict) for row in table.values() for entry in row.values()):
            raise ValueError("an entry is not an object")
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no table of regularizer settings: {error}.") from error
    return table
