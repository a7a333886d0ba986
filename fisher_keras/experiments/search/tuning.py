"""The choice of beta, M and tau on a validation split (Section 7.2): `bin/tune_regularizer`."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

import optuna

from fisher_keras.experiments.command_line.flags import option
from fisher_keras.experiments.runs.engine import EngineOptions, execute_all
from fisher_keras.experiments.runs.experiment import absolute, free_gpus
from fisher_keras.experiments.runs.presets import PRESETS
from fisher_keras.experiments.runs.store import ExperimentStore, Run
from fisher_keras.experiments.search.trial_run import execute, trial_run
from fisher_keras.experiments.search.trials import Trials, open_study, rungs_of
from fisher_keras.experiments.search.tuning_report import TuningReport
from fisher_keras.experiments.training.config import TrainingConfig, resolve
from fisher_keras.experiments.training.data import load_training_data
from fisher_keras.models import RegularizerSettings, write_regularizer_settings

SEARCHED = {"beta": float, "num_sub_batches": int, "clip_norm": float}
# Where a network is trained, but not how.
_NOT_DECISIVE = {"data_dir", "download", "output_dir", "resume", "settings_file"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningConfig(EngineOptions):
    """A search; the fields' texts are those of --help.

    Attributes:
        training: How each network is trained, `regularize` set and the `SEARCHED` fields None.
    """

    training: TrainingConfig
    preset: str = option(
        PRESETS[0],
        "paper: its 96 full trainings; laptop: 6 of a ResNet-8 or a narrow CNN, 5 to 10 "
        "minutes each on one core; smoke: seconds. A value given by its own flag goes before the "
        "preset's.",
        group="search",
        choices=PRESETS,
    )
    beta: tuple[str, ...] = option(
        (),
        "Strengths of the regularizer to try; by default the preset's, as below.",
        group="search",
    )
    num_sub_batches: tuple[str, ...] = option(
        (), "Numbers of sub-batches to try, M.", group="search"
    )
    clip_norm: tuple[str, ...] = option(
        (), "Largest norms of a gradient to try, tau; 0 for no clipping.", group="search"
    )
    sampler: str = option(
        "grid",
        "grid: all combinations; tpe: chosen by Optuna's TPE, --num_trials of them.",
        group="search",
        choices=("grid", "tpe"),
    )
    prune: bool = option(False, "End bad trials early, by successive halving.", group="search")
    num_trials: int | None = option(
        None, "How many trials --sampler=tpe makes; by default the preset's.", group="search"
    )
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

    def __post_init__(self) -> None:
        """Checks the search.

        Raises:
            ValueError: If a value cannot be used.
        """
        super().__post_init__()
        if self.sampler == "grid" and self.num_trials is not None:
            raise ValueError(
                "--num_trials has no effect on a grid: leave it out, or add --sampler=tpe"
            )
        if self.training.validation_size < 1:
            raise ValueError(
                "--validation_size must be at least 1: the error on these images decides"
            )
        batch_size = resolve(self.training).batch_size
        for name, values in self.candidates.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"--{name} must be one or several different values")
            for value in values:
                dataclasses.replace(self.training, **{name: value})  # Checks it.
                if name == "num_sub_batches" and value > batch_size:
                    raise ValueError(
                        f"--num_sub_batches must be at most the {batch_size} images of a batch, "
                        f"got {value}"
                    )
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

    def settings(self) -> dict[str, Any]:
        """Returns what decides a trial's result, for JSON.

        More trials of a TPE, or another place for the files, leave the study the same.
        """
        training = dataclasses.asdict(resolve(self.training))
        return {
            **{key: training[key] for key in training if key not in {*_NOT_DECISIVE, *SEARCHED}},
            **self.candidates,
            "sampler": self.sampler,
            "prune": self.prune,
        }

    def run_of(self, values: Mapping[str, float], until_epoch: int, fingerprint: str) -> Run:
        """Returns the run that trains a combination to an epoch, see `trial_run`."""
        return trial_run(dataclasses.replace(self.training, **values), until_epoch, fingerprint)


def tune(config: TuningConfig) -> dict[str, Any]:
    """Carries out a search; a stopped or killed one goes on, also within a trial.

    The objective is the validation error after the last epoch: of the network that one would
    keep, while the best of all epochs would be chosen on the same images that judge it. All trials
    have the same seed and so the same split, initial weights and batches. A trial that diverges
    counts as infinitely bad.

    The output directory is an `ExperimentStore`. It also gets `tuning.json` (what this function
    returns), `trials.csv`, `study.journal` and `trials/`, for each combination the directory of
    its training run.

    Args:
        config: The search.

    Returns:
        A dict for JSON: `settings`, `preset`, `versions`, `git_revision`, `device`; `trials`, the
        finished ones from best to worst; `best`, the first of them, or None if none has been
        trained to its end.

    Raises:
        ValueError: If a setting, the data or the storage cannot be used, the output directory
            holds another search, or another command works on it.
        OSError: If data or output cannot be read or written, or Dask is out of reach.
        FailedRunsError: If trainings failed; all others are finished.
        ArithmeticError: If all trials have diverged.
    """
    training = config.training
    default = f"runs/tune_{training.dataset}_{training.arch}_{config.preset}"
    store = ExperimentStore(config.output_dir or default)
    with store.locked(), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return _tune(config, store)


def _tune(config: TuningConfig, store: ExperimentStore) -> dict[str, Any]:
    gpus = free_gpus()
    # With the data: machines that have others under the same name do not share a study.
    fingerprint = load_training_data(resolve(config.training)).describe()["fingerprint"]
    settings = config.settings() | {"data": fingerprint}
    rungs = rungs_of(settings["epochs"], config.prune)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    num_trials = config.num_trials or math.prod(map(len, config.candidates.values()))
    report = TuningReport(
        store.directory, settings, {"preset": config.preset}, list(SEARCHED), num_trials
    )
    study = open_study(
        config.storage,
        store.directory / "study.journal",
        f"tune_regularizer_{config.training.dataset}_{config.training.arch}_{digest[:8]}",
        config.training.seed,
    )
    trials = Trials(
        study,
        config.candidates,
        config.num_trials,
        rungs,
        functools.partial(config.run_of, fingerprint=fingerprint),
        store,
        report.after_trial,
    )
    function = functools.partial(
        execute, data_dir=absolute(config.training.data_dir), download=config.training.download
    )
    try:
        ended = execute_all(trials.next_run, function, store, config, gpus, report.show)
        with report.under_way(study), contextlib.closing(ended):
            for run, record in ended:
                if record is not None:
                    trials.ended(run, record)
    finally:
        store.write_lines()
    content = report.write()
    report.print_table()
    if content["best"] is None:
        raise ArithmeticError(
            "all trials have diverged: search at a lower --learning_rate or --beta"
        )
    _hand_over(config, content)
    return content


def _hand_over(config: TuningConfig, content: dict[str, Any]) -> None:
    """Says how the best values are used, and writes them into the table of settings."""
    arch, dataset = config.training.arch, config.training.dataset
    best = {name: content["best"][name] for name in SEARCHED}
    flags = " ".join(f"--{name}={value:g}" for name, value in best.items())
    print(f"\nThe best: train_cifar --arch={arch} --dataset={dataset} --regularize {flags}")
    if config.settings_file is None:
        print(
            "The same command with --settings_file=PATH writes these values into a table, which "
            "train_cifar --regularize takes under the same name."
        )
        return
    settings = RegularizerSettings(
        alpha=content["settings"]["alpha"], **{**best, "clip_norm": best["clip_norm"] or None}
    )
    tuning = {
        "validation_error_percent": content["best"]["validation_error_percent"],
        "trials": len(content["trials"]),
        "preset": config.preset,
        **{
            name: content["settings"][name]
            for name in ("train_size", "validation_size", "epochs", "seed")
        },
    }
    write_regularizer_settings(config.settings_file, arch, dataset, settings, tuning)
    print(f"Or with --regularize --settings_file={config.settings_file}, which has them now.")
