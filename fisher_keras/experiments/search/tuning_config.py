"""Options of `bin/tune_regularizer`."""

import dataclasses
import functools
import math
from typing import Any

from absl import flags

from fisher_keras.experiments.command_line.flags import check_options, nested, option
from fisher_keras.experiments.names import PRESETS
from fisher_keras.experiments.runs.run_options import EngineOptions
from fisher_keras.experiments.search.search_presets import TUNING_PRESETS
from fisher_keras.experiments.training.config import TrainingConfig, decisive, resolve, resolve_run

SEARCHED = {"beta": float, "num_sub_batches": int, "clip_norm": float}
# Of train_cifar; the search decides them, or has flags of its own under the same names.
_LEFT_OUT = (
    *SEARCHED,
    *("adaptive", "confusion_size", "dry_run", "method", "output_dir", "regularize", "resume"),
    *("rho", "settings_file", "strategy", "strength", "sub_batches"),
    *("target_error", "target_loss"),  # Trials are compared after the same epochs.
)
_search, _output = (functools.partial(option, group=group) for group in ("search", "output"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Options of a search, also as flags.

    Attributes:
        engine: Where the trainings are carried out.
        training: How each network is trained, `regularize` set and the `SEARCHED` fields None.
    """

    preset: str = _search(
        "laptop",
        "Size of the search. laptop: 6 trainings of a ResNet-8 or a narrow CNN, 5 to 10 "
        "minutes each on one core. paper: its 96 full trainings. smoke: seconds. A value "
        "that is given by its own flag replaces that of the preset.",
        choices=PRESETS,
    )
    beta: tuple[str, ...] = _search(
        (), "Values of beta to try, with commas between them. The default is those of the preset."
    )
    num_sub_batches: tuple[str, ...] = _search((), "Numbers of sub-batches (M) to try.")
    clip_norm: tuple[str, ...] = _search(
        (), "Norms that gradients are clipped to (tau) to try; 0 means no clipping."
    )
    sampler: str = _search(
        "grid",
        "Choice of combinations. grid: all of them. tpe: --num_trials of them, which the "
        "TPE of Optuna chooses.",
        choices=("grid", "tpe"),
    )
    num_trials: int | None = _search(
        None, "Number of trials of --sampler=tpe. The default is that of the preset."
    )
    dry_run: bool = _search(
        False,
        "Only list the trainings (the first --num_trials of them), and estimate their times.",
    )
    engine: EngineOptions = nested(EngineOptions)
    training: TrainingConfig = nested(TrainingConfig, _LEFT_OUT)
    output_dir: str | None = _output(
        None, "Folder of the search. The default is runs/tune_<dataset>_<arch>_<preset>."
    )
    settings_file: str | None = _output(
        None,
        "Table that the best values are written into. train_cifar --regularize "
        "--settings_file reads it.",
    )

    def __post_init__(self) -> None:
        """Checks the search.

        Raises:
            ValueError: If a value cannot be used.
        """
        check_options(self)
        if self.sampler == "grid" and self.num_trials is not None:
            raise ValueError(
                "--num_trials has no effect on a grid: leave it out, or add --sampler=tpe"
            )
        if self.training.validation_size < 1:
            raise ValueError(
                "--validation_size must be at least 1: the error on these images decides"
            )
        for name, values in self.candidates.items():
            # Their folders have six digits of them.
            if not values or len({f"{value:g}" for value in values}) < len(values):
                raise ValueError(f"--{name} must be one or several different values")
            for value in values:
                resolve(dataclasses.replace(self.training, **{name: value}))  # Checks it.
        num_combinations = math.prod(map(len, self.candidates.values()))
        if self.sampler == "tpe" and not 1 <= (self.num_trials or 0) <= num_combinations:
            raise ValueError(
                f"--num_trials must be from 1 to the {num_combinations} combinations of --beta, "
                f"--num_sub_batches and --clip_norm, got {self.num_trials}"
            )

    @functools.cached_property
    def candidates(self) -> dict[str, list[float]]:
        """The values of each of `SEARCHED`.

        Raises:
            ValueError: If one is no number.
        """
        candidates = {}
        for name, number in SEARCHED.items():
            try:
                candidates[name] = list(map(number, getattr(self, name)))
            except ValueError as error:
                raise ValueError(
                    f"--{name} must be numbers with commas between: {error}"
                ) from error
        return candidates

    @classmethod
    def usual(cls, values: flags.FlagValues) -> dict[str, Any]:
        """Returns the fields that the preset of the flags decides."""
        preset = TUNING_PRESETS[values["preset"].value]
        network = preset.networks.get(values["arch"].value, {})
        usual = {**preset.candidates, "training": preset.training | network | {"regularize": True}}
        if values["sampler"].value == "tpe":
            usual["num_trials"] = preset.num_trials
        return usual

    def settings(self) -> dict[str, Any]:
        """Returns the settings that determine a trial, for JSON.

        More trials of a TPE, or another place for the files, leave the search the same.
        """
        training = decisive(dataclasses.asdict(resolve_run(self.training)))
        left_out = {*SEARCHED, "settings_file"}
        return {
            **{key: training[key] for key in training if key not in left_out},
            **self.candidates,
            "sampler": self.sampler,
        }
