"""The number of trials of an evaluation, and the standard error that ends it earlier."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fisher_keras.devices import Processes
from fisher_keras.metrics.evaluation_options import GAMMA_HAT, EvaluationOptions
from fisher_keras.metrics.report import LocalMinimumReport
from fisher_keras.metrics.summaries import check_same_samples, summarize_differences
from fisher_keras.metrics.trials import Trial

# Of fewer trials, a standard error is itself too uncertain to end an evaluation.
MIN_TRIALS = 10


@dataclasses.dataclass(frozen=True)
class StoppingRule:
    """The number of trials, and the standard error that ends them earlier.

    Attributes:
        num_trials: The largest number of trials.
        standard_error: See `evaluate_local_minimum`. None evaluates all trials.
        others: The log-determinants of the report to compare with, 0 without a report.
    """

    num_trials: int
    standard_error: float | None
    others: Sequence[float]

    @classmethod
    def of(
        cls,
        options: EvaluationOptions,
        reference: LocalMinimumReport | None,
        identity: dict[str, Any],
        processes: Processes,
    ) -> "StoppingRule":
        """Returns the rule of an evaluation.

        Args:
            options: Options of the evaluation.
            reference: A report to compare with, if there is one.
            identity: Identity of the evaluation (see `EvaluationOptions.identity`).
            processes: The processes that evaluate together.

        Raises:
            ValueError: If the options contradict each other, or the reference has other samples.
        """
        limit, most = options.standard_error, options.num_trials
        # Each evaluates the trials by itself, and one that rounds otherwise might go on alone.
        if limit is not None and processes.count > 1:
            raise ValueError("standard_error is not for several processes: give num_trials alone.")
        if reference is None:
            return cls(most, limit, np.zeros(most))
        if not isinstance(reference, LocalMinimumReport):
            raise ValueError(
                "reference must be a report of evaluate_local_minimum. Given: "
                f"{type(reference).__name__}."
            )
        if limit is None or GAMMA_HAT not in reference.metrics:
            raise ValueError(
                f"reference is for standard_error, and must have the metric {GAMMA_HAT!r}. Given: "
                f"standard_error={limit}, a reference with {', '.join(reference.metrics)}."
            )
        check_same_samples(identity, reference.evaluation)
        others = [trial.metrics[GAMMA_HAT] for trial in reference.trials]
        return cls(min(most, len(others)), limit, others)

    def suffice(self, trials: Sequence[Trial]) -> bool:
        """Returns whether the first trials are enough."""
        if self.standard_error is None or len(trials) < MIN_TRIALS:
            return False
        # Not known (NaN) is not less.
        return self._error_of(trials) < self.standard_error

    def notes(self, trials: Sequence[Trial]) -> list[str]:
        """Describes a standard error that all trials have not reached.

        Args:
            trials: The trials of the evaluation.
        """
        if self.standard_error is None or self.suffice(trials):
            return []
        if math.isnan(self._error_of(trials)) and len(trials) > 1:
            return [
                "the standard error is not known, as the log-determinant of a trial is infinite"
            ]
        return [
            f"the standard error is {self._error_of(trials):.3g} after all {len(trials)} trials, "
            f"and not below standard_error={self.standard_error:g}, which takes at least "
            f"{MIN_TRIALS}. Raise num_trials, here and in the evaluation of a reference."
        ]

    def _error_of(self, trials: Sequence[Trial]) -> float:
        values = [trial.metrics[GAMMA_HAT] for trial in trials]
        return summarize_differences(values, self.others).standard_error
