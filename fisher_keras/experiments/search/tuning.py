"""The choice of beta, M and tau on a validation split (Section 7.2): `bin/tune_regularizer`."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import optuna
import sqlalchemy

from fisher_keras.experiments.runs.claim import Claims
from fisher_keras.experiments.search import trial_queue
from fisher_keras.experiments.search.distinct_sampler import DistinctTPESampler
from fisher_keras.experiments.search.report import TuningReport
from fisher_keras.experiments.training.callbacks import TrainingDivergedError
from fisher_keras.experiments.training.config import TrainingConfig, resolve
from fisher_keras.experiments.training.data import TrainingData, load_training_data
from fisher_keras.experiments.training.train import train
from fisher_keras.models.recipes import (
    RegularizerSettings,
    settings_file,
    write_regularizer_settings,
)

SEARCHED = ("beta", "num_sub_batches", "clip_norm")
SAMPLERS = ("grid", "tpe")

# Of successive halving: the best quarter of the trials goes on after an eighth of the epochs, and
# the best quarter of these after half of them.
_FIRST_HALVING = 8
_REDUCTION_FACTOR = 4
# Where a network is trained, but not how.
_NOT_DECISIVE = {"data_dir", "download", "output_dir", "resume"}


@dataclasses.dataclass(frozen=True)
class TuningConfig:
    """A search.

    Attributes:
        training: how each network is trained, `regularize` set and the `SEARCHED` fields None;
            its `output_dir` is the search's.
        candidates: the values of each of `SEARCHED`: beta, M and tau.
        sampler: "grid" for all combinations, "tpe" for those that a tree-structured Parzen
            estimator chooses.
        prune: whether successive halving ends bad trials early.
        num_trials: trials of the TPE; None for the grid.
        storage: URL of the study's database, see `open_study`; None for `study.db` in the output
            directory, an SQLite file: for processes on one machine.
        write_settings: whether the best values are put into `settings_file()`.
        preset: name of what `training` and `candidates` were taken from.
    """

    training: TrainingConfig
    candidates: Mapping[str, tuple[float, ...]]
    sampler: str = "grid"
    prune: bool = False
    num_trials: int | None = None
    storage: str | None = None
    write_settings: bool = False
    preset: str | None = None

    def __post_init__(self) -> None:
        """Checks the search.

        Raises:
            ValueError: if a value cannot be used.
        """
        if self.sampler not in SAMPLERS:
            raise ValueError(f"--sampler must be grid or tpe, got {self.sampler!r}")
        if self.sampler == "grid" and self.num_trials is not None:
            raise ValueError(
                "--num_trials has no effect on a grid: leave it out, or add --sampler=tpe"
            )
        if self.training.validation_size < 1:
            raise ValueError(
                "--validation_size must be at least 1: the error on these images decides"
            )
        batch_size = resolve(self.training).batch_size
        for name in SEARCHED:
            values = self.candidates[name]
            if not values or len(set(values)) < len(values):
                raise ValueError(f"--{name} must be one or several different values")
            for value in values:
                dataclasses.replace(self.training, **{name: value})  # Checks it.
                if name == "num_sub_batches" and value > batch_size:
                    raise ValueError(
                        f"--num_sub_batches must be at most the {batch_size} images of a batch, "
                        f"got {value}"
                    )
        num_combinations = math.prod(len(self.candidates[name]) for name in SEARCHED)
        if self.sampler == "tpe" and not 1 <= (self.num_trials or 0) <= num_combinations:
            raise ValueError(
                f"--num_trials must be from 1 to the {num_combinations} combinations of --beta, "
                f"--num_sub_batches and --clip_norm, got {self.num_trials}"
            )

    def settings(self) -> dict[str, Any]:
        """Returns what decides a trial's result, for JSON.

        More trials of a TPE, or another place for the files, leave the study the same.
        """
        training = dataclasses.asdict(resolve(self.training))
        return {
            **{key: training[key] for key in training if key not in {*_NOT_DECISIVE, *SEARCHED}},
            **{name: list(self.candidates[name]) for name in SEARCHED},
            "sampler": self.sampler,
            "prune": self.prune,
        }

    def places(self) -> list[dict[str, float]]:
        """Returns the trials of the search, each with the values that are fixed in it."""
        if self.sampler == "tpe":
            return [{} for _ in range(self.num_trials)]
        combinations = itertools.product(*(self.candidates[name] for name in SEARCHED))
        return [dict(zip(SEARCHED, values, strict=True)) for values in combinations]


def tune(config: TuningConfig) -> dict[str, Any]:
    """Carries out a search; a stopped or killed one goes on, also within a trial.

    Several processes that are started in the same way share the trials. The objective is the
    validation error after the last epoch: of the network that one would keep, while the best of
    all epochs would be chosen on the same images that judge it. All trials have the same seed and
    so the same split, initial weights and batches. A trial that diverges counts as infinitely bad.

    The output directory gets `tuning.json` (what this function returns), `trials.csv` and
    `trials/`, for each combination the directory of its training run and a log beside it.

    Args:
        config: the search.

    Returns:
        A dict for JSON: `settings`, `preset`, `versions`, `git_revision`, `device`; `trials`, the
        finished ones from best to worst; `best`, the first of them, or None if none has been
        trained to its end.

    Raises:
        ValueError: if a setting, the data or the database cannot be used, or the output directory
            holds another search.
        OSError: if data or output cannot be read or written.
        ArithmeticError: if all trials have diverged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # The epoch that a killed trial was in is trained and reported again.
        warnings.filterwarnings("ignore", message="The reported value is ignored")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return _tune(config)


def _tune(config: TuningConfig) -> dict[str, Any]:
    places = config.places()
    data = load_training_data(resolve(config.training))
    # With the data: machines that have others under the same name do not share a study.
    settings = config.settings() | {"data": data.describe()["fingerprint"]}
    report = TuningReport(
        config.training.output_dir, settings, {"preset": config.preset}, SEARCHED, len(places)
    )
    local = sqlalchemy.URL.create("sqlite", database=str(report.directory.absolute() / "study.db"))
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    study = trial_queue.open_study(
        config.storage or local,
        f"tune_regularizer_{config.training.dataset}_{config.training.arch}_{digest[:8]}",
        DistinctTPESampler(config.candidates),
        _pruner(config),
    )
    report.start(study)
    trial_queue.work_through(
        study, places, _Training(config, data, report.directory), report.after_trial
    )
    content = report.write(study)
    report.print_table(study)
    if content["best"] is None:
        raise ArithmeticError(
            "all trials have diverged: search at a lower --learning_rate or --beta"
        )
    _hand_over(config, content)
    return content


def _pruner(config: TuningConfig) -> optuna.pruners.BasePruner:
    if not config.prune:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=max(1, resolve(config.training).epochs // _FIRST_HALVING),
        reduction_factor=_REDUCTION_FACTOR,
    )


def _hand_over(config: TuningConfig, content: dict[str, Any]) -> None:
    """Says how the best values are used, and writes them where the recipes find them."""
    arch, dataset = config.training.arch, config.training.dataset
    best = {name: content["best"][name] for name in SEARCHED}
    flags = " ".join(f"--{name}={value:g}" for name, value in best.items())
    print(f"\nThe best: train_cifar --arch={arch} --dataset={dataset} --regularize {flags}")
    if not config.write_settings:
        print(
            "The same command with --write_settings makes these values the defaults of "
            f"--regularize, in {settings_file()}."
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
    path = write_regularizer_settings(arch, dataset, settings, tuning)
    print(f"These values are the defaults of --regularize now, in {path}.")


class _Training:
    """The objective: trains one combination, and returns its validation error in percent."""

    def __init__(self, config: TuningConfig, data: TrainingData, directory: pathlib.Path) -> None:
        self._config = config
        self._data = data
        self._directory = directory / "trials"

    def __call__(self, trial: optuna.Trial) -> float:
        values = {
            name: trial.suggest_categorical(name, self._config.candidates[name])
            for name in SEARCHED
        }
        name = "beta{beta:g}_M{num_sub_batches}_tau{clip_norm:g}".format(**values)
        directory = self._directory / name
        directory.mkdir(parents=True, exist_ok=True)
        print(f"Training in {directory} ...", flush=True)
        training = dataclasses.replace(
            self._config.training, **values, output_dir=str(directory), resume=True
        )
        keras.utils.clear_session()  # The trials of one process would add up in memory.
        log = self._directory / f"{name}.log"
        with _claimed(directory), log.open("a") as file, contextlib.redirect_stdout(file):
            try:
                record = train(training, (_Reporter(trial),), self._data)
            except TrainingDivergedError as error:
                trial.set_user_attr("diverged", str(error))
                return math.inf
        history = record["history"]
        trial.set_user_attr("validation_cross_entropy", history["val_cross_entropy"][-1])
        trial.set_user_attr("seconds", record["wall_time_s"])
        return _error_percent(history["val_accuracy"][-1])


class _Reporter(keras.callbacks.Callback):
    """Reports each epoch's validation error, and ends a trial that the study gives up."""

    def __init__(self, trial: optuna.Trial) -> None:
        super().__init__()
        self._trial = trial

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        finished = epoch + 1
        self._trial.report(_error_percent(logs["val_accuracy"]), finished)
        if finished < self.params["epochs"] and self._trial.should_prune():
            raise optuna.TrialPruned


def _error_percent(accuracy: float) -> float:
    return round(100 * (1 - accuracy), 4)  # The accuracy is a float32.


@contextlib.contextmanager
def _claimed(directory: pathlib.Path) -> Iterator[None]:
    """Waits until no other process works in a directory, and keeps others out of it.

    One does if it stood still until its trial was given to another, or if two TPEs choose the same
    values at the same time: the second then finds the finished run.
    """
    claims = Claims()
    while (claim := claims.take(directory, on_lost=_end_process)) is None:
        time.sleep(trial_queue.POLL_S)
    with claim:
        yield


def _end_process() -> None:
    print(
        "This process stood still for so long that another goes on with its trial.",
        file=sys.stderr,
    )
    os._exit(os.EX_TEMPFAIL)
