"""Tables 1 and 2, from made-up records and from the shell."""

import copy
import functools
import json
import math
import pathlib
import statistics

from fisher_keras.experiments import names
from fisher_keras.experiments.comparisons import common
from fisher_keras.experiments.comparisons.regularization import (
    PAPER_TABLE_1,
    PRESETS,
    make_table_1,
    make_table_2,
    regularization_runs,
    table_1,
    table_2,
)
from fisher_keras.experiments.comparisons.table_options import Table2Options, TableOptions
from fisher_keras.experiments.runs.experiment import ExperimentOptions, preset_of
from fisher_keras.experiments.runs.store import Record
from fisher_keras.experiments.runs.trained_network import TrainedNetwork
from fisher_keras.experiments.search.search_presets import TUNING_PRESETS
from fisher_keras.experiments.statistics.text_tables import (
    latex_table,
    markdown_table,
    mean_and_spread,
)
from fisher_keras.models import RegularizerSettings, write_regularizer_settings


def record(arch, dataset, regularize, error, gamma, normalized_gamma=0.0, seed=0):
    training = {"arch": arch, "dataset": dataset}
    if regularize:
        training["regularize"] = True
    result = {
        "train": {"loss": 0.01, "error_percent": 0.0, "num_images": 10},
        "test": {"error_percent": error, "loss": error / 10, "num_images": 10},
        "metrics": {"log_determinant": {"mean": gamma}},
        "normalized_metrics": {"log_determinant": {"mean": normalized_gamma}},
    }
    key = f"{arch} {dataset} {regularize} {seed}"
    return Record(key, "regularization", 1, {"training": training}, seed, 1.0, result)


def networks(records):
    return list(map(TrainedNetwork.of, records))


RECORDS = [
    record("resnet", "cifar10", False, 8.0, -10.0, 5.0),
    record("resnet", "cifar10", False, 9.0, -12.0, 6.0, seed=1),
    record("resnet", "cifar10", True, 7.0, -20.0, 7.0),
    record("resnet", "cifar10", True, 7.5, "-inf", 9.0, seed=1),
    record("cnn", "cifar100", True, 30.0, 1.0),
]


def test_table_1_has_the_papers_order_and_numbers_beside():
    _, resnet, cnn = table_1(networks(RECORDS))
    spread = statistics.stdev([8.0, 9.0])
    assert resnet[:4] == ["ResNet", "CIFAR-10", f"8.50 ± {spread:.2f}", "7.25 ± 0.35"]
    assert resnet[4:6] == ["8.50 ± 0.31", "7.91 ± 0.25"]
    assert cnn[:4] == ["CNN", "CIFAR-100", "–", "30.00"]
    assert cnn[4:6] == ["31.12 ± 0.35", "29.19 ± 0.21"]


def test_tables_have_the_difference_of_pairs():
    """-1 and -1.5: standard error 1/4, and t with one degree of freedom reaches tan(.95 pi/2)."""
    reach = 0.25 * math.tan(0.95 * math.pi / 2)
    _, resnet, cnn = table_1(networks(RECORDS))
    assert resnet[6] == f"-1.25 [{-1.25 - reach:+.2f}, {-1.25 + reach:+.2f}]"
    assert cnn[6] == "–"
    _, resnet, _ = table_2(networks(RECORDS), normalize_logits=False)
    assert resnet[6] == "–"  # One is infinite.
    _, resnet, _ = table_2(networks(RECORDS), normalize_logits=True)
    assert resnet[6].startswith("+2.5 [")


def test_tables_have_test_cross_entropy_and_calibration_error():
    for table in (table_1, functools.partial(table_2, normalize_logits=False)):
        header, resnet, _ = table(networks(RECORDS))
        values = dict(zip(header, resnet, strict=True))
        assert values["test cross-entropy, without / with"] == "0.850 ± 0.071 / 0.725 ± 0.035"
        assert values["calibration error, without / with"] == "– / –"
    records = copy.deepcopy(RECORDS)
    for calibration_error, line in enumerate(records):
        line.result["test"]["calibration_error"] = calibration_error / 10
    header, resnet, _ = table_1(networks(records))
    values = dict(zip(header, resnet, strict=True))
    assert values["calibration error, without / with"] == "0.050 ± 0.071 / 0.250 ± 0.071"


def test_table_2_of_plain_and_normalized_logits():
    _, resnet, _ = table_2(networks(RECORDS), normalize_logits=False)
    assert resnet[2:4] == ["-11.0 ± 1.4", "-20.0 (1 of 2: -inf)"]
    assert resnet[4:6] == ["-979.3 ± 22.3", "-1138.1 ± 11.0"]
    _, resnet, _ = table_2(networks(RECORDS), normalize_logits=True)
    assert resnet[2:4] == ["5.5 ± 0.7", "8.0 ± 1.4"]


def test_the_files_of_both_tables_have_two_columns_of_names(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "execute_runs", lambda *_, **options: None)
    run = regularization_runs(PRESETS["smoke"])[0]
    result = {**RECORDS[0].result, "data": "abc"}
    line = Record(run.key, **run.definition, wall_time_s=1.0, result=result).to_line()
    (tmp_path / "runs.jsonl").write_text(line)
    make_table_1(TableOptions(preset="smoke", output_dir=str(tmp_path)))
    make_table_2(Table2Options(preset="smoke", output_dir=str(tmp_path)))
    for name in ("table1", "table2"):
        _, rule, row = (tmp_path / f"{name}.md").read_text().splitlines()[:3]
        assert rule.startswith("| --- | --- | ---: | ")
        assert row.startswith("| CNN | digits | ")


def test_runs_that_are_at_no_minimum_are_counted():
    records = [
        record("cnn", "cifar10", regularize, 8.0, 1.0, seed=seed)
        for regularize, seed in ((False, 0), (True, 0), (True, 1))
    ]
    assert [row[-1] for row in table_1(networks(records))] == ["flagged", ""]
    records[2].result["train"] |= {"loss": 0.4, "error_percent": 12.0}
    for rows in (table_1(networks(records)), table_2(networks(records), normalize_logits=False)):
        assert [row[-1] for row in rows] == ["flagged", "0 / 1"]


def test_paper_preset_is_table_1():
    runs = regularization_runs(PRESETS["paper"])
    assert len(runs) == 5 * 2 * len(PAPER_TABLE_1)
    assert len({run.key for run in runs}) == len(runs)
    epochs = {run.config["training"]["arch"]: run.config["training"]["epochs"] for run in runs}
    assert epochs == {"cnn": 200, "wide_resnet": 200, "densenet": 300, "resnet": 164}
    assert not any("train_size" in run.config["training"] for run in runs)


def test_a_table_of_settings_decides_the_regularized_runs_alone(tmp_path):
    path = tmp_path / "settings.json"
    write_regularizer_settings(path, "cnn", "digits", RegularizerSettings(beta=3.0), {})
    usual = regularization_runs(PRESETS["smoke"])
    for run, other in zip(regularization_runs(PRESETS["smoke"], str(path)), usual, strict=True):
        training = run.config["training"]
        if training["arch"] == "cnn" and training.get("regularize"):
            assert training["beta"] == 3.0
        else:
            assert run.key == other.key
        assert "settings_file" not in training


def test_records_of_before_are_still_those_of_runs():
    results = pathlib.Path(__file__).parents[3] / "results" / "archive"
    lines = (results / "regularization_laptop" / "runs.jsonl").read_text().splitlines()
    settings = str(results / "regularizer_settings_laptop.json")
    preset = preset_of(PRESETS, ExperimentOptions(preset="laptop"))
    keys = {run.key for run in regularization_runs(preset, settings)}
    assert {json.loads(line)["key"] for line in lines} == keys


def test_every_preset_trains_each_network_in_both_ways():
    for name in names.PRESETS:
        preset = PRESETS[name]
        runs = regularization_runs(preset)
        assert len(runs) == 2 * preset.num_seeds * len(preset.values)
        for run in runs:
            assert run.config["metrics"]["names"] == ["log_determinant"]
            assert run.config["metrics"]["normalize_logits"] == 0.04


def test_laptop_preset_trains_the_networks_that_the_laptop_search_tunes():
    sizes = ("train_size", "epochs", "batch_size", "augmentation", "depth", "width")
    search = TUNING_PRESETS["laptop"]
    found = {}
    for run in regularization_runs(PRESETS["laptop"]):
        training = run.config["training"]
        found[training["arch"]] = {name: training[name] for name in sizes if name in training}
    for arch, training in found.items():
        tuned = {**search.training, **search.networks[arch]}
        assert training == {name: tuned[name] for name in sizes if name in tuned}
    assert found["cnn"]["width"] == 0.25
    assert found["cnn"]["batch_size"] == 32
    assert found["resnet"]["depth"] == 8
    assert found["resnet"]["batch_size"] == 64


def test_text_tables():
    rows = [["a", "b (%)"], ["x_1", mean_and_spread([1.0, 3.0], "{:.1f}", "{:.1f}")], ["&", "#"]]
    markdown = "| a | b (%) |\n| --- | ---: |\n| x_1 | 2.0 ± 1.4 |\n| & | # |"
    assert markdown_table(rows) == markdown
    lines = latex_table(rows).splitlines()
    assert lines[0] == r"\begin{tabular}{lr}"
    assert lines[2] == r"  a & b (\%) \\"
    assert lines[4] == r"  x\_1 & 2.0 $\pm$ 1.4 \\"
    assert lines[5] == r"  \& & \# \\"
    assert lines[-1] == r"\end{tabular}"


def test_infinite_and_unknown_values_are_counted_beside_the_mean_of_the_others():
    found = mean_and_spread([math.inf, 2.0, -math.inf, math.nan, 4.0, -math.inf])
    assert found == "3 ± 1.41 (2 of 6: -inf) (1 of 6: inf) (1 of 6: nan)"
    assert mean_and_spread([math.inf, -math.inf]) == "– (1 of 2: -inf) (1 of 2: inf)"
    assert mean_and_spread([]) == "–"
