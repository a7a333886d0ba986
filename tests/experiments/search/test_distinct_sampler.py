import statistics

import optuna
import pytest

from fisher_keras.experiments.search.distinct_sampler import DistinctTPESampler

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def search(candidates, num_trials):
    """Returns the values of x^2 + y^2 that are tried as the smallest is searched for."""

    def objective(trial):
        return sum(trial.suggest_categorical(name, candidates[name]) ** 2 for name in candidates)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=DistinctTPESampler(candidates))
    study.optimize(objective, n_trials=num_trials)
    return [trial.value for trial in study.trials]


def test_no_combination_is_tried_twice_while_there_are_others():
    found = search({"x": (1, 2, 3, 4), "y": (10, 20, 30)}, num_trials=14)
    assert sorted(found[:12]) == sorted(x**2 + y**2 for x in (1, 2, 3, 4) for y in (10, 20, 30))
    assert set(found[12:]) <= set(found[:12])


def test_it_learns():
    found = []
    for _ in range(5):  # One search is below the mean of all points by two standard deviations.
        found += search({"x": range(10), "y": range(10)}, num_trials=40)[10:]  # Ten are random.
    everywhere = statistics.fmean(x**2 + y**2 for x in range(10) for y in range(10))
    assert statistics.fmean(found) < everywhere
