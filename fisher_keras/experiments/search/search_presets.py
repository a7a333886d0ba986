"""Presets of the search: the values to try, and the size of the trainings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fisher_keras.experiments.runs.presets import LAPTOP_NETWORKS, LAPTOP_TRAINING


@dataclasses.dataclass(frozen=True)
class TuningPreset:
    """The size of a search; a flag that is given goes before it.

    Attributes:
        candidates: The values of beta, M and tau.
        training: Fields of `TrainingConfig`.
        num_trials: Of the TPE.
        networks: Fields of `TrainingConfig` for single architectures; they go before `training`.
    """

    candidates: Mapping[str, tuple[float, ...]]
    training: Mapping[str, Any]
    num_trials: int
    networks: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


TUNING_PRESETS = {
    # "We consider beta in {10, 20, 30, 40, 50, 75, 100, 125}, M in {4, 8, 16} and tau in
    # {1, 5, 10, 15}", "via a 45k/5k training data split".
    "paper": TuningPreset(
        candidates={
            "beta": (10.0, 20.0, 30.0, 40.0, 50.0, 75.0, 100.0, 125.0),
            "num_sub_batches": (4, 8, 16),
            "clip_norm": (1.0, 5.0, 10.0, 15.0),
        },
        training={"validation_size": 5000},
        num_trials=32,
    ),
    "laptop": TuningPreset(
        candidates={
            "beta": (10.0, 50.0, 125.0),
            "num_sub_batches": (8,),
            "clip_norm": (1.0, 10.0),
        },
        training=LAPTOP_TRAINING | {"validation_size": 1000},
        num_trials=4,
        networks=LAPTOP_NETWORKS,
    ),
    "smoke": TuningPreset(
        candidates={
            "beta": (10.0, 50.0),
            "num_sub_batches": (4,),
            "clip_norm": (1.0, 10.0),
        },
        training={
            "dataset": "digits",
            "train_size": 200,
            "validation_size": 200,
            "epochs": 1,
            "batch_size": 50,
            "share_gradients": True,
        },
        num_trials=3,
        networks={
            "cnn": {"width": 0.125},
            "resnet": {"width": 4},
            "wide_resnet": {"width": 1},
            "densenet": {"width": 4},
        },
    ),
}
