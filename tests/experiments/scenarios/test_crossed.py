"""The crossed scenario: its runs, and its table from made-up records."""

import dataclasses
import itertools

import pytest
from fake_scenarios import record, write_store

from fisher_keras.experiments.names import PRESETS as NAMES
from fisher_keras.experiments.runs.experiment import ExperimentOptions, preset_of
from fisher_keras.experiments.runs.store import Record
from fisher_keras.experiments.runs.trained_network import TrainedNetwork
from fisher_keras.experiments.scenarios.crossed import (
    EXPERIMENT,
    PRESETS,
    VARIED,
    crossed_runs,
    crossed_table,
)
from fisher_keras.experiments.scenarios.scenario import read_scenarios
from fisher_keras.experiments.scenarios.varied_settings import shares_table, strata_table


def runs_of(preset, **options):
    return crossed_runs(preset_of(PRESETS, ExperimentOptions(preset=preset, **options)))


@pytest.mark.parametrize("preset", NAMES)
def test_all_combinations_of_each_seed_and_nothing_else(preset):
    runs = runs_of(preset)
    found, fixed = [], []
    for run in runs:
        training = dict(run.config["training"])
        found.append((run.seed, *(training.pop(name, 0) for name in VARIED)))
        fixed.append(training)
    seeds = range(PRESETS[preset].num_seeds)
    assert found == list(itertools.product(seeds, *PRESETS[preset].values))
    assert fixed == fixed[:1] * len(runs)
    assert len({run.key for run in runs}) == len(runs)


def test_the_papers_networks_have_the_keys_that_they_were_started_with():
    keys = {run.label: run.key for run in runs_of("paper")}
    assert keys["confusion 0 batch 128 seed 0"] == "9e1f6b7e8c4b8b0c"
    assert keys["confusion 0 batch 512 seed 0"] == "36ababa0c774cda4"
    assert len(keys) == 8


def network(confusion, batch, seed, test_error, gamma, **metrics):
    settings = {"confusion_size": confusion} if confusion else {}
    metrics = {"log_determinant": gamma, **metrics}
    line = record(
        "scenario_batch_size", batch, seed, test_error, metrics, train_loss=0.5, **settings
    )
    return TrainedNetwork.of(Record(**line | {"experiment": EXPERIMENT}))


def test_changes_are_those_of_pairs_and_units_are_a_point_of_error():
    """The error rises by 8 with the confusion set and 2 with the batch; gamma by 4 and 10."""
    networks = [
        network(c, b, s, 10 + 8 * (c > 0) + 2 * (b > 128) + s, -900 + 4 * (c > 0) + 10 * (b > 128))
        for c, b, s in itertools.product((0, 5000), (128, 512), (0, 1))
    ]
    networks.append(network(0, 128, 2, 50.0, 0.0, robustness=1.0))  # It has no counterpart.
    header, *rows = crossed_table(networks[::-1])
    assert header[1:5] == [
        "confusion 0, batch 128",
        "confusion 0, batch 512",
        "confusion 5000, batch 128",
        "confusion 5000, batch 512",
    ]
    cells = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert "robustness" not in cells
    error, gamma = cells["test error (%)"], cells["log_determinant"]
    assert error["confusion 5000, batch 512"] == "20.5 ± 0.707"
    assert (error["change by confusion"], error["change by batch"]) == ("8 ± 0", "2 ± 0")
    assert (error["per point, by confusion"], error["per point, by batch"]) == ("1", "1")
    assert (gamma["change by confusion"], gamma["change by batch"]) == ("4 ± 0", "10 ± 0")
    assert (gamma["per point, by confusion"], gamma["per point, by batch"]) == ("0.5", "5")


def test_its_runs_are_drawn_and_compared_as_the_scenarios_are(tmp_path):
    lines = [
        dataclasses.asdict(network(c, b, s, 10 + 8 * (c > 0) + s, -900 + (b > 128)).record)
        for c, b, s in itertools.product((0, 5000), (128, 512), (0, 1))
    ]
    (scenario,) = read_scenarios([write_store(tmp_path, lines)])
    assert scenario.values == [0, 5000]
    assert "| all | test_error | 8 | 0 % | 98 % | 98 % |" in shares_table(scenario)
    assert "| all | log_determinant | 8 | 100 % | 0 % | 100 % |" in shares_table(scenario)
    assert "| all | log_determinant | 8 | 2 | 0.00 [" in strata_table(scenario)


def test_a_table_of_what_is_there_so_far():
    header, *rows = crossed_table([network(0, 128, 0, 12.0, -900.0)])
    assert header[1:2] == ["confusion 0, batch 128"]
    assert rows[0] == ["test error (%)", "12", "–", "–", "–", "–"]
    rows = crossed_table([network(0, b, 0, 12.0, g) for b, g in ((128, -9.0), (512, -8.0))])
    assert rows[-1][-4:] == ["–", "1", "–", "–"]  # The test errors are the same.
