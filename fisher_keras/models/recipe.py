"""Training recipes of the networks' papers; each network's file has its `RECIPE`."""

import dataclasses
import math

import keras

from fisher_keras.arguments import real_number, whole_number


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training recipe of stochastic gradient descent.

    Attributes:
        momentum: The factor on the velocity.
        nesterov: Whether the momentum is Nesterov's.
        learning_rate: The initial learning rate.
        schedule: Pairs (epoch, factor) by rising epoch: after so many epochs of `epochs` the
            learning rate is multiplied by the factor.
        epochs: Passes over the training images.
        batch_size: Images a step, |B|.
        l2_penalty: Coefficient of the sum of squares of the weights, which the network has by
            default. It is half the weight decay of a paper whose gradient is decay * w.
        augmentation: The scheme's name in the paper's Section 7.1.
    """

    momentum: float
    nesterov: bool
    learning_rate: float
    schedule: tuple[tuple[int, float], ...]
    epochs: int
    batch_size: int
    l2_penalty: float
    augmentation: str = "4-crop-f"


def learning_rate_at(
    recipe: Recipe, epoch: int, epochs: int | None = None, learning_rate: float | None = None
) -> float:
    """Returns the learning rate of one epoch, for `keras.callbacks.LearningRateScheduler`.

    Args:
        recipe: The recipe whose schedule applies.
        epoch: The epoch, counted from 0.
        epochs: Length of the training, if not the recipe's: the schedule's epochs are scaled in
            proportion.
        learning_rate: The initial learning rate, if not the recipe's.

    Returns:
        The learning rate.

    Raises:
        ValueError: If epoch is negative, or epochs or learning_rate is not positive.
    """
    epochs = recipe.epochs if epochs is None else epochs
    epoch, epochs = whole_number("epoch", epoch, 0), whole_number("epochs", epochs, 1)
    falls = zip(learning_rate_falls(recipe, epochs), recipe.schedule, strict=True)
    passed = [factor for first, (_, factor) in falls if epoch >= first]
    return math.prod(passed, start=_initial_learning_rate(recipe, learning_rate))


def learning_rate_falls(recipe: Recipe, epochs: int) -> list[int]:
    """Returns the epochs, counted from 0, that are the first of a lower learning rate.

    Args:
        recipe: The recipe whose schedule applies.
        epochs: Length of the training: the schedule's epochs are scaled in proportion.

    Returns:
        An epoch for each factor of the schedule.
    """
    # In whole numbers, rounded up: a quotient of floats could miss the boundary.
    return [-(-start * epochs // recipe.epochs) for start, _ in recipe.schedule]


def build_optimizer(
    recipe: Recipe, learning_rate: float | None = None
) -> keras.optimizers.Optimizer:
    """Builds the recipe's optimizer. Weight decay is not in it, but in the model's L2 penalties.

    Args:
        recipe: The recipe.
        learning_rate: The initial learning rate, if not the recipe's.

    Returns:
        A new Keras optimizer.

    Raises:
        ValueError: If learning_rate is not positive.
    """
    return keras.optimizers.SGD(
        _initial_learning_rate(recipe, learning_rate),
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
    )


def _initial_learning_rate(recipe: Recipe, learning_rate: float | None) -> float:
    """Returns the learning rate given, or the recipe's."""
    if learning_rate is None:
        return recipe.learning_rate
    return real_number("learning_rate", learning_rate, above=0)
