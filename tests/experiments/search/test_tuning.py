"""The search for beta, M and tau: with trainings that are a formula, and with real ones."""

import csv
import dataclasses
import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import optuna
import processes
import pytest

from fisher_keras.experiments.search import trial_queue, tuning
from fisher_keras.experiments.search.flags import TUNING_PRESETS
from fisher_keras.experiments.search.tuning import TuningConfig, tune
from fisher_keras.experiments.training.train import TrainingConfig, TrainingDivergedError
from fisher_keras.models.recipes import SETTINGS_VARIABLE, regularizer_settings

ROOT = pathlib.Path(__file__).parents[3]
TIMEOUT = 240
finish = functools.partial(processes.finish, timeout=TIMEOUT)
wait_for = functools.partial(processes.wait_for, timeout=TIMEOUT)
CANDIDATES = {"beta": (10.0, 50.0, 125.0), "num_sub_batches": (4, 8), "clip_norm": (0.0, 5.0)}
EPOCHS = 8


def errors(config):
    """The validation errors of the epochs in percent; beta 50, M 8, tau 5 is the best."""
    last = (
        20 + abs(config.beta - 50) / 10 + (config.num_sub_batches == 4) + (config.clip_norm == 0)
    )
    return last + 5.0 * np.arange(EPOCHS)[::-1]


class FormulaTraining:
    """Stands in for `train`: the epochs' errors are `errors`, and a run that is cut goes on."""

    def __init__(self):
        self.epochs = {}  # Directory -> those that were trained.
        self.cut_at = None  # (beta, epoch) at which Ctrl-C is pressed, once.
        self.diverging = set()  # Values of beta.

    def __call__(self, config, callbacks, data):
        assert len(data.validation[0]) == config.validation_size
        assert config.regularize
        assert config.resume
        for callback in callbacks:
            callback.set_params({"epochs": EPOCHS})
        accuracies = list(1 - errors(config) / 100)
        done = self.epochs.setdefault(config.output_dir, [])
        for epoch in range(len(done), EPOCHS):
            if self.cut_at == (config.beta, epoch):
                self.cut_at = None
                raise KeyboardInterrupt
            if config.beta in self.diverging and epoch == 2:
                raise TrainingDivergedError("the training loss became nan")
            for callback in callbacks:
                callback.on_epoch_end(epoch, {"val_accuracy": accuracies[epoch]})
            done.append(epoch)
        return {
            "history": {"val_accuracy": accuracies, "val_cross_entropy": [0.5] * EPOCHS},
            "wall_time_s": 3.0,
        }


@pytest.fixture
def formula(monkeypatch):
    formula = FormulaTraining()
    monkeypatch.setattr(tuning, "train", formula)
    monkeypatch.setattr(tuning.keras.utils, "clear_session", lambda: None)  # Takes a second.
    return formula


@pytest.fixture
def config(tmp_path):
    training = TrainingConfig(
        dataset="digits",
        train_size=50,
        validation_size=60,
        batch_size=10,
        epochs=EPOCHS,
        regularize=True,
        output_dir=str(tmp_path / "search"),
    )
    return TuningConfig(training, CANDIDATES, preset="smoke")


def states(content):
    return [row["state"] for row in content["trials"]]


def values(row):
    return row["beta"], row["num_sub_batches"], row["clip_norm"]


def test_the_grid_is_tried_and_the_best_found(config, tmp_path, formula, capsys):
    content = tune(config)
    assert len(content["trials"]) == len(formula.epochs) == 12
    assert values(content["best"]) == (50, 8, 5)
    assert content["best"]["validation_error_percent"] == pytest.approx(20)
    found = [row["validation_error_percent"] for row in content["trials"]]
    assert found == sorted(found)
    for row in content["trials"]:
        trained = TrainingConfig(
            regularize=True, **dict(zip(CANDIDATES, values(row), strict=True))
        )
        assert row["validation_error_percent"] == pytest.approx(errors(trained)[-1])
    assert json.loads((tmp_path / "search/tuning.json").read_text()) == content
    with (tmp_path / "search/trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["validation_error_percent"]) for row in rows] == found
    printed = capsys.readouterr().out
    assert "\n  validation_size: 60\n" in printed
    assert re.search(
        r"trial 12/12  beta \d+, M \d, tau \d: validation error \d\d\.\d\d%;", printed
    )
    assert "| beta | M | tau | validation error (%) |" in printed
    assert "\n| 50 | 8 | 5 | 20.00 | 0.5000 | 8 | complete |\n| 50 | " in printed
    assert "--regularize --beta=50 --num_sub_batches=8 --clip_norm=5\n" in printed
    assert content["settings"]["epochs"] == EPOCHS
    assert content["preset"] == "smoke"
    assert content["versions"]["fisher_keras"]


def test_the_best_values_become_those_of_the_recipes(
    config, tmp_path, formula, monkeypatch, capsys
):
    path = tmp_path / "mine" / "settings.json"
    monkeypatch.setenv(SETTINGS_VARIABLE, str(path))
    tune(config)
    assert not path.exists()
    assert "The same command with --write_settings" in capsys.readouterr().out
    tune(dataclasses.replace(config, write_settings=True))
    settings = regularizer_settings("cnn", "digits")
    assert dataclasses.astuple(settings) == (1e-4, 50.0, 8, 5.0)
    assert json.loads(path.read_text())["digits"]["cnn"]["tuning"] == {
        "validation_error_percent": 20.0,
        "trials": 12,
        "preset": "smoke",
        "train_size": 50,
        "validation_size": 60,
        "epochs": EPOCHS,
        "seed": 0,
    }


def test_no_clipping_can_be_the_best(config, tmp_path, formula, monkeypatch):
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "settings.json"))
    candidates = CANDIDATES | {"clip_norm": (0.0,)}
    tune(dataclasses.replace(config, candidates=candidates, write_settings=True))
    assert regularizer_settings("cnn", "digits").clip_norm is None


def test_after_ctrl_c_the_trial_goes_on(config, formula):
    formula.cut_at = (50, 5)
    with pytest.raises(KeyboardInterrupt):
        tune(config)
    content = tune(config)
    assert states(content) == ["complete"] * 12
    assert all(epochs == list(range(EPOCHS)) for epochs in formula.epochs.values())


def test_diverged_trials_are_the_worst_and_not_the_end(config, formula, capsys):
    formula.diverging = {50.0}
    content = tune(config)
    assert states(content) == ["complete"] * 8 + ["diverged"] * 4
    assert values(content["best"]) == (10, 8, 5)
    assert content["trials"][-1]["validation_error_percent"] is None
    assert "diverged in epoch 3" in capsys.readouterr().out


def test_there_is_no_best_if_all_diverge(config, formula):
    formula.diverging = {10.0, 50.0, 125.0}
    with pytest.raises(ArithmeticError, match="all trials have diverged: search at a lower"):
        tune(config)


def test_successive_halving_ends_bad_trials_early(config, formula, monkeypatch):
    monkeypatch.setattr(trial_queue.random, "choice", max)  # The grid from its end.
    content = tune(dataclasses.replace(config, prune=True))
    # From the second trial on only what is the best so far, or from the eighth in the best
    # quarter, goes on after epoch 1: by `errors` that is the first with beta 50.
    assert states(content) == ["complete"] * 2 + ["pruned"] * 10
    assert [values(row) for row in content["trials"][:2]] == [(50, 8, 5), (125, 8, 5)]
    assert [row["epochs"] for row in content["trials"]] == [EPOCHS] * 2 + [1] * 10
    # An epoch that a trial is ended in does not count as trained.
    assert sorted(map(len, formula.epochs.values())) == [0] * 10 + [EPOCHS] * 2


def test_tpe_tries_as_many_as_asked_and_can_go_on(config, formula):
    tpe = dataclasses.replace(config, sampler="tpe", num_trials=3)
    assert len(tune(tpe)["trials"]) == 3
    content = tune(dataclasses.replace(tpe, num_trials=12))
    assert len(formula.epochs) == len(content["trials"]) == 12  # Nothing twice.
    assert values(content["best"]) == (50, 8, 5)


def test_another_search_in_the_same_directory_is_refused(config, formula):
    tune(config)
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=1))
    with pytest.raises(ValueError, match=r"another search: seed was 0, is 1\. Give another --out"):
        tune(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"candidates": CANDIDATES | {"num_sub_batches": (4, 16)}},
            "at most the 10 images of a b",
        ),
        ({"candidates": CANDIDATES | {"beta": (-1.0,)}}, "--beta must be a number, 0 or greater"),
        ({"candidates": CANDIDATES | {"beta": ()}}, "--beta must be one or several different val"),
        ({"candidates": CANDIDATES | {"clip_norm": (5.0, 5.0)}}, "--clip_norm must be one or sev"),
        ({"num_trials": 5}, "--num_trials has no effect on a grid"),
        ({"sampler": "tpe", "num_trials": 0}, "--num_trials must be from 1 to the 12 comb"),
        (
            {"sampler": "tpe", "num_trials": 13},
            "--num_trials must be from 1 to the 12 combinations",
        ),
        ({"sampler": "cma"}, "--sampler must be grid or tpe, got 'cma'"),
    ],
)
def test_impossible_searches_are_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)


def test_a_search_needs_validation_images(config):
    training = dataclasses.replace(config.training, validation_size=0)
    with pytest.raises(ValueError, match="--validation_size must be at least 1"):
        dataclasses.replace(config, training=training)


def test_the_paper_preset_is_section_7_2():
    paper = TUNING_PRESETS["paper"]
    assert paper.candidates == {
        "beta": (10, 20, 30, 40, 50, 75, 100, 125),
        "num_sub_batches": (4, 8, 16),
        "clip_norm": (1, 5, 10, 15),
    }
    assert paper.training == {"validation_size": 5000}
    assert paper.networks == {}


# ---------------------------------------------------------------------------- bin/tune_regularizer


def start(*flags):
    """Starts the script, with dead processes found within seconds."""
    code = (
        "import runpy; from fisher_keras.experiments.search import trial_queue; "
        "trial_queue.HEARTBEAT_S, trial_queue.GRACE_S, trial_queue.POLL_S = 1, 15, 0.5; "
        f"runpy.run_path({str(ROOT / 'bin/tune_regularizer')!r}, run_name='__main__')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_on_one_study_one_of_them_killed(tmp_path):
    flags = ["--preset=smoke", "--epochs=6", f"--output_dir={tmp_path}"]
    flags += ["--beta=10,50,125", "--clip_norm=1"]
    victim, other = start(*flags), start(*flags)
    line = next(line for line in victim.stdout if line.startswith("Training in "))
    directory = pathlib.Path(line.removeprefix("Training in ").removesuffix(" ...\n"))
    wait_for(directory / "backup" / "epoch_2", victim)
    victim.send_signal(signal.SIGKILL)
    assert finish(victim)[0] == -signal.SIGKILL
    assert json.loads((directory / "run.json").read_text())["status"] == "running"
    code, stdout, stderr = finish(other)
    assert code == 0, stderr

    storage = f"sqlite:///{tmp_path}/study.db"
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).get_trials(
        states=[optuna.trial.TrialState.COMPLETE]
    )
    points = [(beta, 4, 1) for beta in (10, 50, 125)]
    assert sorted(values(trial.params) for trial in trials) == points
    assert all(list(trial.intermediate_values) == [1, 2, 3, 4, 5, 6] for trial in trials)
    content = json.loads((tmp_path / "tuning.json").read_text())
    assert sorted(map(values, content["trials"])) == points
    assert "\ntrial 3/3  " in stdout
    for row in content["trials"]:
        beta, num_sub_batches, tau = values(row)
        run_directory = tmp_path / "trials" / f"beta{beta:g}_M{num_sub_batches}_tau{tau:g}"
        run = json.loads((run_directory / "run.json").read_text())
        assert run["status"] == "finished"
        assert len(run["history"]["loss"]) == 6
        error = 100 * (1 - run["history"]["val_accuracy"][-1])
        assert row["validation_error_percent"] == pytest.approx(error, abs=1e-4)
        resumed = [time["after_epochs"] for time in run["resumed"]]
        assert resumed[0] >= 2 if run_directory == directory else resumed == [], resumed


def test_mistakes_get_one_clear_line(tmp_path):
    mistakes = {
        ("--beta=10,high",): "--beta must be numbers with commas between",
        ("--storage=study.db",): "--storage cannot be used",
    }
    usual = ["--preset=smoke", f"--output_dir={tmp_path}"]
    processes = [(start(*usual, *flags), message) for flags, message in mistakes.items()]
    for process, message in processes:
        code, _, stderr = finish(process)
        assert code == 1
        assert message in stderr.splitlines()[-1]
        assert "Traceback" not in stderr
