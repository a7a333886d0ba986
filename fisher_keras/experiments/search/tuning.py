"""Choice of beta, M and tau on a validation split (Section 7.2): `bin/tune_regularizer`."""

import dataclasses
import functools
import warnings
from typing import Any

import optuna

from fisher_keras.experiments.names import folder_name
from fisher_keras.experiments.runs.experiment import absolute, check_preset, free_gpus
from fisher_keras.experiments.runs.runner import execute_missing, print_plan
from fisher_keras.experiments.runs.store import ExperimentStore, Run
from fisher_keras.experiments.search.search_trials import Trials, combinations
from fisher_keras.experiments.search.trial_run import execute, trial_run
from fisher_keras.experiments.search.tuning_config import SEARCHED, TuningConfig
from fisher_keras.experiments.search.tuning_report import TuningReport
from fisher_keras.experiments.training.arch import network_settings
from fisher_keras.experiments.training.config import resolve
from fisher_keras.experiments.training.data import load_training_data
from fisher_keras.models import RegularizerSettings, write_regularizer_settings


def tune(config: TuningConfig) -> dict[str, Any]:
    """Carries out a search, or prints its plan; a stopped one goes on, also within a trial.

    The objective is the validation error after the last epoch: of the network that one would
    keep, while the best of all epochs would be chosen on the same images that judge it. All trials
    have the same seed and so the same split, initial weights and batches. A trial that diverges
    counts as infinitely bad.

    The output directory is an `ExperimentStore`. It also gets `tuning.json` (what this function
    returns), `trials.csv` and `trials/`, for each combination the directory of its training run.

    Args:
        config: The search.

    Returns:
        A dict for JSON, empty for a plan: `settings`, `preset`; `versions`, `git_revision` and
        `device` of this command; `git_revisions`, those of the trials, None if one is not known;
        `trials`, the finished ones from best to worst; `best`, the first of them, or None if all
        have diverged.

    Raises:
        ValueError: If a setting or the data cannot be used, the output directory holds another
            search, another command works on it, or a checkout has uncommitted changes and the
            preset is one for results.
        OSError: If data or output cannot be read or written, or Dask is out of reach.
        FailedRunsError: If trainings failed; all others are finished.
        ArithmeticError: If all trials have diverged.
    """
    training = config.training
    names = f"{folder_name(training.dataset)}_{folder_name(training.arch)}"
    default = f"runs/tune_{names}_{config.preset}"
    store = ExperimentStore(config.output_dir or default)
    gpus = free_gpus()
    # With the data: machines that have others under the same name do not share a search.
    fingerprint = load_training_data(resolve(training)).describe()["fingerprint"]

    def run_of(values: dict[str, float]) -> Run:
        return trial_run(dataclasses.replace(training, **values), fingerprint)

    data_dir = absolute(training.data_dir)
    if config.dry_run:
        runs = list(map(run_of, combinations(config.candidates)[: config.num_trials]))
        print_plan(runs, store, config.engine, gpus, config.preset != "smoke", data_dir)
        return {}
    function = functools.partial(execute, data_dir=data_dir, download=training.download)
    with store.locked(), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        trials = Trials(config.candidates, config.num_trials, run_of, store, training.seed)
        if len(trials.rows()) < trials.num_trials:
            check_preset(config.preset)
        settings = config.settings() | {"data": fingerprint} | network_settings(training.arch)
        report = TuningReport(store.directory, settings, config.preset, trials)
        execute_missing(trials.next_run, function, store, config.engine, gpus, report)
        content = report.write()
    report.print_table()
    if content["best"] is None:
        raise ArithmeticError(
            "all trials have diverged: search at a lower --learning_rate or --beta"
        )
    _report_best(config, content)
    return content


def _report_best(config: TuningConfig, content: dict[str, Any]) -> None:
    """Prints and stores the best values."""
    arch, dataset = config.training.arch, config.training.dataset
    best = {name: content["best"][name] for name in SEARCHED}
    flags = " ".join(f"--{name}={value:g}" for name, value in best.items())
    print(f"\nThe best values: train_cifar --arch={arch} --dataset={dataset} --regularize {flags}")
    if config.settings_file is None:
        print(
            "The same command with --settings_file=PATH writes these values into a table, which "
            "train_cifar --regularize takes under the same name."
        )
        return
    # No clipping is 0 as a flag, but None in the table.
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
    print(f"Or --regularize --settings_file={config.settings_file}: the table has them now.")
