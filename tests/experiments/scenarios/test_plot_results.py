"""Tables, rank correlations and figures of made-up runs whose outcomes are known."""

import json
import math
import re

import numpy as np
import pytest
from fake_scenarios import METRICS, record, write_store

from fisher_keras.experiments.scenarios.figures.forest import forest_figure
from fisher_keras.experiments.scenarios.figures.over_variable import scenario_figure
from fisher_keras.experiments.scenarios.figures.scatter import scatter_figure
from fisher_keras.experiments.scenarios.plot import PlotConfig, plot_results
from fisher_keras.experiments.scenarios.scenario import column, read_scenarios
from fisher_keras.experiments.scenarios.summary import (
    correlation_table,
    correlations,
    scenario_table,
    significance_table,
    summary,
)

CONFUSION, AUGMENTATION, BATCH_SIZE = (
    f"scenario_{name}" for name in ("confusion", "augmentation", "batch_size")
)


def good_and_bad(step, seed):
    """Metrics: one that rises with the test error's `step`, one that falls."""
    return {"log_determinant": -900.0 + 10 * step + seed, "robustness": 50.0 - 5 * step - seed}


def confusion_records(num_seeds=3):
    """Test errors 20, 22, 24 plus a tenth of the seed."""
    return [
        record(CONFUSION, value, seed, 20 + 2 * step + seed / 10, good_and_bad(step, seed))
        for step, value in enumerate([None, 500, 1000])
        for seed in range(num_seeds)
    ]


def batch_size_records(**changes):
    """The metrics' roles are exchanged: the test error falls with the step."""
    settings = {"augmentation": "flip-only", **changes}
    return [
        record(
            BATCH_SIZE, value, seed, 9 - step + seed / 10, good_and_bad(step, -seed), **settings
        )
        for step, value in enumerate([128, 256, 512, 1024])
        for seed in range(2)
    ]


def of_other_data(line):
    return {**line, "result": {**line["result"], "data": "another"}}


def read(tmp_path, *stores):
    return read_scenarios(
        [write_store(tmp_path / str(i), records) for i, records in enumerate(stores)]
    )


def coefficients(lines, **wanted):
    (line,) = (line for line in lines if all(getattr(line, key) == v for key, v in wanted.items()))
    return line.rank.kendall.value, line.rank.spearman.value, line.granulated


# Reading.


def test_runs_are_in_the_papers_order(tmp_path):
    values = ["4-crop-f", "flip-only", "no-aug", "1-crop-f"]
    records = [record(AUGMENTATION, v, s, 9, {"robustness": 1}) for s in (1, 0) for v in values]
    (scenario,) = read(tmp_path, records)
    assert scenario.values == ["no-aug", "flip-only", "1-crop-f", "4-crop-f"]
    assert [run.seed for run in scenario.runs] == [0, 1] * 4


def test_scenarios_of_several_stores_are_put_together(tmp_path):
    records = confusion_records()
    scenarios = read(tmp_path, batch_size_records(), records[:5], records[4:])
    assert [scenario.experiment for scenario in scenarios] == [CONFUSION, BATCH_SIZE]
    assert scenarios[0].values == [0, 500, 1000]
    assert len(scenarios[0].runs) == len(records)
    # What was added to a record counts, whichever store is read last.
    old = records[0]
    added = {"names": ["soft_rank"], "git_revision": None}
    metrics = old["result"]["metrics"] | {"soft_rank": {"mean": 1.0}}
    completed = old | {"result": old["result"] | {"metrics": metrics, "added_metrics": [added]}}
    for name, stores in (("last", ([old], [completed])), ("first", ([completed], [old]))):
        assert "soft_rank" in read(tmp_path / name, *stores)[0].metrics


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "has no finished runs"),
        ([{**confusion_records()[0], "experiment": "table1"}], "has runs of table1; expected"),
        (
            [*confusion_records(), record(CONFUSION, 0, 0, 9, good_and_bad(0, 0), epochs=30)],
            "differ in more than confusion_size and the seed: training.epochs is 200 or 30 ",
        ),
        (
            [*confusion_records(), record(CONFUSION, 0, 0, 9, {"robustness": 1})],
            'metrics.names is ["log_determinant", "robustness"] or ["robustness"]',
        ),
        (
            [*confusion_records(), record(CONFUSION, 0, 9, 9, good_and_bad(0, 0), width=8)],
            "training.width is 8 or null (null: not set)",
        ),
        (
            [*confusion_records(), of_other_data(confusion_records(4)[3])],
            'data is "another" or null',
        ),
        (
            [{**confusion_records()[0], "result": {"test": {}}}],
            "is not the record of a trained network with its metrics: KeyError('loss')",
        ),
    ],
)
def test_what_cannot_be_compared_is_a_clear_error(tmp_path, records, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path, records)


def of_few_samples(line):
    return line | {"config": line["config"] | {"metrics": METRICS | {"num_samples": 10}}}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (list(map(of_few_samples, batch_size_records())), "metrics.num_samples is 10 or 100"),
        (list(map(of_other_data, batch_size_records())), 'data is "another" or null'),
        (batch_size_records(label_smoothing=0.1), "training.label_smoothing is 0.1 or null"),
        (batch_size_records(dataset="digits"), 'training.dataset is "cifar10" or "digits"'),
        ([{**line, "recipe_version": 2} for line in batch_size_records()], "version is 1 or 2"),
    ],
)
def test_scenarios_of_other_quantities_are_not_compared(tmp_path, other, message):
    """A log-determinant of 10 gradients is another quantity than one of 100."""
    with pytest.raises(ValueError, match=f"the scenarios do not compare .*{re.escape(message)}"):
        read(tmp_path, confusion_records(), other)


def test_a_store_that_is_not_there_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        read_scenarios([tmp_path / "missing"])


# Tables.


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_table_of_a_scenario(tmp_path):
    runs = [
        record(BATCH_SIZE, 128, 0, 8.0, {"log_determinant": -1000.0}, train_loss=1e-3),
        record(BATCH_SIZE, 128, 1, 9.0, {"log_determinant": -980.0}, train_loss=3e-3),
        record(BATCH_SIZE, 256, 0, 9.5, {"log_determinant": "-inf"}, train_error=0.6),
        record(BATCH_SIZE, 512, 0, 9.5, {"log_determinant": "-inf"}),
        record(BATCH_SIZE, 512, 1, 9.5, {"log_determinant": "nan"}),
        record(BATCH_SIZE, 512, 2, 9.5, {"log_determinant": -940.0}),
    ]
    head, _, *rows = cells(scenario_table(read(tmp_path, runs)[0]))
    assert [head] == cells(
        "batch_size | runs | test error (%) | test cross-entropy | calibration error "
        "| log_determinant | train loss | train error (%) | flagged"
    )
    # Standard deviations are those of samples: of 8 and 9, sqrt(1/2).
    expected = """\
| 128 | 2 | 8.50 ± 0.707 | 0.500 ± 0 | 0.040 ± 0 | -990 ± 14.1 | 0.002 ± 0.00141 | 0.000 ± 0 | |
| 256 | 1 | 9.50 | 0.500 | 0.040 | – (1 of 1: -inf) | 0.001 | 0.600 | 1 |
| 512 | 3 | 9.50 ± 0 | 0.500 ± 0 | 0.040 ± 0 | -940 (1 of 3: -inf) (1 of 3: nan) | 0.001 ± 0 \
| 0.000 ± 0 | |"""
    assert rows == cells(expected)


def test_old_records_have_no_calibration_error(tmp_path):
    records = confusion_records()
    for line in records:
        del line["result"]["test"]["calibration_error"]
    table = scenario_table(read(tmp_path, records)[0])
    assert [row[4] for row in cells(table)[2:]] == ["–"] * 3


def test_flagged_runs_are_named_with_their_reason(tmp_path):
    records = confusion_records()
    records[4]["result"]["train"] |= {"loss": 0.2, "error_percent": 3.0}
    scenarios = read(tmp_path, records)
    text = summary(scenarios, correlations(scenarios))
    assert (
        f"- confusion_size 500, seed 1 (run {records[4]['key']}): training error 3.00 % "
        "(more than 0.5 %), training loss 0.2 (more than 10 times the median 0.001)"
    ) in text
    assert "between 0.001 and 0.2" in text


# Rank correlations.


def test_correlations_of_a_scenario(tmp_path):
    lines = correlations(read(tmp_path, confusion_records()))
    assert [(line.scenario, line.runs) for line in lines] == [(CONFUSION, "all")] * 4
    assert coefficients(lines, measure="log_determinant") == pytest.approx((1, 1, 1))
    assert coefficients(lines, measure="robustness") == pytest.approx((-1, -1, -1))
    # The same training loss everywhere orders nothing.
    tau, rho, granulated = coefficients(lines, measure="train_loss")
    assert math.isnan(tau)
    assert math.isnan(rho)
    assert granulated == 0


def test_how_far_a_metric_follows_the_training_loss(tmp_path):
    records = [
        record(CONFUSION, 100 * i, 0, 20.0 + i, {"log_determinant": value}, train_loss=loss)
        for i, (value, loss) in enumerate([(-9.0, 1e-4), (-7.0, 2e-4), (-8.0, 3e-4), (-6.0, 4e-4)])
    ]
    lines = correlations(read(tmp_path, records))
    taus = {line.measure: line.with_train_loss.value for line in lines}
    # Of 6 pairs 1 is the other way round.
    del taus["random"]
    assert taus == pytest.approx({"log_determinant": (5 - 1) / 6, "train_loss": 1})


def test_correlations_without_the_flagged_runs(tmp_path):
    records = confusion_records()
    # The last run has the highest test error, and now the lowest metric.
    records[-1] = record(
        CONFUSION, 1000, 2, 24.2, {"log_determinant": -999.0, "robustness": 1.0}, train_error=1.0
    )
    lines = correlations(read(tmp_path, records))
    # 36 pairs, 8 of them now the other way; the seed's 3 pairs, 2 of them.
    expected = ((28 - 8) / 36, (1 + 1 - 1 / 3) / 3)
    tau, _, granulated = coefficients(lines, measure="log_determinant", runs="all")
    assert (tau, granulated) == pytest.approx(expected)
    converged = coefficients(lines, measure="log_determinant", runs="converged")
    assert converged == pytest.approx((1, 1, 1))
    assert {line.rank.num_runs for line in lines if line.runs == "converged"} == {8}


def test_correlations_over_scenarios(tmp_path):
    lines = correlations(read(tmp_path, confusion_records(2), batch_size_records()))
    # All 15 pairs of the first 6 runs agree, none of the 28 of the other 8; of the 48 between
    # them, those in which the metric of the first is higher, as its test error is.
    first = [(-900 + 10 * i + s, 20 + 2 * i + s / 10) for i in range(3) for s in range(2)]
    second = [(-900 + 10 * i - s, 9 - i + s / 10) for i in range(4) for s in range(2)]
    between = sum(np.sign(a[0] - b[0]) for a in first for b in second)
    metrics = [metric for metric, _ in first + second]
    tied = sum(metrics.count(m) - 1 for m in metrics) / 2
    tau, _, granulated = coefficients(lines, scenario="all scenarios", measure="log_determinant")
    assert tau == pytest.approx((15 - 28 + between) / math.sqrt(91 * (91 - tied)))
    assert granulated == pytest.approx((1 - 1) / 2)


def test_a_network_of_two_scenarios_is_counted_once(tmp_path):
    same = {"augmentation": "4-crop-f"}
    batch_sizes = [record(BATCH_SIZE, b, 0, 9, {"robustness": 1}, **same) for b in (128, 256)]
    augmentations = [
        record(AUGMENTATION, a, 0, 9, {"robustness": 1}) for a in ("no-aug", "4-crop-f")
    ]
    lines = correlations(read(tmp_path, batch_sizes, augmentations))
    assert [line.rank.num_runs for line in lines if line.scenario == "all scenarios"] == [3] * 4


def test_over_scenarios_only_metrics_of_all_are_compared(tmp_path):
    other = [record(AUGMENTATION, "no-aug", s, s, {"robustness": s, "rest": s}) for s in (1, 2)]
    lines = correlations(read(tmp_path, confusion_records(), other))
    measures = [line.measure for line in lines if line.scenario == "all scenarios"]
    assert measures == ["robustness", "train_loss", "random"]


def test_all_runs_flagged(tmp_path):
    lines = correlations(read(tmp_path, batch_size_records(train_error=2.0)))
    assert {line.rank.num_runs for line in lines if line.runs == "converged"} == {0}
    assert "| converged | train_loss | 0 | – | – | – |" in correlation_table(lines)


def test_table_of_correlations(tmp_path):
    table = correlation_table(correlations(read(tmp_path, confusion_records())))
    assert (
        f"| {CONFUSION} | all | robustness | 9 | -1.00 [-1.00, -1.00] | -1.00 [-1.00, -1.00] "
        "| -1.00 |"
    ) in table


def test_tests_of_levels_and_between_metrics(tmp_path):
    """Perfect orders of 3 and 4 levels: 2 of 6 and 2 of 24 orders are as far, 4 rows in all."""
    lines = correlations(read(tmp_path, confusion_records(), batch_size_records()))
    found = cells(significance_table(lines))[2:]
    assert found == [
        [CONFUSION, "all", "log_determinant", "0.333", "0.667", "0.00 [0.00, 0.00]"],
        [CONFUSION, "all", "robustness", "0.333", "0.667", "-2.00 [-2.00, -2.00]"],
        [BATCH_SIZE, "all", "log_determinant", "0.0833", "0.333", "0.00 [0.00, 0.00]"],
        [BATCH_SIZE, "all", "robustness", "0.0833", "0.333", "2.00 [2.00, 2.00]"],
        ["all scenarios", "all", "log_determinant", "–", "–", "0.00 [0.00, 0.00]"],
        ["all scenarios", "all", "robustness", "–", "–", found[-1][-1]],
    ]


def test_levels_are_exchanged_seed_by_seed_alone(tmp_path):
    """Three seeds of each level, but not the same three."""
    *records, last = confusion_records()
    records.append({**last, "seed": 77})
    lines = correlations(read(tmp_path, records))
    assert all(math.isnan(line.p_value) for line in lines)


def test_what_the_training_loss_leaves_of_the_orders(tmp_path):
    """gamma-hat as the training loss has it, but for two networks; robustness as the error."""
    gammas, losses = [1, 2, 3, 4, 6, 5], [1, 2, 3, 4, 5, 6]
    errors, gaps = [20, 22, 21, 23, 24, 25], [0.0, 0.0, 0.0, 0.0, 0.0, 4.5]
    runs = [
        record(
            CONFUSION,
            100 * i,
            0,
            float(error),
            {"log_determinant": gamma, "robustness": error},
            train_loss=1e-3 * loss,
            train_error=gap,
        )
        for i, (gamma, loss, error, gap) in enumerate(
            zip(gammas, losses, errors, gaps, strict=True)
        )
    ]
    for line, loss in zip(runs, (6, 5, 4, 3, 2, 1), strict=True):
        line["result"]["test"]["loss"] = float(loss)
    lines = {
        line.measure: line for line in correlations(read(tmp_path, runs)) if line.runs == "all"
    }
    # Of 15 pairs, one is the other way round in gamma-hat and the loss, another in error and loss.
    xz = yz = (14 - 1) / 15
    xy = (13 - 2) / 15
    partial = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert lines["log_determinant"].partial.kendall.value == pytest.approx(partial)
    assert math.isnan(lines["train_loss"].partial.kendall.value)
    # The gaps are 20, 22, 21, 23, 24 and 20.5: the last is smaller than all but the first.
    gap = lines["robustness"].others["generalization_gap"].rank.kendall.value
    assert gap == pytest.approx((11 - 4) / 15)
    assert lines["train_loss"].others["test_loss"].rank.kendall.value == pytest.approx(-1)
    assert lines["robustness"].sign_error.worst.value == 0
    assert lines["robustness"].information.value == pytest.approx(1)


def test_smoothed_labels_of_old_records_have_no_known_training_loss(tmp_path):
    old = confusion_records()
    for line in old:
        line["config"]["training"]["label_smoothing"] = 0.1
    scenarios = read(tmp_path, old)
    assert np.isnan(column(scenarios[0].runs, "train_loss")).all()
    assert not any(run.flags for run in scenarios[0].runs)
    assert "do not have the training losses" in summary(scenarios, correlations(scenarios))


def test_a_random_number_is_the_networks_own(tmp_path):
    (scenario,) = read(tmp_path, confusion_records())
    numbers = column(scenario.runs, "random")
    assert len(set(numbers)) == 9
    assert ((numbers >= 0) & (numbers < 1)).all()
    np.testing.assert_array_equal(
        numbers, column(read(tmp_path, confusion_records())[0].runs, "random")
    )


# Figures.


def test_the_forest_has_each_coefficient_with_its_interval(tmp_path):
    lines = correlations(read(tmp_path, confusion_records(), batch_size_records()))
    figure = forest_figure(lines)
    assert len(figure.axes) == 3  # Two scenarios and both together.
    first = [line for line in lines if line.scenario == CONFUSION]
    tau, _ = (line for line in figure.axes[0].lines if line.get_ls() == "None")
    np.testing.assert_allclose(tau.get_xdata(), [line.rank.kendall.value for line in first])
    segments = [c.get_segments()[0] for c in figure.axes[0].collections]
    drawn = [segment[:, 0] for segment in segments if len(segment)]
    estimates = [line.rank.kendall for line in first] + [line.partial.kendall for line in first]
    np.testing.assert_allclose(drawn, [(e.low, e.high) for e in estimates if e.low == e.low])
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert names[1:] == ["robustness", "training loss", "random number"]
    other = forest_figure(lines, "test_loss")
    assert other.axes[-1].get_xlabel() == "tau with the test cross-entropy"
    tau, _ = (line for line in other.axes[0].lines if line.get_ls() == "None")
    expected = [line.others["test_loss"].rank.kendall.value for line in first]
    np.testing.assert_allclose(tau.get_xdata(), expected)


def test_the_scatter_has_each_network_once(tmp_path):
    scenarios = read(tmp_path, confusion_records(), batch_size_records())
    figure = scatter_figure(scenarios)
    for axes, scenario in zip(figure.axes, scenarios, strict=True):
        points = {xy for line in axes.lines for xy in zip(*line.get_data(), strict=True)}
        assert points == {(r.test_error, r.metrics["log_determinant"]) for r in scenario.runs}
    names = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert names == ["128", "256", "512", "1024"]


def panels(figure):
    """The panels' axes, left and right, by the metric's label."""
    axes = figure.axes
    lefts, rights = axes[: len(axes) // 2], axes[len(axes) // 2 :]
    return {left.get_ylabel(): (left, right) for left, right in zip(lefts, rights, strict=True)}


def test_panels_have_means_and_deviations(tmp_path):
    figure = scenario_figure(read(tmp_path, confusion_records())[0])
    by_metric = panels(figure)
    assert len(by_metric) == 2
    left, right = by_metric["robustness"]
    np.testing.assert_allclose(left.lines[0].get_ydata(), [49, 44, 39])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [20.1, 22.1, 24.1])
    for axes, mean, std in ((left, 49, 1), (right, 20.1, 0.1)):
        band = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert set(np.round([mean - std, mean + std], 6)) <= set(np.round(band, 6))
    assert right.lines[0].get_linestyle() == "--"
    assert right.get_ylabel() == "test error (%)"
    assert left.get_yscale() == "linear"
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["0", "500", "1000"]
    assert figure.get_supxlabel() == "size of the confusion set"


def test_wide_spreads_are_logarithmic(tmp_path):
    norms = {0: 1e-5, 1: 1e-3, 2: 1e-2}
    records = [
        record(
            BATCH_SIZE, value, seed, 9, {"frobenius_norm": factor * norms[seed], "robustness": 1}
        )
        for value, factor in ((128, 1), (256, 10))
        for seed in norms
    ]
    by_metric = panels(scenario_figure(read(tmp_path, records)[0]))
    left, _ = by_metric["Frobenius norm\n(geometric mean)"]
    assert left.get_yscale() == "log"
    mean = 10 ** ((-5 - 3 - 2) / 3)
    np.testing.assert_allclose(left.lines[0].get_ydata(), [mean, 10 * mean])
    assert by_metric["robustness"][0].get_yscale() == "linear"


def markers(axes):
    return [
        (line.get_marker(), *line.get_ydata()) for line in axes.lines if line.get_ls() == "None"
    ]


def test_flagged_and_infinite_runs_are_marked(tmp_path):
    records = [
        record(BATCH_SIZE, 128, 0, 8.0, {"log_determinant": -1000.0}),
        record(BATCH_SIZE, 128, 1, 8.5, {"log_determinant": "-inf"}),
        record(BATCH_SIZE, 256, 0, 9.0, {"log_determinant": -900.0}, train_error=0.7),
        record(BATCH_SIZE, 256, 1, 9.5, {"log_determinant": "nan"}),
    ]
    figure = scenario_figure(read(tmp_path, records)[0])
    ((left, right),) = panels(figure).values()
    np.testing.assert_allclose(left.lines[0].get_ydata(), [-1000, -900])
    assert sorted(markers(left)) == [("D", -900.0), ("v", 0.03)]
    assert markers(right) == [("D", 9.0)]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[-2:] == ["not converged", "infinite"]


@pytest.mark.filterwarnings("error")
def test_a_scenario_just_begun_can_be_drawn(tmp_path):
    (scenario,) = read(tmp_path, confusion_records()[:1])
    scenario_figure(scenario).savefig(tmp_path / "one.png")
    assert column(scenario.runs, "test_error") == [20.0]
    assert "| 0 | 1 | 20.00 | 0.500 | 0.040 | -900 | 50 | 0.001 | 0.000 |  |" in summary(
        [scenario], correlations([scenario])
    )


# Files.


def refuse(constant):
    raise ValueError(f"{constant} is not JSON")


@pytest.mark.filterwarnings("error")
def test_files(tmp_path, capsys):
    store = write_store(tmp_path / "store", confusion_records())
    plot_results(PlotConfig((str(store),)))
    pdf = store / "figures" / f"{CONFUSION}.pdf"
    assert pdf.read_bytes().startswith(b"%PDF")
    assert pdf.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    text = (store / "summary.md").read_text()
    assert text in capsys.readouterr().out
    assert f"](figures/{CONFUSION}.png)" in text
    found = json.loads((store / "summary.json").read_text(), parse_constant=refuse)
    assert found["correlations"][0]["rank"]["kendall"]["value"] == pytest.approx(1)
    assert found["correlations"][-2]["rank"]["kendall"]["value"] == "nan"
    assert len(found["scenarios"][0]["runs"]) == 9
    # Drawn again, nothing changes that is under version control.
    before = {path: path.read_bytes() for path in store.rglob("*.*")}
    plot_results(PlotConfig((str(store),)))
    assert {path: path.read_bytes() for path in store.rglob("*.*")} == before


def test_several_stores_need_an_output(tmp_path):
    stores = tuple(
        str(write_store(tmp_path / name, records))
        for name, records in (("one", confusion_records()), ("other", batch_size_records()))
    )
    with pytest.raises(ValueError, match="--output: give the folder"):
        plot_results(PlotConfig(stores))
    plot_results(PlotConfig(stores, str(tmp_path / "both")))
    figures = sorted(path.name for path in (tmp_path / "both" / "figures").glob("*.png"))
    others = {"correlations_generalization_gap", "correlations_test_loss"}
    expected = {"correlations", *others, "log_determinant", BATCH_SIZE, CONFUSION}
    assert figures == sorted(f"{name}.png" for name in expected)


def test_command(tmp_path, run_command):
    store = write_store(tmp_path / "a store", batch_size_records())
    status, output, errors = run_command("plot_results", f"--store={store}")
    assert (status, errors) == (0, "")
    assert "Scenario III" in output
