"""Shares of variance against textbook formulas, and sums of squares found by projection."""

import itertools

import numpy as np
import pytest

from fisher_keras.experiments.statistics.variance_shares import TOGETHER, variance_shares


def left_by(values, *factors):
    """The sum of squares outside of the space of the factors' indicators, by its projector."""
    indicators = [
        [float(level == name) for level in factor] for factor in factors for name in set(factor)
    ]
    space = np.array([np.ones(len(values)), *indicators]).T
    projected = space @ np.linalg.pinv(space.T @ space) @ space.T @ values
    return np.sum((values - projected) ** 2)


def test_of_a_balanced_design_they_are_between_level_sums_of_squares():
    """Two-way analysis of variance by hand, 2 runs a cell; the shares then add up."""
    rng = np.random.default_rng(0)
    sizes, rates = zip(
        *[cell for cell in itertools.product("ab", "xyz") for _ in range(2)], strict=True
    )
    values = np.array(
        [3.0 * (a == "a") + "xyz".index(b) ** 2 for a, b in zip(sizes, rates, strict=True)]
    )
    values += rng.normal(size=12)
    found = variance_shares(values, {"size": sizes, "rate": rates})
    total = np.sum((values - values.mean()) ** 2)
    for name, factor in (("size", sizes), ("rate", rates)):
        means = {level: values[[own == level for own in factor]].mean() for level in set(factor)}
        between = sum((means[level] - values.mean()) ** 2 for level in factor)
        assert found[name] == pytest.approx(between / total)
    assert found[TOGETHER] == pytest.approx(found["size"] + found["rate"])


def test_of_an_unbalanced_design_they_are_given_all_other_factors():
    rng = np.random.default_rng(1)
    factors = {name: rng.integers(3, size=40).tolist() for name in "abc"}
    factors["b"] = [(a + b) % 2 for a, b in zip(factors["a"], factors["b"], strict=True)]
    values = rng.normal(size=40) + np.array(factors["a"])
    total = np.sum((values - values.mean()) ** 2)
    found = variance_shares(values, factors)
    full = left_by(values, *factors.values())
    assert found[TOGETHER] == pytest.approx(1 - full / total)
    for name in factors:
        others = [factor for other, factor in factors.items() if other != name]
        assert found[name] == pytest.approx((left_by(values, *others) - full) / total)


def test_of_independent_noise_they_are_degrees_of_freedom():
    """A factor of k levels explains (k - 1) / (n - 1) of noise, in the mean."""
    rng = np.random.default_rng(2)
    levels = [i % 4 for i in range(40)]
    shares = [variance_shares(rng.normal(size=40), {"a": levels})["a"] for _ in range(2000)]
    assert np.mean(shares) == pytest.approx(3 / 39, abs=0.005)


def test_runs_that_are_infinite_are_left_out():
    values, levels = [1.0, 2.0, 4.0, -np.inf, np.nan], ["a", "a", "b", "b", "c"]
    assert variance_shares(values, {"x": levels}) == variance_shares(values[:3], {"x": levels[:3]})


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([1.0, 1.0], ["a", "a"]),
        ([], []),
        # As many levels as runs fit anything.
        ([1.0, 5.0, 2.0], ["a", "b", "c"]),
        ([1.0, 5.0, 2.0, np.nan], ["a", "b", "c", "c"]),
    ],
)
def test_nothing_varies_or_all_levels_fit_any_values(values, levels):
    assert all(np.isnan(v) for v in variance_shares(values, {"x": levels}).values())
    # So do two factors of two levels fit three runs.
    two = {"x": ["a", "a", "b"], "y": ["a", "b", "b"]}
    assert all(np.isnan(v) for v in variance_shares([1.0, 5.0, 2.0], two).values())
