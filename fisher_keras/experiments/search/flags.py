"""The command line flags of `bin/tune_regularizer`, in groups, and its presets."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from fisher_keras.experiments.flags import define_flags as define_flags_of
from fisher_keras.experiments.flags import flag_groups, from_flags
from fisher_keras.experiments.runs.engine import EngineOptions
from fisher_keras.experiments.runs.presets import LAPTOP_NETWORKS, LAPTOP_TRAINING, PRESETS
from fisher_keras.experiments.search.tuning import SAMPLERS, SEARCHED, TuningConfig
from fisher_keras.experiments.training.config import TrainingConfig

GROUPS = ("search", *flag_groups(EngineOptions), *flag_groups(TrainingConfig))

# Of train_cifar; the search decides them, or has flags of its own under the same names.
_LEFT_OUT = (
    *SEARCHED,
    *("confusion_size", "output_dir", "regularize", "resume", "settings_file"),
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
    define_flags_of(TrainingConfig, leave_out=_LEFT_OUT)
    define_flags_of(EngineOptions)
    search, output = ({"module_name": name} for name in (GROUPS[0], GROUPS[-1]))
    flags.DEFINE_enum(
        "preset",
        PRESETS[0],
        PRESETS,
        "paper: its 96 full trainings; laptop: 6 of a ResNet-8 or a narrow CNN, 5 to 10 "
        "minutes each on one core; smoke: seconds. A value given by its own flag goes before the "
        "preset's.",
        **search,
    )
    flags.DEFINE_list("beta", None, "Strengths of the regularizer to try.", **search)
    flags.DEFINE_list("num_sub_batches", None, "Sub-batches of a batch to try, M.", **search)
    flags.DEFINE_list(
        "clip_norm", None, "Largest norms of a gradient to try, tau; 0 for no clipping.", **search
    )
    flags.DEFINE_enum(
        "sampler", SAMPLERS[0], SAMPLERS, "All combinations, or chosen by Optuna's TPE.", **search
    )
    flags.DEFINE_boolean("prune", False, "End bad trials early, by successive halving.", **search)
    flags.DEFINE_integer("num_trials", None, "Trials of --sampler=tpe.", **search)
    flags.DEFINE_string(
        "storage",
        None,
        "The study's database, a URL as Optuna takes it; by default the file study.journal in "
        "--output_dir.",
        **search,
    )
    flags.DEFINE_string(
        "output_dir",
        None,
        "Folder of the search; by default runs/tune_<dataset>_<arch>_<preset>.",
        **output,
    )
    flags.DEFINE_string(
        "settings_file",
        None,
        "Table that gets the best values, for train_cifar --regularize --settings_file.",
        **output,
    )


def tuning_config() -> TuningConfig:
    """Returns the search that the parsed flags ask for.

    Raises:
        ValueError: If a value cannot be used.
    """
    values = flags.FLAGS
    preset = TUNING_PRESETS[values.preset]
    numbers = {"beta": float, "num_sub_batches": int, "clip_norm": float}
    num_trials = values.num_trials
    if num_trials is None and values.sampler == "tpe":
        num_trials = preset.num_trials
    training = _training(preset)
    return TuningConfig(
        training=training,
        candidates={name: _candidates(preset, name, numbers[name]) for name in SEARCHED},
        num_trials=num_trials,
        engine=from_flags(EngineOptions),
        **{
            name: values[name].value
            for name in ("preset", "sampler", "prune", "storage", "settings_file")
        },
    )


def _training(preset: TuningPreset) -> TrainingConfig:
    usual = {**preset.training, **preset.networks.get(flags.FLAGS.arch, {})}
    training = from_flags(TrainingConfig, _LEFT_OUT, usual | {"regularize": True})
    default = f"runs/tune_{training.dataset}_{training.arch}_{flags.FLAGS.preset}"
    return dataclasses.replace(training, output_dir=flags.FLAGS.output_dir or default)


def _candidates(
    preset: TuningPreset, name: str, number: Callable[[str], float]
) -> tuple[float, ...]:
    texts = flags.FLAGS[name].value
    if texts is None:
        return preset.candidates[name]
    try:
        return tuple(map(number, texts))
    except ValueError as error:
        raise ValueError(f"--{name} must be numbers with commas between: {error}") from error
