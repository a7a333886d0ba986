"""Tables of experiments that vary several settings: shares of variance, and orders within strata.

A metric that follows one setting and not another cannot follow the test error, which follows
both. Among networks that share the other settings it may still tell which is better.
"""

import json
import math
from typing import Any

import numpy as np

from fisher_keras.experiments.runs.trained_network import common_metrics
from fisher_keras.experiments.scenarios.scenario import (
    Scenario,
    ScenarioRun,
    column,
    hyperparameters,
    place,
)
from fisher_keras.experiments.statistics.partial_correlation import partial_rank_correlation
from fisher_keras.experiments.statistics.permutation import holm
from fisher_keras.experiments.statistics.rank_correlation import estimate_cell
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
counts 10,000 permutations within the strata, Holm corrects it for the metrics of all rows. Partial
tau and rho: given all settings that vary."""


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
    head = ["runs", "metric", "n", "strata", "tau within strata", "p", "Holm"]
    rows: list[list[Any]] = []
    for which, runs in _subsets(scenario):
        settings = hyperparameters(runs)
        strata = list(zip(*(settings[name] for name in STRATA if name in settings), strict=True))
        given = {
            name: [place(name, value) for value in map(json.loads, values)]
            for name, values in settings.items()
        }
        error = column(runs, "test_error")
        for name in common_metrics(runs):
            metric = column(runs, name)
            # Without such settings all runs are one stratum.
            within = stratified_kendall(metric, error, strata or [()] * len(runs))
            partial = partial_rank_correlation(metric, error, given)
            counts = [str(within.num_runs), str(within.num_strata)]
            partials = [estimate_cell(e) for e in (partial.kendall, partial.spearman)]
            rows.append([which, name, *counts, within, *partials])
    # Cells are made only now, as Holm's correction needs the p-values of all rows together.
    adjusted = holm([row[4].p_value for row in rows])
    cells = [
        [*row[:4], estimate_cell(row[4].kendall), p_cell(row[4].p_value), p_cell(p), *row[5:]]
        for row, p in zip(rows, adjusted, strict=True)
    ]
    return markdown_table([[*head, "partial tau", "partial rho"], *cells], num_names=2)


def _subsets(scenario: Scenario) -> list[tuple[str, tuple[ScenarioRun, ...]]]:
    """Returns all runs and, where some are flagged, those that are not."""
    subsets = [("all", scenario.runs), ("converged", scenario.converged)]
    # The second one says something new only if it is neither empty nor all of the runs.
    return subsets[: 1 + (0 < len(scenario.converged) < len(scenario.runs))]
