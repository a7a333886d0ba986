"""Convergence flags: reasons why a run is not at the minimum that the metrics assume."""

from collections.abc import Sequence

import numpy as np

# In percent. In Section 7.1, the training accuracy is "essentially equal to 1".
MAX_TRAIN_ERROR = 0.5
# "We find the final training loss very small and very similar across different models". Similar:
# not more than ten times the median of the scenario, which a few such runs do not move. Small: at
# 0.01 nats the right classes have a probability of 99 % in the (geometric) mean, and below it a
# loss counts as small, however much smaller the others are.
MAX_LOSS_RATIO = 10
SMALL_LOSS = 0.01


def convergence_flags(
    train_losses: Sequence[float],
    train_errors: Sequence[float],
    target_loss: float | None = None,
    usual_losses: Sequence[float] | None = None,
) -> list[tuple[str, ...]]:
    """Returns why a run is not at a minimum such as the others', for each run of a scenario.

    Args:
        train_losses: Mean cross-entropy of each run's training images over the least that their
            labels allow, in nats; NaN where it is not known.
        train_errors: Training error of each run, in percent.
        target_loss: What the trainings were to end at, if there was such a loss.
        usual_losses: The losses whose median is the usual one; by default, `train_losses`.

    Returns:
        The reasons for each run, none for a run that is.
    """
    usual = train_losses if usual_losses is None else usual_losses
    known = [loss for loss in usual if np.isfinite(loss)]
    median = float(np.median(known)) if known else np.nan
    return [
        _reasons(loss, error, median, target_loss)
        for loss, error in zip(train_losses, train_errors, strict=True)
    ]


def _reasons(
    loss: float, error: float, median: float, target_loss: float | None
) -> tuple[str, ...]:
    reasons = []
    # Negated, so that an error that is NaN is flagged, too. A loss that is not known (NaN) is no
    # reason: all comparisons below are false for it.
    if not error <= MAX_TRAIN_ERROR:
        reasons.append(f"training error {error:.2f} % (more than {MAX_TRAIN_ERROR} %)")
    if np.isinf(loss):
        reasons.append(f"training loss {loss}")
    elif loss > max(MAX_LOSS_RATIO * median, SMALL_LOSS):
        reasons.append(
            f"training loss {loss:.2g} (more than {MAX_LOSS_RATIO} times the median {median:.2g})"
        )
    if target_loss is not None and loss > target_loss:
        reasons.append(f"training loss {loss:.2g} (did not reach the target {target_loss:g})")
    return tuple(reasons)
