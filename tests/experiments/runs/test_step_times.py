"""Times of a plan: a measured step of each kind of network, times the number of steps."""

import dataclasses

import pytest
from fake_experiment import fake_runs

from fisher_keras.experiments.runs import step_times
from fisher_keras.experiments.runs.presets import MetricSettings
from fisher_keras.experiments.runs.progress import RunProgress
from fisher_keras.experiments.runs.step_times import measured_seconds, training_seconds
from fisher_keras.experiments.runs.store import Record
from fisher_keras.experiments.runs.trained_run import trained_run
from fisher_keras.experiments.training import measured_step
from fisher_keras.experiments.training.config import TrainingConfig, resolve

TINY = TrainingConfig(dataset="digits", width=0.125, train_size=60, batch_size=20, epochs=4)


def run_of(**changes):
    training = dataclasses.replace(TINY, **changes)
    return trained_run("test", training, MetricSettings(("trace",)), "tiny")


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({"epochs": 2, "train_size": 41, "batch_size": 20}, 2 * 3),
        ({"epochs": 2, "train_size": 40, "confusion_size": 1, "batch_size": 20}, 2 * 3),
        ({"epochs": 1, "batch_size": 100, "validation_size": 40}, 14),  # Of 1,400 digits.
        ({"dataset": "cifar10", "epochs": 3, "batch_size": 128}, 3 * 391),
    ],
)
def test_a_training_takes_its_steps(training, steps):
    assert training_seconds({"dataset": "digits", **training}, 0.5) == 0.5 * steps


def test_a_step_of_each_kind_is_measured_once():
    runs = [run_of(), run_of(epochs=8), run_of(method="fisher", beta=160.0, num_sub_batches=2)]
    seconds = measured_seconds([*runs, *fake_runs(1)], {}, None)
    assert seconds.keys() == {run.key for run in runs}
    plain, longer, regularized = (seconds[run.key] for run in runs)
    assert plain > 0
    assert longer == pytest.approx(2 * plain)
    assert regularized not in (plain, longer)


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ({}, 3.0),
        ({"interval": 10}, 0.9 * 1.0 + 0.1 * 3.0),
        # The learning rate of the CNN falls at a half and at three quarters.
        ({"beta_phases": "0,1,0.1"}, 0.5 * 1.0 + 0.5 * 3.0),
        ({"beta_phases": "0,0,1", "interval": 5, "strength": 1.0}, 0.95 * 1.0 + 0.05 * 3.0),
    ],
)
def test_steps_without_the_regularizer_count_as_such(options, mean, monkeypatch):
    """A regularized step takes 3 s here, and a plain one 1 s."""
    monkeypatch.setattr(measured_step, "build_models", lambda config, _: (None, config))
    monkeypatch.setattr(
        measured_step, "_step_seconds", lambda config, _: 1.0 if config.beta == 0 else 3.0
    )
    config = resolve(dataclasses.replace(TINY, method="fisher", **options))
    assert measured_step.mean_step_seconds(config, None, None) == pytest.approx(mean)


@pytest.mark.nightly
def test_a_measurement_that_fails_is_said(capsys):
    assert measured_seconds([run_of(dataset="folder")], {}, "/no") == {}
    assert "The measurement failed: " in capsys.readouterr().out


def test_runs_without_networks_are_not_measured(monkeypatch, capsys):
    monkeypatch.setattr(step_times.subprocess, "run", None)
    assert measured_seconds(fake_runs(2), {}, None) == {}
    assert capsys.readouterr().out == ""


def test_a_plan_has_times_of_other_seeds_and_else_measured_ones(capsys):
    runs = [run_of(), run_of(seed=1), run_of(epochs=8)]
    record = Record(runs[0].key, **runs[0].definition, wall_time_s=60.0, result={})
    progress = RunProgress(runs, [record])
    assert progress.without_time() == [runs[2]]
    progress.print_plan(1, {runs[2].key: 100.0})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["0:01:00", "0:01:40", "0:02:40"]
