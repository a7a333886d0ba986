"""What the quickstart prints: tables, and what can and cannot be said of them."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np

from fisher_keras.experiments.quickstart.networks import LABEL_SMOOTHING, METHODS, Settings
from fisher_keras.experiments.quickstart.results import (
    MethodRun,
    Minimum,
    error_differences,
    ordering,
)
from fisher_keras.experiments.statistics.paired import PairedDifference
from fisher_keras.experiments.statistics.rank_correlation import LEVEL, Estimate
from fisher_keras.experiments.statistics.text_tables import aligned_table, mean_and_std


def summary(settings: Settings, runs: Sequence[MethodRun], minima: Sequence[Minimum]) -> str:
    """Returns the text of both halves.

    Args:
        settings: How the networks were trained.
        runs: Of the first half, of each method from the same seeds.
        minima: Of the second, of each size of the confusion set from the same seeds.

    Returns:
        Tables of mean ± standard deviation over the seeds, and sentences.
    """
    about = (
        f"All networks: {settings.train_size} handwritten digits, {settings.epochs} epochs, no "
        "augmentation. All tables: mean ± standard deviation over the seeds."
    )
    first = (
        f"A narrow CNN of {runs[0].parameters:,} parameters from {settings.seeds} seeds. clipped: "
        "with the regularized method's gradient clipping alone. Training loss: cross-entropy."
    )
    second = (
        f"A ResNet-8 of {minima[0].parameters:,} parameters from {settings.minima_seeds} seeds, "
        "trained on further digits with random labels, too; label smoothing "
        f"{LABEL_SMOOTHING:g}. gamma-hat: of "
        f"{settings.num_trials} samples of {settings.num_samples} digits with their own labels; "
        "lower is better. Excess loss: of all of these, the cross-entropy over the least that "
        "smoothed labels allow. Training error: of all digits trained on, random labels too."
    )
    return "\n\n".join(
        [
            _wrapped(about),
            "HOW to find minima that generalize: the regularizer (Section 6, Algorithm 1)",
            _wrapped(first),
            method_table(runs),
            _wrapped(*method_sentences(runs)),
            "WHICH minima generalize: the metric gamma-hat (Sections 5.3 and 7.1, Scenario I)",
            _wrapped(second),
            minimum_table(minima),
            _wrapped(*minimum_sentences(minima)),
        ]
    )


def method_table(runs: Sequence[MethodRun]) -> str:
    """Returns a line a method: what the last epoch left."""
    rows = [["", "test error (%)", "training loss"]]
    for method in METHODS:
        of_method = [run for run in runs if run.method == method]
        errors = mean_and_std([run.test_errors[-1] for run in of_method], 2)
        losses = mean_and_std([run.train_loss for run in of_method], 4)
        rows.append([method, errors, losses])
    return aligned_table(rows)


def method_sentences(runs: Sequence[MethodRun]) -> list[str]:
    """Says of each difference in test error whether it is more than the seeds' noise."""
    return [
        f"Test error of regularized less {method}, from the same seed: {_points(difference)}: "
        f"{_verdict(difference)}."
        for method, difference in error_differences(runs).items()
    ]


def _points(difference: PairedDifference) -> str:
    return (
        f"{difference.mean:+.2f} points in the mean, {100 * LEVEL:g} % interval (Student's t) "
        f"{difference.low:+.2f} to {difference.high:+.2f}"
    )


def _verdict(difference: PairedDifference) -> str:
    if math.isclose(difference.low, difference.high, abs_tol=1e-6):
        return f"the same from all {difference.num_pairs} seeds"
    if difference.is_within_noise:
        return f"within the noise of {difference.num_pairs} seeds"
    kind = "lower" if difference.mean < 0 else "higher"
    return f"{kind} by more than the noise of {difference.num_pairs} seeds"


def minimum_table(minima: Sequence[Minimum]) -> str:
    """Returns a line a size of the confusion set."""
    columns = (
        ("test error (%)", "test_error", 2),
        ("gamma-hat", "gamma_hat", 1),
        ("excess loss", "excess_loss", 4),
        ("training error (%)", "train_error", 2),
    )
    rows = [["random labels", *(title for title, _, _ in columns)]]
    for size in sorted({minimum.confusion_size for minimum in minima}):
        of_size = [minimum for minimum in minima if minimum.confusion_size == size]
        rows.append(
            [
                str(size),
                *(
                    mean_and_std([getattr(minimum, name) for minimum in of_size], digits)
                    for _, name, digits in columns
                ),
            ]
        )
    return aligned_table(rows)


def minimum_sentences(minima: Sequence[Minimum]) -> list[str]:
    """Says how far gamma-hat orders the networks, and what that does not show."""
    found = ordering(minima)
    sentences = [
        "gamma-hat puts the sizes in the order of their test errors from "
        f"{found.num_ordered_seeds} of {found.num_seeds} seeds.",
        f"Kendall's tau of gamma-hat with the test error over the {len(minima)} networks: "
        f"{_estimate(found.tau)}: {_meaning(found.tau)}.",
    ]
    if not np.isnan(found.tau_within_sizes):
        sentences.append(
            "Among networks of one size, which only the seed tells apart, tau is "
            f"{found.tau_within_sizes:.2f} in the mean."
        )
    if found.tau_of_loss.low > 0:
        sentences.append(
            f"But the excess loss orders them, too (tau {_estimate(found.tau_of_loss)}): here "
            "gamma-hat may tell no more than how well the labels are fitted."
        )
    if found.not_converged:
        sentences.append(
            "Not at such a minimum as the metric assumes, but counted: "
            f"{len(found.not_converged)} of {len(minima)} networks ({found.not_converged[0]}, "
            "for example)."
        )
    return sentences


def _estimate(estimate: Estimate) -> str:
    if np.isnan(estimate.value):
        return "undefined"
    return (
        f"{estimate.value:.2f}, {100 * LEVEL:g} % interval (bootstrap) {estimate.low:.2f} to "
        f"{estimate.high:.2f}"
    )


def _meaning(tau: Estimate) -> str:
    if np.isnan(tau.value):
        return "all are equal"
    if tau.low > 0:
        return "lower gamma-hat goes with lower test error, as the paper says"
    if tau.high < 0:
        return "lower gamma-hat goes with higher test error, against the paper"
    return "within the noise, gamma-hat does not order these networks"


def _wrapped(*sentences: str) -> str:
    return textwrap.fill(" ".join(sentences), width=88)
