"""The command line flags of `bin/tune_regularizer`, in groups, and its presets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from absl import flags

from fisher_keras.experiments.command_line.flags import define_flags as define_flags_of
from fisher_keras.experiments.command_line.flags import flag_groups, from_flags
from fisher_keras.experiments.runs.presets import LAPTOP_NETWORKS, LAPTOP_TRAINING
from fisher_keras.experiments.search.tuning import SEARCHED, TuningConfig
from fisher_keras.experiments.training.config import TrainingConfig

GROUPS = ("search", "runs", *flag_groups(TrainingConfig))

# Of train_cifar; the search decides them, or has flags of its own under the same names.
_LEFT_OUT = (
    *SEARCHED,
    *("adaptive", "confusion_size", "method", "output_dir", "regularize", "resume", "rho"),
    "settings_file",
    "target_loss",  # Trials are compared after the same epochs.
)


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


def define_flags() -> None:
    """Defines the flags of the search, and those of the training that it leaves open."""
    define_flags_of(TuningConfig)
    define_flags_of(TrainingConfig, leave_out=_LEFT_OUT)


def tuning_config() -> TuningConfig:
    """Returns the search that the parsed flags ask for.

    Raises:
        ValueError: If a value cannot be used.
    """
    preset = TUNING_PRESETS[flags.FLAGS.preset]
    network = preset.networks.get(flags.FLAGS.arch, {})
    usual = {**preset.training, **network, "regularize": True}
    search = {**preset.candidates, "training": from_flags(TrainingConfig, _LEFT_OUT, usual)}
    if flags.FLAGS.sampler == "tpe":
        search["num_trials"] = preset.num_trials
    return from_flags(TuningConfig, usual=search)
