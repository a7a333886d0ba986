"""The trials of a search whose trainings are a formula: what is proposed, judged and told."""

import json
import math
import pathlib
import random
import statistics
import time

import fake_search
import optuna
import pytest
from fake_search import CANDIDATES, EPOCHS, errors, run_of, trained_epochs
from processes import Cluster, Processes, finish, run_processes, wait_until

from fisher_keras.experiments.runs.store import ExperimentStore
from fisher_keras.experiments.search.trials import (
    Trials,
    finished_trials,
    open_study,
    rungs_of,
)

TESTS = pathlib.Path(__file__).parents[2]
COMPLETE, PRUNED = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(autouse=True)
def quiet_optuna():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def store(tmp_path):
    directory = tmp_path / "store"
    directory.mkdir()
    return ExperimentStore(directory)


def open_search(store, storage=None, seed=0):
    return open_study(storage, store.directory / "study.journal", "search", seed)


def search(store, num_trials=None, prune=False, storage=None, seed=0, most=math.inf):
    """Carries out a search here, one run after the other, at most so many; returns the study."""
    rungs, study = rungs_of(EPOCHS, prune), open_search(store, storage, seed)
    trials = Trials(study, CANDIDATES, num_trials, rungs, run_of, store, lambda number: None)
    while most > 0 and (run := trials.next_run()):
        store.write_definition(run, fake_search.execute)
        result = fake_search.execute(run, store.run_directory(run))
        store.finish(run, result, 1.0)
        trials.ended(run, store.record(run))
        most -= 1
    return study


def told(study):
    """Returns what the finished trials have come to, by their values."""
    return {
        (*trial.params.values(),): (trial.state, trial.last_step, trial.value)
        for trial in finished_trials(study)
    }


GRID = {
    (beta, m, tau): errors({"beta": beta, "num_sub_batches": m, "clip_norm": tau})
    for beta in CANDIDATES["beta"]
    for m in CANDIDATES["num_sub_batches"]
    for tau in CANDIDATES["clip_norm"]
}
WHOLE_GRID = {values: (COMPLETE, EPOCHS, GRID[values][-1]) for values in GRID}


# ------------------------------------------------------------------------------ in one process


def test_the_grid_is_trained_in_order_and_every_epoch_is_reported(store):
    study = search(store)
    assert [(*trial.params.values(),) for trial in study.trials] == list(GRID)
    assert told(study) == WHOLE_GRID
    for trial in study.trials:
        reported = GRID[(*trial.params.values(),)]
        assert trial.intermediate_values == dict(enumerate(reported, start=1))


@pytest.mark.parametrize("kills", [0, 1, 3, 7, 13, 15])
def test_of_a_grid_the_best_quarter_goes_on_at_each_rung(store, kills):
    assert rungs_of(EPOCHS, prune=True) == [1, 4, EPOCHS]
    search(store, prune=True, most=kills)  # As a command does that is then killed.
    study = search(store, prune=True)
    best = sorted(GRID, key=lambda values: GRID[values][0])
    expected = {values: (PRUNED, 1, GRID[values][0]) for values in best[3:]}
    expected |= {values: (PRUNED, 4, GRID[values][3]) for values in best[1:3]}
    assert told(study) == expected | {best[0]: WHOLE_GRID[best[0]]}
    trained = sorted(map(len, trained_epochs(store.directory).values()))
    assert trained == [1] * 9 + [4] * 2 + [EPOCHS]


def test_the_tpe_tries_nothing_twice_and_can_go_on(store):
    assert len(told(search(store, num_trials=5))) == 5
    assert len(told(search(store, num_trials=9, seed=1))) == 9
    assert told(search(store, num_trials=12)) == WHOLE_GRID


def test_the_tpe_is_the_same_with_the_same_seed(tmp_path):
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        found.append(list(told(search(ExperimentStore(tmp_path / name), num_trials=5, seed=seed))))
    assert found[0] == found[1] != found[2]


def test_the_tpe_learns(store):
    study = optuna.create_study(sampler=open_search(store).sampler)  # In memory: it is faster.
    space = {"x": range(10), "y": range(10)}
    trials = Trials(study, space, 40, [1], lambda v, e: run_of(v, e), store, lambda number: None)
    values = []
    while run := trials.next_run():
        values.append(sum(v**2 for v in run.config["training"].values()))
        result = {"validation_error_percent": values[-1:], "validation_cross_entropy": []}
        trials.ended(run, {"result": result})
    assert len(set(map(str, (trial.params for trial in finished_trials(study))))) == 40
    everywhere = statistics.fmean(x**2 + y**2 for x in range(10) for y in range(10))
    assert statistics.fmean(values[10:]) < everywhere  # The first ten are random.


def test_the_tpe_prunes_against_those_that_came_before(store):
    states = [state for state, _, _ in told(search(store, num_trials=12, prune=True)).values()]
    assert states[0] == COMPLETE
    assert 6 <= states.count(PRUNED) < 12


def test_a_command_that_was_killed_as_it_asked_goes_on(store):
    search(store, most=3)
    open_search(store).ask()  # It is a trial already, but has no values.
    assert told(search(store)) == WHOLE_GRID


def test_so_does_that_of_a_tpe(store):
    search(store, num_trials=5, most=3)
    open_search(store).ask()
    assert len(told(search(store, num_trials=12))) == 12


def test_a_lost_study_is_told_again_from_the_records(store):
    before = told(search(store, num_trials=5))
    (store.directory / "study.journal").unlink()
    epochs = trained_epochs(store.directory)
    assert told(search(store, num_trials=5, seed=7)) == before
    assert trained_epochs(store.directory) == epochs


def test_a_database_takes_the_place_of_the_journal(tmp_path, store):
    url = f"sqlite:///{tmp_path}/study.db"
    search(store, storage=url, most=7)
    assert told(search(store, storage=url)) == WHOLE_GRID
    assert not (store.directory / "study.journal").exists()


def test_a_journal_cut_by_a_full_disk_goes_on(store):
    search(store, most=7)
    journal = store.directory / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-10])
    journal.with_name("study.journal.lock").symlink_to(journal)  # Of a killed command.
    assert told(search(store)) == WHOLE_GRID


def test_a_broken_journal_is_named(store):
    search(store, most=1)
    journal = store.directory / "study.journal"
    journal.write_text("x\n" + journal.read_text())
    with pytest.raises(ValueError, match=r"study\.journal cannot be read \(.*\): remove it"):
        search(store)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("study.db", "Could not parse SQLAlchemy URL"),
        ("sqlite:////nowhere/study.db", "unable to open database file"),
        ("oracle://me:secret@host/studies", "No module named 'oracledb'"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_clear_error(store, url, message):
    with pytest.raises(ValueError, match="--storage cannot be used") as error:
        open_search(store, url)
    assert message in str(error.value)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------- kill tests


@pytest.fixture
def start(store, tmp_path, light_package):
    """Starts a search in a process of its own."""
    processes = Processes((light_package, TESTS), tmp_path)
    (store.directory / "behaviour.json").write_text(json.dumps({"epoch_s": 0.03}))

    def start(options=None, num_trials=None):
        given = {"directory": str(store.directory), "num_trials": num_trials, "prune": True}
        given["options"] = options or {"num_workers": 2}
        return processes.start(str(TESTS / "fake_search.py"), json.dumps(given))

    start.processes = processes
    yield start
    processes.end()
    assert not run_processes(tmp_path)


def assert_finished(store):
    """Asserts that the search has come to its end, and that no epoch was trained twice."""
    epochs = trained_epochs(store.directory)
    for trained in epochs.values():
        assert trained == list(range(len(trained)))
    assert sorted(map(len, epochs.values())) == [1] * 9 + [4] * 2 + [EPOCHS]
    assert told(open_search(store))[50.0, 8, 5.0] == WHOLE_GRID[50.0, 8, 5.0]
    assert len(told(open_search(store))) == 12


def under_way(store, count):
    return lambda: len(list(store.directory.glob("runs/*/run.log"))) >= count


def test_a_killed_search_goes_on(store, start):
    moments = random.Random(3)
    for kills in range(3):
        process = start()
        wait_until(under_way(store, 2 + 5 * kills))
        time.sleep(moments.uniform(0.0, 0.3))
        process.kill()
        process.wait()
    assert finish(start()) == (0, "", "")
    assert_finished(store)


def test_a_search_outlives_a_killed_worker(store, start):
    cluster = Cluster(start.processes)
    workers = [cluster.start_worker(), cluster.start_worker()]
    process = start({"scheduler": cluster.address})
    wait_until(under_way(store, 4))
    workers[0].kill()
    code, _, stderr = finish(process)
    assert (code, stderr) == (0, "")
    assert_finished(store)
