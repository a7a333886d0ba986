"""Tables of experiments that vary several settings: shares of variance, and orders within strata.

A metric that follows one setting and not another cannot follow the test error, which follows
both. Among networks that share the other settings it may still tell which is better.
"""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fisher_keras.experiments.runs.trained_network import common_metrics
from fisher_keras.experiments.scenarios.scenario import (
    NOISE,
    Scenario,
    ScenarioRun,
    column,
    hyperparameters,
    noise,
    place,
)
from fisher_keras.experiments.statistics.partial_correlation import partial_rank_correlation
from fisher_keras.experiments.statistics.permutation import holm
from fisher_keras.experiments.statistics.rank_correlation import estimate_cell, kendall_difference
from fisher_keras.experiments.statistics.strata import stratified_kendall
from fisher_keras.experiments.statistics.text_tables import markdown_table, p_cell
from fisher_keras.experiments.statistics.variance_shares import TOGETHER, variance_shares

# Settings of the data: the others change the path of SGD on the same data.
STRATA = ("augmentation", "confusion_size")
SHARES_NOTES = """\
Shares of variance, type II: how much of a quantity each setting explains beside all others. A
metric that follows other settings than the test error does cannot tell which network is better.
Chance, of which `random` is an example, gives a setting of k values (k - 1) / (n - 1) in the mean.
Settings that change together explain nothing beside each other. A dash: the settings fit any n
numbers."""
STRATA_NOTES = f"""\
Kendall's tau within strata: only networks with the same {" and ".join(STRATA)} are compared. p
counts 10,000 permutations within the strata, Holm corrects it for the metrics of all rows. Then,
how much higher this tau is than the first metric's, over the same resamples. Partial tau and rho:
given all settings that vary. `{NOISE}` is there to compare with.
Where settings are repeated with other seeds, resamples draw settings and permutations exchange
them. Rows with `seed` compare only networks that differ by the seed alone."""


def shares_table(scenario: Scenario) -> str:
    """Formats the shares of variance of the test error and of each metric, side by side."""
    settings = hyperparameters(scenario.runs)
    rows = [["runs", "quantity", "n", *settings, TOGETHER]]
    for which, runs in _subsets(scenario):
        factors = hyperparameters(runs)
        for quantity in ["test_error", *common_metrics(runs), "random"]:
            values = column(runs, quantity)
            shares = variance_shares(values, factors)
            # A subset may have one value of a setting left, which then explains nothing.
            cells = [_share_cell(shares.get(name, 0)) for name in (*settings, TOGETHER)]
            rows.append([which, quantity, str(np.isfinite(values).sum()), *cells])
    return markdown_table(rows, num_names=2)


def _share_cell(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.0f} %"


def strata_table(scenario: Scenario) -> str:
    """Formats each metric's order of the networks within strata, and given all settings."""
    rows = [row for which, runs in _subsets(scenario) for row in _within_strata(which, runs)]
    # Holm's correction needs the p-values of all rows together.
    adjusted = holm([math.nan if row[1] == NOISE else row[4].p_value for row in rows])
    cells = [
        [
            *row[:4],
            estimate_cell(row[4].kendall),
            p_cell(row[4].p_value),
            p_cell(p),
            *map(estimate_cell, row[5:]),
        ]
        for row, p in zip(rows, adjusted, strict=True)
    ]
    head = ["runs", "metric", "n", "strata", "tau within strata", "p", "Holm"]
    columns = ["tau less the first metric's", "partial tau", "partial rho"]
    return markdown_table([[*head, *columns], *cells], num_names=2)


def _within_strata(which: str, runs: Sequence[ScenarioRun]) -> Iterator[list[Any]]:
    """Returns rows of `strata_table`, with estimates for cells."""
    settings = hyperparameters(runs)
    given = {
        name: [place(name, value) for value in map(json.loads, values)]
        for name, values in settings.items()
    }
    units = [run.unit for run in runs]
    of_data = [settings[name] for name in STRATA if name in settings]
    # Without such settings all runs are one stratum.
    strata = {which: list(zip(*of_data, strict=True)) or [()] * len(runs)}
    if len(set(units)) < len(units):
        strata[f"{which}, seed"] = units
    error = column(runs, "test_error")
    metrics = {name: column(runs, name) for name in [*common_metrics(runs), *noise(runs)]}
    first = next(iter(metrics.values()), None)
    # What is given has nothing to do with the strata.
    partials = {
        name: partial_rank_correlation(metric, error, given, units)
        for name, metric in metrics.items()
    }
    for compared, groups in strata.items():
        for name, metric in metrics.items():
            within = stratified_kendall(metric, error, groups, units)
            less_first = kendall_difference(metric, first, error, units, groups)
            counts = [str(within.num_runs), str(within.num_strata)]
            partial = partials[name].kendall, partials[name].spearman
            yield [compared, name, *counts, within, less_first, *partial]


def _subsets(scenario: Scenario) -> list[tuple[str, tuple[ScenarioRun, ...]]]:
    """Returns all runs and, where some are flagged, those that are not."""
    subsets = [("all", scenario.runs), ("converged", scenario.converged)]
    # The second one says something new only if it is neither empty nor all of the runs.
    return subsets[: 1 + (0 < len(scenario.converged) < len(scenario.runs))]
