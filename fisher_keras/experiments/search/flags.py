"""The command line flags of `bin/tune_regularizer`, in groups, and its presets."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from fisher_keras.experiments.flags import define_flags as define_flags_of
from fisher_keras.experiments.flags import flag_groups, from_flags, option
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


@dataclasses.dataclass(frozen=True)
class SearchOptions(EngineOptions):
    """What a search is told beside its trainings; the fields' texts are those of --help."""

    preset: str = option(
        PRESETS[0],
        "paper: its 96 full trainings; laptop: 6 of a ResNet-8 or a narrow CNN, 5 to 10 "
        "minutes each on one core; smoke: seconds. A value given by its own flag goes before the "
        "preset's.",
        group="search",
        choices=PRESETS,
    )
    beta: tuple[str, ...] | None = option(
        None, "Strengths of the regularizer to try.", group="search"
    )
    num_sub_batches: tuple[str, ...] | None = option(
        None, "Sub-batches of a batch to try, M.", group="search"
    )
    clip_norm: tuple[str, ...] | None = option(
        None, "Largest norms of a gradient to try, tau; 0 for no clipping.", group="search"
    )
    sampler: str = option(
        SAMPLERS[0],
        "All combinations, or chosen by Optuna's TPE.",
        group="search",
        choices=SAMPLERS,
    )
    prune: bool = option(False, "End bad trials early, by successive halving.", group="search")
    num_trials: int | None = option(None, "Trials of --sampler=tpe.", group="search")
    storage: str | None = option(
        None,
        "The study's database, a URL as Optuna takes it; by default the file study.journal in "
        "--output_dir.",
        group="search",
    )
    output_dir: str | None = option(
        None,
        "Folder of the search; by default runs/tune_<dataset>_<arch>_<preset>.",
        group="output",
    )
    settings_file: str | None = option(
        None,
        "Table that gets the best values, for train_cifar --regularize --settings_file.",
        group="output",
    )


def define_flags() -> None:
    """Defines the flags of the search, and those of the training that it leaves open."""
    define_flags_of(SearchOptions)
    define_flags_of(TrainingConfig, leave_out=_LEFT_OUT)


def tuning_config() -> TuningConfig:
    """Returns the search that the parsed flags ask for.

    Raises:
        ValueError: If a value cannot be used.
    """
    options = from_flags(SearchOptions)
    preset = TUNING_PRESETS[options.preset]
    numbers = {"beta": float, "num_sub_batches": int, "clip_norm": float}
    num_trials = options.num_trials
    if num_trials is None and options.sampler == "tpe":
        num_trials = preset.num_trials
    return TuningConfig(
        training=_training(preset, options),
        candidates={
            name: _candidates(preset, name, getattr(options, name), numbers[name])
            for name in SEARCHED
        },
        num_trials=num_trials,
        engine=options,
        **{
            name: getattr(options, name)
            for name in ("preset", "sampler", "prune", "storage", "settings_file")
        },
    )


def _training(preset: TuningPreset, options: SearchOptions) -> TrainingConfig:
    usual = {**preset.training, **preset.networks.get(flags.FLAGS.arch, {})}
    training = from_flags(TrainingConfig, _LEFT_OUT, usual | {"regularize": True})
    default = f"runs/tune_{training.dataset}_{training.arch}_{options.preset}"
    return dataclasses.replace(training, output_dir=options.output_dir or default)


def _candidates(
    preset: TuningPreset,
    name: str,
    texts: tuple[str, ...] | None,
    number: Callable[[str], float],
) -> tuple[float, ...]:
    if texts is None:
        return preset.candidates[name]
    try:
        return tuple(map(number, texts))
    except ValueError as error:
        raise ValueError(f"--{name} must be numbers with commas between: {error}") from error
