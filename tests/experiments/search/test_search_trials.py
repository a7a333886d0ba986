"""The trials of a search whose trainings are a formula: what is proposed and found."""

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
from marks import nightly
from processes import Cluster, Processes, finish, run_processes, wait_until

from fisher_keras.experiments.runs.store import ExperimentStore
from fisher_keras.experiments.search.search_trials import Trials

TESTS = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(autouse=True)
def quiet_optuna():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def store(tmp_path):
    directory = tmp_path / "store"
    directory.mkdir()
    return ExperimentStore(directory)


def search(store, num_trials=None, seed=0, most=math.inf, kill=False):
    """Carries out a search here, one run after the other, at most so many.

    With `kill` one more run is begun. Returns the trials, and the values of the runs in order.
    """
    trials = Trials(CANDIDATES, num_trials, run_of, store, seed)
    order = []
    while run := trials.next_run() if most > len(order) or kill else None:
        store.write_definition(run, fake_search.execute)
        if len(order) == most:
            break
        order.append((*run.config["training"].values(),))
        result = fake_search.execute(run, store.run_directory(run))
        store.finish(run, result, 1.0)
        trials.end(run, store.record(run))
    return trials, order


def found(trials):
    """Returns the errors of the finished trials by their values."""
    return {
        tuple(row[name] for name in CANDIDATES): row["validation_error_percent"]
        for row in trials.rows()
    }


def values_of(row):
    return tuple(row[name] for name in CANDIDATES)


GRID = {
    (beta, m, tau): errors({"beta": beta, "num_sub_batches": m, "clip_norm": tau})[-1]
    for beta in CANDIDATES["beta"]
    for m in CANDIDATES["num_sub_batches"]
    for tau in CANDIDATES["clip_norm"]
}


# ------------------------------------------------------------------------------ in one process


def test_the_grid_is_trained_in_order(store):
    trials, order = search(store)
    assert order == list(GRID)
    assert found(trials) == GRID


def test_the_best_comes_first_and_carries_its_place_in_the_grid(store):
    rows = search(store)[0].rows()
    assert [values_of(row) for row in rows] == sorted(GRID, key=GRID.get)
    assert [values_of(row) for row in sorted(rows, key=lambda row: row["trial"])] == list(GRID)


@pytest.mark.parametrize("most", [0, 1, 7, 11])
def test_a_killed_grid_goes_on_with_what_is_missing(store, most):
    search(store, most=most, kill=True)
    trials, order = search(store)
    assert order == list(GRID)[most:]
    assert found(trials) == GRID
    assert set(map(tuple, trained_epochs(store.directory).values())) == {tuple(range(EPOCHS))}


def test_the_tpe_tries_nothing_twice_and_can_go_on(store):
    assert len(found(search(store, num_trials=5)[0])) == 5
    assert len(found(search(store, num_trials=9, seed=1)[0])) == 9
    trials, order = search(store, num_trials=12)
    assert len(order) == 3
    assert found(trials) == GRID


def test_the_tpe_is_the_same_with_the_same_seed(tmp_path):
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        orders.append(search(ExperimentStore(tmp_path / name), num_trials=5, seed=seed)[1])
    assert orders[0] == orders[1] != orders[2]


def test_a_killed_tpe_is_the_same_wherever_it_goes_on(tmp_path):
    """The store alone decides: nothing else is left of the first command."""
    orders = []
    for name in ("a", "b"):
        store = ExperimentStore(tmp_path / name)
        _, begun = search(store, num_trials=12, most=4)
        orders.append(begun + search(store, num_trials=12)[1])
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(GRID)


def test_a_killed_tpe_goes_on_with_the_training_that_was_begun(store):
    search(store, num_trials=5, most=3, kill=True)
    runs = {run_of(dict(zip(CANDIDATES, values, strict=True))).key: values for values in GRID}
    (begun,) = [
        runs[path.name[-16:]]
        for path in store.directory.glob("runs/*")
        if not (path / "record.json").exists()
    ]
    _, order = search(store, num_trials=5, seed=4)
    assert order[0] == begun
    assert len(order) == 2


@pytest.mark.parametrize("most", [40, 12])
def test_the_tpe_learns(store, most):
    """With 12, a second command goes on: it knows what the first has found."""
    space = {"x": range(10), "y": range(10)}
    values = []
    for num_runs in (most, 40 - most):
        trials = Trials(space, 40, run_of, store, 0)
        for _ in range(num_runs):
            run = trials.next_run()
            values.append(sum(v**2 for v in run.config["training"].values()))
            result = {"validation_error_percent": values[-1:], "validation_cross_entropy": []}
            store.write_definition(run, fake_search.execute)
            store.finish(run, result | {"seconds": 1.0}, 1.0)
            trials.end(run, store.record(run))
    assert len({(row["x"], row["y"]) for row in trials.rows()}) == 40
    everywhere = statistics.fmean(x**2 + y**2 for x in range(10) for y in range(10))
    # The first ten are random; the last ones are what is left.
    assert statistics.fmean(values[12:22]) < 2 / 3 * everywhere


# ---------------------------------------------------------------------------------- kill tests


@pytest.fixture
def start(store, tmp_path, light_package):
    """Starts a search in a process of its own."""
    processes = Processes((light_package, TESTS), tmp_path)
    (store.directory / "behaviour.json").write_text(json.dumps({"epoch_s": 0.03}))

    def start(options=None, num_trials=None):
        given = {"directory": str(store.directory), "num_trials": num_trials}
        given["options"] = options or {"num_workers": 2}
        return processes.start(str(TESTS / "fake_search.py"), json.dumps(given))

    start.processes = processes
    yield start
    processes.end()
    assert not run_processes(tmp_path)


def assert_finished(store):
    """Asserts that the search has come to its end, and that no epoch was trained twice."""
    assert list(trained_epochs(store.directory).values()) == [list(range(EPOCHS))] * 12
    trials, order = search(store)
    assert found(trials) == GRID
    assert not order


def under_way(store, count):
    return lambda: len(list(store.directory.glob("runs/*/run.log"))) >= count


@pytest.mark.parametrize("num_trials", [nightly(None), 12])
def test_a_killed_search_goes_on(store, start, num_trials):
    moments = random.Random(3)
    for kills in range(2):
        process = start(num_trials=num_trials)
        wait_until(under_way(store, 2 + 4 * kills))
        time.sleep(moments.uniform(0.0, 0.3))
        process.kill()
        process.wait()
    code, _, stderr = finish(start(num_trials=num_trials))
    assert (code, stderr) == (0, "")
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
