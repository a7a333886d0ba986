"""Searches of trials that only count, carried out by several processes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import optuna
import pytest
from fake_search import STEPS
from processes import TIMEOUT, finish

from fisher_keras.experiments.search import trial_queue
from fisher_keras.experiments.search.trial_queue import finished_trials, open_study, work_through

TESTS = pathlib.Path(__file__).parents[2]
COMPLETE, FAIL = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL
VALUES = [10, 20, 30, 40, 50]

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def url(tmp_path):
    """An SQLite file, or the server that $FISHER_KERAS_TEST_DATABASE names."""
    return os.environ.get("FISHER_KERAS_TEST_DATABASE", f"sqlite:///{tmp_path}/study.db")


@pytest.fixture
def study(url, monkeypatch):
    """An empty study, with dead trials found within seconds."""
    monkeypatch.setattr(trial_queue, "HEARTBEAT_S", 1)
    monkeypatch.setattr(trial_queue, "GRACE_S", 2)
    monkeypatch.setattr(trial_queue, "POLL_S", 0.2)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = open_search(url)
    yield study
    optuna.delete_study(study_name="search", storage=study._storage)


def open_search(url):
    pruner = optuna.pruners.NopPruner()
    return open_study(url, "search", optuna.samplers.TPESampler(), pruner)


@pytest.fixture
def start(tmp_path, url, light_package):
    """Starts a process of the search; ends what is left after the test."""
    processes = []

    def start(places, **behaviour):
        given = {"directory": str(tmp_path), "url": url, "places": places, **behaviour}
        process = subprocess.Popen(
            [sys.executable, str(TESTS / "fake_search.py"), json.dumps(given)],
            env=os.environ | {"PYTHONPATH": str(light_package)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def work(study, places, objective):
    work_through(study, places, objective, after_trial=lambda study, trial: None)


def x(trial):
    return trial.suggest_categorical("x", VALUES)


def test_each_place_has_one_trial(study):
    seen = []
    places = [{"x": value} for value in VALUES]
    work_through(study, places, x, lambda study, trial: seen.append(trial.value))
    assert sorted(seen) == VALUES
    assert [trial.value for trial in finished_trials(study, 5)] == VALUES
    assert len(study.trials) == 5
    work(study, places, pytest.fail)  # Nothing is left.


def test_the_sampler_chooses_what_is_open_and_more_places_can_follow(study):
    work(study, [{}] * 3, x)
    work(study, [{}] * 7, x)
    assert len(finished_trials(study, 7)) == len(study.trials) == 7
    assert len(finished_trials(study, 3)) == 3
    assert {trial.value for trial in study.trials} <= set(VALUES)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("the disk is full")])
def test_a_trial_that_was_cut_goes_on_with_what_it_had_reported(study, error):
    def cut(trial):
        trial.report(x(trial), 1)
        raise error

    with pytest.raises(error if isinstance(error, type) else OSError):
        work(study, [{}], cut)
    work(study, [{}], x)
    first, second = study.trials
    assert (first.state, second.state) == (FAIL, COMPLETE)
    assert second.params == first.params
    assert second.intermediate_values == {1: second.value}


def test_a_pruned_trial_is_finished(study):
    def prune(trial):
        trial.report(x(trial), 1)
        raise optuna.TrialPruned

    work(study, [{"x": 30}], prune)
    (trial,) = finished_trials(study, 1)
    assert (trial.value, trial.state) == (30, optuna.trial.TrialState.PRUNED)


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")
def test_a_trial_whose_process_died_before_its_first_heartbeat_is_carried_out(study):
    study.enqueue_trial({"x": 20}, user_attrs={"place": 0})
    study.ask()
    work(study, [{"x": 20}], x)
    assert [trial.state for trial in study.trials] == [FAIL, COMPLETE]


def test_a_process_that_stood_still_too_long_leaves_its_trial_to_others(study, capsys):
    calls = []

    def stand_still(trial):
        calls.append(trial.number)
        if len(calls) <= 2:
            study.tell(trial.number, state=FAIL)  # As another process does.
        if len(calls) == 1:
            trial.report(x(trial), 1)
        return x(trial)

    work(study, [{"x": 20}], stand_still)
    assert [trial.state for trial in study.trials] == [FAIL, FAIL, COMPLETE]
    assert capsys.readouterr().out.count("another goes on with its trial") == 2


def test_of_trials_for_one_place_the_first_is_carried_out(study):
    for _ in range(3):  # As processes do that find the place empty at the same time.
        study.enqueue_trial({"x": 40}, user_attrs={"place": 0})
    work(study, [{"x": 40}, {"x": 50}], x)
    assert sorted(trial.value for trial in study.trials if trial.state == COMPLETE) == [40, 50]


def test_four_processes_at_once(tmp_path, url, start):
    places = [{"x": VALUES[index % 5]} for index in range(16)]
    processes = [start(places, step_s=0.01) for _ in range(4)]  # The database is not there yet.
    for process in processes:
        code, _, stderr = finish(process)
        assert (code, stderr) == (0, "")
    for place in range(16):
        assert (tmp_path / f"place_{place}").read_text() == "".join(f"{i}\n" for i in range(STEPS))
    study = open_search(url)
    trials = [trial for trial in study.trials if trial.state == COMPLETE]
    assert [trial.value for trial in finished_trials(study, 16)] == [p["x"] for p in places]
    assert len(trials) == 16
    optuna.delete_study(study_name="search", storage=study._storage)


def test_the_trial_of_a_killed_process_is_carried_out_by_another(tmp_path, url, start):
    places = [{"x": value} for value in VALUES]
    victim = start(places, step_s=1.0)
    place = int(victim.stdout.readline().removeprefix("place "))
    other = start(places, step_s=0.01, grace_s=3)
    deadline = time.monotonic() + TIMEOUT
    while not (tmp_path / f"place_{place}").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    code, stdout, stderr = finish(other)
    assert (code, stderr) == (0, "")
    assert f"finished {place}\n" in stdout
    study = open_search(url)
    assert [trial.value for trial in finished_trials(study, 5)] == VALUES
    states = [trial.state for trial in study.trials if trial_queue.place_of(trial) is not None]
    assert (states.count(COMPLETE), states.count(FAIL)) == (5, 1)
    optuna.delete_study(study_name="search", storage=study._storage)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("study.db", "Could not parse SQLAlchemy URL"),
        ("sqlite:////nowhere/study.db", "unable to open database file"),
        ("oracle://me:secret@host/studies", "needs a driver"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_clear_error(url, message, monkeypatch):
    monkeypatch.setattr(trial_queue, "_OPENING_ATTEMPTS", 1)
    with pytest.raises(ValueError, match="--storage") as error:
        open_search(url)
    assert message in str(error.value)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
