"""What the trained networks came to, and the statistics that the quickstart's text rests on."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

from fisher_keras.experiments.quickstart.networks import METHODS
from fisher_keras.experiments.statistics.convergence import convergence_flags
from fisher_keras.experiments.statistics.paired import PairedDifference, paired_difference
from fisher_keras.experiments.statistics.rank_correlation import (
    Estimate,
    granulated_kendall,
    kendall_correlation,
)


@dataclasses.dataclass(frozen=True)
class MethodRun:
    """A network of the first half.

    Attributes:
        method: One of `METHODS`.
        seed: Of everything that is random.
        train_losses: Cross-entropy of each epoch in nats, the mean over its steps while the
            weights move.
        test_errors: After each epoch, in percent.
        train_loss: Cross-entropy of the training images after the last epoch, in nats.
        parameters: W.
    """

    method: str
    seed: int
    train_losses: tuple[float, ...]
    test_errors: tuple[float, ...]
    train_loss: float
    parameters: int


@dataclasses.dataclass(frozen=True)
class Minimum:
    """A network of the second half.

    Attributes:
        confusion_size: Images with random labels that it was trained on.
        seed: Of everything that is random.
        test_error: In percent.
        train_error: Of all images that it was trained on, those with random labels among them, in
            percent.
        excess_loss: Cross-entropy of the training images over the least that their smoothed labels
            allow, in nats; the images with random labels not among them.
        gamma_hat: Of the same images.
        parameters: W.
        model: The `.keras` file.
    """

    confusion_size: int
    seed: int
    test_error: float
    train_error: float
    excess_loss: float
    gamma_hat: float
    parameters: int
    model: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Ordering:
    """How gamma-hat orders the networks of the second half against their test errors.

    Attributes:
        tau: Kendall's tau of gamma-hat and the test error over all networks.
        tau_within_sizes: The same among the networks of one size, the mean over the sizes.
        tau_of_loss: Kendall's tau of the excess training loss and the test error.
        num_seeds: Of how many seeds there are networks.
        num_ordered_seeds: In how many of them gamma-hat puts the sizes in the order of their test
            errors, without an exception or a tie.
        not_converged: What keeps networks from being minima such as the others.
    """

    tau: Estimate
    tau_within_sizes: float
    tau_of_loss: Estimate
    num_seeds: int
    num_ordered_seeds: int
    not_converged: tuple[str, ...]


def error_differences(runs: Sequence[MethodRun]) -> dict[str, PairedDifference]:
    """Returns the final test error of the regularized networks less that of each other method.

    Args:
        runs: Of each method from the same seeds, at least two.

    Returns:
        For each other method, in percentage points.
    """
    errors = {
        method: {run.seed: run.test_errors[-1] for run in runs if run.method == method}
        for method in METHODS
    }
    regularized = errors.pop("regularized")
    return {
        method: paired_difference(
            list(regularized.values()), [values[seed] for seed in regularized]
        )
        for method, values in errors.items()
    }


def ordering(minima: Sequence[Minimum]) -> Ordering:
    """Compares the order of gamma-hat with that of the test errors.

    Args:
        minima: Of each size of the confusion set from the same seeds.

    Returns:
        The statistics.
    """
    gamma_hat, errors, losses, sizes = (
        [getattr(minimum, name) for minimum in minima]
        for name in ("gamma_hat", "test_error", "excess_loss", "confusion_size")
    )
    seeds = sorted({minimum.seed for minimum in minima})
    flags = convergence_flags(losses, [minimum.train_error for minimum in minima])
    return Ordering(
        tau=kendall_correlation(gamma_hat, errors),
        tau_within_sizes=granulated_kendall(gamma_hat, errors, sizes),
        tau_of_loss=kendall_correlation(losses, errors),
        num_seeds=len(seeds),
        num_ordered_seeds=sum(_is_ordered(minima, seed) for seed in seeds),
        not_converged=tuple(
            f"{minimum.confusion_size} random labels, seed {minimum.seed}: {', '.join(reasons)}"
            for minimum, reasons in zip(minima, flags, strict=True)
            if reasons
        ),
    )


def _is_ordered(minima: Sequence[Minimum], seed: int) -> bool:
    by_error = sorted(
        (minimum.test_error, minimum.gamma_hat) for minimum in minima if minimum.seed == seed
    )
    return all(
        error < next_error and gamma_hat < next_gamma_hat
        for (error, gamma_hat), (next_error, next_gamma_hat) in itertools.pairwise(by_error)
    )
