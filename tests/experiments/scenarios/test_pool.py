"""The pool of networks that differ in many settings at once."""

import collections
import json

import pytest
from fake_scenarios import record, write_store

from fisher_keras.experiments.runs.experiment import preset_of
from fisher_keras.experiments.scenarios.plot import PlotConfig, plot_results
from fisher_keras.experiments.scenarios.pool import PRESETS, VARIED, pool_runs
from fisher_keras.experiments.scenarios.pool_options import PoolOptions
from fisher_keras.experiments.scenarios.scenario import read_scenarios


def runs_of(preset, **options):
    return pool_runs(preset_of(PRESETS, PoolOptions(preset=preset, **options)))


@pytest.mark.parametrize("preset", PRESETS)
def test_all_settings_vary_and_nothing_else(preset):
    runs = runs_of(preset)
    number = PRESETS[preset].num_seeds * (PRESETS[preset].num_settings or 1)
    assert len({run.key for run in runs}) == len(runs) == number
    drawn = collections.defaultdict(collections.Counter)
    fixed = []
    for run in runs:
        training = dict(run.config["training"])
        for name, _ in PRESETS[preset].values:
            drawn[name][training.pop(name, None)] += 1
        fixed.append(training)
    assert fixed == fixed[:1] * len(runs)
    for name, values in PRESETS[preset].values:
        counts = drawn[name]
        # What is usual does not stand in a run's definition.
        expected = {value or (None if name == "confusion_size" else value) for value in values}
        assert set(counts) == expected
        if len(runs) == 100:
            assert all(20 < count < 50 for count in counts.values())


def test_each_setting_has_all_seeds():
    runs = runs_of("repeated")
    settings = collections.Counter(str(sorted(run.config["training"].items())) for run in runs)
    assert set(settings.values()) == {3}
    assert len(settings) == 40
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


def test_settings_are_independent():
    """No two of them are drawn alike: their values meet in all combinations."""
    runs = runs_of("laptop")
    for i, first in enumerate(VARIED):
        for second in VARIED[i + 1 :]:
            pairs = {
                tuple(run.config["training"].get(name) for name in (first, second)) for run in runs
            }
            assert len(pairs) == 9


def fake_pool(preset="laptop"):
    """Networks whose gamma-hat orders the test errors, whatever the settings."""
    records = []
    for number, run in enumerate(runs_of(preset, label_smoothing=0.1)[:60]):
        metrics = {"log_determinant": float(number % 30), "robustness": float(-(number % 7))}
        line = record("scenario_batch_size", None, run.seed, 40 + number % 30, metrics)
        line |= {"experiment": "pool", "key": run.key, "config": run.config}
        line["result"]["train"]["excess_loss"] = 0.01 + (number % 11) / 1000
        records.append(line)
    return records


def test_pool_is_read_compared_and_drawn(tmp_path, capsys):
    records = fake_pool()
    store = write_store(tmp_path / "pool", records)
    (pool,) = read_scenarios([store])
    assert len(pool.runs) == 60
    assert pool.values == [16, 32, 64]
    plot_results(PlotConfig(stores=(str(store),)))
    text = capsys.readouterr().out
    found = json.loads((store / "summary.json").read_text())["correlations"]
    lines = {line["measure"]: line for line in found if line["runs"] == "all"}
    assert lines["log_determinant"]["rank"]["kendall"]["value"] == 1
    # Of networks that differ in several settings, none is one variable's.
    assert lines["log_determinant"]["granulated"] == "nan"
    assert lines["log_determinant"]["partial"]["kendall"]["value"] > 0.9
    # The worst pair of settings to be given leaves nothing to say where networks are alike.
    information = {name: line["information"]["value"] for name, line in lines.items()}
    assert information["log_determinant"] > information["random"]
    assert "networks that differ in everything" in text
    assert "Mean ± standard deviation over the networks of each value." in text
    # Neither the error nor a metric follows any setting here, but for chance.
    for quantity in ("test_error", "random"):
        (row,) = (line for line in text.splitlines() if line.startswith(f"| all | {quantity} | "))
        assert all(int(share.removesuffix(" %")) < 20 for share in row.split(" | ")[3:-1])
    assert "| all | log_determinant | 60 | 9 | 1.00 [1.00, 1.00] | 0.0001 | 0.0002 |" in text
    assert "| all | batch_size_over_learning_rate | 60 | 9 |" in text
    # Settings that are drawn twice by chance are no repeats.
    assert len({run.unit for run in pool.runs}) == 60
    assert "| all, seed |" not in text
    assert (store / "figures" / "log_determinant.png").stat().st_size > 10_000


def test_seeds_of_a_setting_are_no_settings(tmp_path, capsys):
    """60 networks of 40 settings: 20 of these have two seeds."""
    records = fake_pool("repeated")
    store = write_store(tmp_path / "pool", records)
    (pool,) = read_scenarios([store])
    assert len({run.unit for run in pool.runs}) == 40
    plot_results(PlotConfig(stores=(str(store),)))
    text = capsys.readouterr().out
    (row,) = (x for x in text.splitlines() if x.startswith("| all, seed | log_determinant | "))
    # Number 40 + i has gamma-hat and error of i + 10 of 30: the pairs have one order.
    assert row.startswith("| all, seed | log_determinant | 60 | 20 | 1.00 [1.00, 1.00] |")


def test_networks_of_another_recipe_are_refused(tmp_path):
    records = fake_pool()[:3]
    records[1]["config"]["training"]["epochs"] = 7
    store = write_store(tmp_path, records)
    with pytest.raises(ValueError, match=r"differ in more than batch_size, .*training.epochs"):
        read_scenarios([store])
