"""Conditional information against shares of pairs counted one by one, and closed cases."""

import collections
import itertools
import math

import numpy as np
import pytest

from fisher_keras.experiments.statistics.conditional_information import conditional_information


def slow(metric, error, hyperparameters):
    """The smallest I(V_mu; V_g | U_S) / H(V_g | U_S) over sets S of at most two."""
    pairs = list(itertools.permutations(range(len(metric)), 2))
    ratios = []
    for size in range(3):
        for names in itertools.combinations(hyperparameters, size):
            groups = collections.defaultdict(list)
            for i, j in pairs:
                values = tuple((hyperparameters[n][i], hyperparameters[n][j]) for n in names)
                signs = np.sign(metric[i] - metric[j]), np.sign(error[i] - error[j])
                groups[values].append(signs)
            information = entropy = 0.0
            for found in groups.values():
                share = len(found) / len(pairs)
                joint = collections.Counter(found)
                mu, g = (collections.Counter(pair[k] for pair in found) for k in (0, 1))
                n = len(found)
                for (a, b), count in joint.items():
                    information += share * count / n * math.log(count * n / (mu[a] * g[b]))
                entropy -= share * sum(c / n * math.log(c / n) for c in g.values())
            if entropy > 1e-12:
                ratios.append(information / entropy)
    return min(ratios)


def pool(seed, count=20):
    rng = np.random.default_rng(seed)
    settings = {
        "batch_size": rng.choice([16, 64, 256], count),
        "augmentation": rng.choice(["none", "flip"], count),
        "width": rng.choice([8, 16], count),
    }
    error = np.log(settings["batch_size"]) + rng.normal(size=count)
    metric = np.round(np.log(settings["batch_size"]) + 0.5 * error + rng.normal(size=count), 1)
    return metric, error, settings


@pytest.mark.parametrize("seed", range(3))
def test_against_pairs_counted_one_by_one(seed):
    values = pool(seed)
    found = conditional_information(*values)
    assert found.value == pytest.approx(slow(*values))
    assert 0 <= found.low <= found.high <= 1


def test_the_same_order_tells_everything_and_so_does_the_opposite():
    _, error, settings = pool(0)
    for metric in (error**3, -error):
        assert conditional_information(metric, error, settings).value == pytest.approx(1)


def test_a_metric_that_knows_a_hyperparameter_alone_tells_nothing():
    _, error, settings = pool(0)
    batch_size = settings["batch_size"]
    assert conditional_information(batch_size, error, {}).value > 0.05
    assert conditional_information(batch_size, error, settings).value == pytest.approx(0, abs=1e-9)


def test_half_of_the_pairs_by_hand():
    """Given a, pairs of one value: V_g is known from V_mu for a = 0, and the other way for a = 1.

    Of the 12 ordered pairs, 8 are of different values of a, which leave no doubt of the errors'
    order; the other 4 have ln 2 each, all of which the metric tells. Without a, the signs of
    metric and error agree in 10 of 12 pairs.
    """
    metric, error, a = [1, 2, 5, 4], [1, 2, 3, 4], {"a": [0, 0, 1, 1]}
    agree = 10 / 12
    doubt = -(agree * math.log(agree) + (1 - agree) * math.log(1 - agree))
    found = conditional_information(metric, error, a).value
    assert found == pytest.approx(1 - doubt / math.log(2))
    assert found == pytest.approx(slow(metric, error, a))


def test_intervals_are_those_of_pairs_of_resampled_runs():
    metric, error, _ = pool(1)
    rng = np.random.default_rng(0)
    values = []
    for _ in range(60):
        drawn = rng.integers(20, size=20)
        # A run and its copy are no pair: a tie in neither.
        pairs = [(i, j) for i in drawn for j in drawn if i != j]
        groups = collections.Counter(
            (np.sign(metric[i] - metric[j]), np.sign(error[i] - error[j])) for i, j in pairs
        )
        table = np.array([[groups[a, b] for b in (-1, 1)] for a in (-1, 0, 1)]) / len(pairs)
        mu, g = table.sum(axis=1, keepdims=True), table.sum(axis=0)
        independent = (mu * g)[table > 0]
        information = np.sum(table[table > 0] * np.log(table[table > 0] / independent))
        values.append(information / -np.sum(g * np.log(g)))
    found = conditional_information(metric, error, {})
    expected = np.percentile(values, [2.5, 97.5])
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.12)


@pytest.mark.parametrize(
    ("metric", "error"), [([1, 2, 3], [5, 5, 5]), ([math.nan] * 3, [1, 2, 3]), ([1], [1])]
)
def test_where_there_is_no_doubt_it_is_undefined(metric, error):
    assert math.isnan(conditional_information(metric, error, {}).value)
