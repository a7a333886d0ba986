"""The sizes in which an experiment can be done: the paper's, a laptop's, and one of seconds."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fisher_keras.experiments.trained_run import MetricSettings

PRESETS = ("paper", "laptop", "smoke")


@dataclasses.dataclass(frozen=True)
class Preset:
    """How large an experiment is.

    Attributes:
        about: what it is, and what it gives up against the paper.
        values: what the experiment varies, in order.
        num_seeds: networks that are trained for each value.
        training: fields of `TrainingConfig` that are the same in all trainings; the recipe of the
            architecture decides what is not here.
        metrics: how the trained networks are evaluated.
        run_estimate_s: seconds that a run takes, until the first is there to tell; None if that
            depends on the machine too much.
    """

    about: str
    values: tuple[Any, ...]
    num_seeds: int
    training: Mapping[str, Any]
    metrics: MetricSettings
    run_estimate_s: float | None = None

    def __str__(self) -> str:
        """Returns all of it, a line each."""
        settings = dict(self.training) | dataclasses.asdict(self.metrics)
        lines = [self.about, f"values: {', '.join(map(str, self.values))}"]
        lines += [f"seeds: 0 to {self.num_seeds - 1}"]
        return "\n  ".join(lines + [f"{name}: {value}" for name, value in settings.items()])
