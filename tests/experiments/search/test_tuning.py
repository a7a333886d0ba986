"""The search for beta, M and tau: with trainings that are a formula, and with real ones."""

import csv
import dataclasses
import functools
import json
import os
import re
import signal

import fake_search
import processes
import pytest
from fake_search import CANDIDATES, EPOCHS, errors, trained_epochs
from processes import ROOT

from fisher_keras.experiments.runs.engine import EngineOptions, FailedRunsError
from fisher_keras.experiments.search import tuning
from fisher_keras.experiments.search.search_presets import TUNING_PRESETS
from fisher_keras.experiments.search.tuning import tune
from fisher_keras.experiments.search.tuning_config import TuningConfig
from fisher_keras.experiments.training import provenance
from fisher_keras.experiments.training.provenance import git_revision
from fisher_keras.experiments.training.train import TrainingConfig
from fisher_keras.models import regularizer_settings

TIMEOUT = 240
finish = functools.partial(processes.finish, timeout=TIMEOUT)
wait_for = functools.partial(processes.wait_for, timeout=TIMEOUT)


@pytest.fixture
def formula(tmp_path, light_package, monkeypatch):
    """Stands in for trainings; what it returns tells them how to behave."""
    path = os.pathsep.join(map(str, (light_package, ROOT / "tests")))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr(tuning, "execute", fake_search.execute)

    def behave(**behaviour):
        (tmp_path / "search").mkdir(exist_ok=True)
        (tmp_path / "search/behaviour.json").write_text(json.dumps(behaviour))

    return behave


@pytest.fixture
def config(tmp_path):
    training = TrainingConfig(
        dataset="digits",
        train_size=50,
        validation_size=60,
        batch_size=10,
        epochs=EPOCHS,
        regularize=True,
    )
    return TuningConfig(
        training=training,
        **CANDIDATES,
        engine=EngineOptions(num_workers=2),
        preset="smoke",
        output_dir=str(tmp_path / "search"),
    )


def states(content):
    return [row["state"] for row in content["trials"]]


def values(row):
    return row["beta"], row["num_sub_batches"], row["clip_norm"]


def test_the_grid_is_tried_and_the_best_found(config, tmp_path, formula, capsys):
    content = tune(config)
    assert len(content["trials"]) == 12
    assert list(trained_epochs(tmp_path / "search").values()) == [list(range(EPOCHS))] * 12
    assert values(content["best"]) == (50, 8, 5)
    assert content["best"]["validation_error_percent"] == pytest.approx(20)
    found = [row["validation_error_percent"] for row in content["trials"]]
    assert found == sorted(found)
    for row in content["trials"]:
        assert row["validation_error_percent"] == pytest.approx(errors(row)[-1])
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


def test_the_best_values_are_put_into_a_table(config, tmp_path, formula, capsys):
    path = tmp_path / "mine" / "settings.json"
    tune(config)
    assert not path.exists()
    assert "The same command with --settings_file" in capsys.readouterr().out
    tune(dataclasses.replace(config, settings_file=str(path)))
    settings = regularizer_settings("cnn", "digits", path)
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


def test_no_clipping_can_be_the_best(config, tmp_path, formula):
    path = tmp_path / "settings.json"
    tune(dataclasses.replace(config, clip_norm=(0.0,), settings_file=str(path)))
    assert regularizer_settings("cnn", "digits", path).clip_norm is None


def test_diverged_trials_are_the_worst_and_not_the_end(config, formula, capsys):
    formula(diverging=[50.0])
    content = tune(config)
    assert states(content) == ["complete"] * 8 + ["diverged"] * 4
    assert values(content["best"]) == (10, 8, 5)
    assert content["trials"][-1]["validation_error_percent"] is None
    assert "diverged in epoch 3" in capsys.readouterr().out


def test_there_is_no_best_if_all_diverge(config, formula):
    formula(diverging=[10.0, 50.0, 125.0])
    with pytest.raises(ArithmeticError, match="all trials have diverged: search at a lower"):
        tune(config)


def test_trainings_that_fail_are_named_and_go_on_with_the_next_command(config, tmp_path, formula):
    formula(failing=[50.0])
    message = r"4 runs failed: beta 50, M \d, tau \d: ValueError: no luck \(see .*run\.log\)"
    with pytest.raises(FailedRunsError, match=message):
        tune(config)
    formula()
    assert states(tune(config)) == ["complete"] * 12
    assert set(map(len, trained_epochs(tmp_path / "search").values())) == {EPOCHS}


def test_another_search_and_uncommitted_changes_are_refused(
    config, tmp_path, formula, monkeypatch
):
    tune(config)
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=1))
    with pytest.raises(ValueError, match=r"another search: seed was 0, is 1\. Give another --out"):
        tune(other)
    monkeypatch.setattr(provenance, "git_revision", lambda: "abc-dirty")
    for_results = dataclasses.replace(config, preset="laptop")
    tune(for_results)  # There is nothing to train.
    with pytest.raises(ValueError, match=r"--preset=laptop is for results, .* commit them"):
        tune(dataclasses.replace(for_results, output_dir=str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_sub_batches": (4, 16)},
            "at most the 10 images of a b",
        ),
        ({"beta": (-1.0,)}, "--beta must be a number, 0 or greater"),
        ({"beta": ()}, "--beta must be one or several different val"),
        ({"clip_norm": (5.0, 5.0)}, "--clip_norm must be one or sev"),
        ({"beta": (10.0, 10.000001)}, "--beta must be one or sev"),
        ({"num_trials": 5}, "--num_trials has no effect on a grid"),
        ({"sampler": "tpe", "num_trials": 0}, "--num_trials must be from 1 to the 12 comb"),
        (
            {"sampler": "tpe", "num_trials": 13},
            "--num_trials must be from 1 to the 12 combinations",
        ),
        ({"sampler": "cma"}, "--sampler must be one of grid, tpe, got 'cma'"),
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


@pytest.mark.nightly
def test_a_killed_search_goes_on_within_a_training(tmp_path, monkeypatch, run_command):
    flags = ["--preset=smoke", "--epochs=4", "--num_workers=2"]
    flags += [f"--output_dir={tmp_path}", "--beta=10", "--clip_norm=1"]
    trial = tmp_path / "trials" / "beta10_M4_tau1"
    victim = processes.start(ROOT / "bin" / "tune_regularizer", *flags)
    wait_for(trial / "run.json", victim)
    victim.send_signal(signal.SIGKILL)
    assert finish(victim)[0] == -signal.SIGKILL
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    status, output, errors = run_command("tune_regularizer", *flags)
    assert status == 0, errors
    assert "trial 1/1  " in output
    (row,) = json.loads((tmp_path / "tuning.json").read_text())["trials"]
    assert values(row) == (10, 4, 1)
    with (trial / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    assert [int(epoch["epoch"]) for epoch in history] == list(range(4))
    error = 100 * (1 - float(history[-1]["val_accuracy"]))
    assert row["validation_error_percent"] == pytest.approx(error, abs=1e-4)
    assert (row["state"], row["epochs"]) == ("complete", 4)
    assert json.loads((trial / "run.json").read_text())["status"] == "finished"
    assert not processes.run_processes(tmp_path)


def test_a_mistake_gets_one_clear_line(run_command):
    assert run_command("tune_regularizer", "--preset=smoke", "--beta=10,high") == (
        1,
        "",
        "tune_regularizer: --beta must be numbers with commas between: could not convert string "
        "to float: 'high'\n",
    )


def test_a_search_of_version_0_2_goes_on(config, tmp_path, formula, capsys):
    """Its trials do not tell their commits, others may have several."""
    tune(config)
    first, second, *_ = sorted(tmp_path.glob("search/runs/*/record.json"))
    for record, revisions in ((first, None), (second, {"git_revisions": ["old", "new"]})):
        content = json.loads(record.read_text())
        del content["result"]["git_revisions"]
        content["result"] |= revisions or {}
        record.write_text(json.dumps(content) + "\n")
    path = tmp_path / "search/tuning.json"
    content = json.loads(path.read_text())
    content["settings"]["prune"] = False
    path.write_text(json.dumps(content))
    content = tune(config)
    assert states(content) == ["complete"] * 12
    assert set(content["git_revisions"]) == {None, "old", "new", git_revision()}
    assert "The trials are of several commits: " in capsys.readouterr().out


def test_the_presets_values_and_flags_meet(run_command, replace_function):
    done = []
    replace_function(done.append)
    flags = ["--preset=smoke", "--arch=resnet", "--beta=3", "--sampler=tpe", "--num_workers=2"]
    assert run_command("tune_regularizer", *flags, "--num_trials=2", "--epochs=5")[0] == 0
    (config,) = done
    assert config.candidates == {"beta": [3.0], "num_sub_batches": [4], "clip_norm": [1.0, 10.0]}
    assert (config.num_trials, config.engine.num_workers) == (2, 2)
    training = config.training
    assert (training.width, training.epochs, training.regularize) == (4, 5, True)
    assert (training.dataset, training.beta, training.output_dir) == ("digits", None, None)
