"""The sizes in which an experiment can be done: the paper's, a laptop's, and one of seconds."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

# On so few images networks as small as these reach a training error of 0 in so few epochs, if
# there is no augmentation. With more images and fewer epochs they do, too, but the training losses
# of equal networks are then up to 50 times apart, and gamma-hat tells these apart.
LAPTOP_TRAINING = {"train_size": 1000, "augmentation": "no-aug", "batch_size": 64, "epochs": 100}
# Batches of 64 are too few steps for the CNN, which has no batch normalization.
LAPTOP_NETWORKS = {"resnet": {"depth": 8}, "cnn": {"width": 0.25, "batch_size": 32}}


@dataclasses.dataclass(frozen=True)
class MetricSettings:
    """Settings of the metrics of a trained network.

    Attributes:
        names: Out of `fisher_keras.metrics.METRICS`; the two parts of "log_determinant" come with
            it.
        num_samples: N', images a trial.
        num_trials: Number of samples T.
        normalize_logits: If it is a number, the metrics are computed a second time, of logits
            divided by their norm times this number (see `evaluate_local_minimum`).
    """

    names: tuple[str, ...]
    num_samples: int = 100
    num_trials: int = 100
    normalize_logits: float | None = None

    @property
    def scales(self) -> dict[str, float | None]:
        """The `normalize_logits` of each evaluation, by its name in the result of a run."""
        scales: dict[str, float | None] = {"metrics": None}
        if self.normalize_logits is not None:
            scales["normalized_metrics"] = self.normalize_logits
        return scales


@dataclasses.dataclass(frozen=True)
class Preset:
    """Size of an experiment.

    Attributes:
        about: The size in words, and its concessions against the paper.
        values: Of the settings that the experiment varies, in order.
        num_seeds: Networks that are trained for each value.
        training: Fields of `TrainingConfig` that are the same in all trainings; the recipe of the
            architecture decides what is not here.
        metrics: How the trained networks are evaluated.
        networks: Fields of `TrainingConfig` for single architectures; they go before `training`.
        first_seed: Of the networks of a value.
        num_settings: How many combinations of values are drawn, where each has all seeds.
    """

    about: str
    values: tuple[Any, ...]
    num_seeds: int
    training: Mapping[str, Any]
    metrics: MetricSettings
    networks: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    first_seed: int = 0
    num_settings: int | None = None

    @property
    def seeds(self) -> range:
        """The seeds of the networks of each value."""
        return range(self.first_seed, self.first_seed + self.num_seeds)

    def replaced(
        self, training: Mapping[str, Any] = {}, metrics: Mapping[str, Any] = {}, **changes: Any
    ) -> Self:
        """Returns another size.

        Args:
            training: Further or other fields of `training`.
            metrics: Other fields of `metrics`.
            **changes: Other values of the other fields.
        """
        return dataclasses.replace(
            self,
            training={**self.training, **training},
            metrics=dataclasses.replace(self.metrics, **metrics),
            **changes,
        )

    def smoke(self, training: Mapping[str, Any] = {}, **changes: Any) -> Self:
        """Returns the size of seconds, see `replaced`."""
        return self.replaced(
            {"train_size": 60, "epochs": 2, "batch_size": 20, **training},
            {"num_samples": 10, "num_trials": 2},
            about="two epochs on a few digits: it shows that everything runs, and nothing else.",
            **{"num_seeds": 2, **changes},
        )

    def __str__(self) -> str:
        """Returns all of it, a line each."""
        settings = dict(self.training) | dict(self.networks) | dataclasses.asdict(self.metrics)
        lines = [self.about, f"values: {', '.join(map(str, self.values))}"]
        lines += [f"seeds: {self.seeds[0]} to {self.seeds[-1]}"]
        return "\n  ".join(lines + [f"{name}: {value}" for name, value in settings.items()])
