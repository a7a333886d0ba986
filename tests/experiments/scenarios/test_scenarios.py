"""The scenarios of Section 7.1: what their runs are, and one of them from the shell."""

import json

import pytest
from processes import ROOT, finish, start

from fisher_keras.experiments.names import PRESETS
from fisher_keras.experiments.runs.experiment import ExperimentOptions, preset_of
from fisher_keras.experiments.runs.store import ExperimentStore
from fisher_keras.experiments.scenarios.runs import SCENARIOS, VARIABLES, scenario_runs


def paper_runs(experiment):
    runs = scenario_runs(experiment, SCENARIOS[experiment]["paper"])
    return [(run.config["training"], run.seed) for run in runs]


@pytest.mark.parametrize(
    ("experiment", "values"),
    [
        ("scenario_confusion", [None, 1000, 2000, 3000, 4000, 5000]),
        ("scenario_augmentation", ["no-aug", "flip-only", "1-crop-f", "4-crop-f"]),
        ("scenario_batch_size", [128, 256, 512, 1024]),
    ],
)
def test_paper_presets_are_section_7_1(experiment, values):
    variable = VARIABLES[experiment]
    fixed = {
        "arch": "resnet",
        "dataset": "cifar10",
        "epochs": 200,
        "learning_rate": 0.1,
        "schedule": "plateau",
        "augmentation": "4-crop-f",
        "batch_size": 128,
    }
    if experiment == "scenario_confusion":
        fixed["train_size"] = 10_000
    fixed.pop(variable, None)
    found = []
    for training, seed in paper_runs(experiment):
        found.append((training.pop(variable, None), seed))
        assert training == fixed
    assert found == [(value, seed) for seed in range(5) for value in values]


@pytest.mark.parametrize("experiment", SCENARIOS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_compares_the_four_metrics(experiment, preset):
    for run in scenario_runs(experiment, SCENARIOS[experiment][preset]):
        assert set(run.config["metrics"]["names"]) == {
            "log_determinant",
            "robustness",
            "frobenius_norm",
            "spectral_radius",
        }


def runs_of(experiment, preset="laptop", **options):
    return scenario_runs(
        experiment, preset_of(SCENARIOS[experiment], ExperimentOptions(preset=preset, **options))
    )


@pytest.mark.parametrize("experiment", SCENARIOS)
@pytest.mark.parametrize(("folder", "smoothing"), [("laptop", 0.0), ("laptop_smoothed", 0.1)])
def test_records_of_before_are_still_those_of_runs(experiment, folder, smoothing):
    """Runs of two protocols do not have the same numbers of random labels."""
    lines = (ROOT / "results" / f"{experiment}_{folder}" / "runs.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    expected = {
        record["key"]
        for record in records
        if record["config"]["training"].get("confusion_size") not in (100, 200, 300, 400)
    }
    assert expected <= {run.key for run in runs_of(experiment, label_smoothing=smoothing)}


def test_a_protocol_has_runs_and_a_folder_of_its_own():
    experiment, protocols = "scenario_batch_size", [{}, {"label_smoothing": 0.1}]
    protocols += [{"target_loss": 0.01}, {"target_loss": 0.01, "label_smoothing": 0.1}]
    keys = [run.key for protocol in protocols for run in runs_of(experiment, **protocol)]
    assert len(set(keys)) == len(keys)
    folders = [ExperimentOptions(preset="laptop", **options).protocol for options in protocols]
    assert folders == ["laptop", "laptop_smoothed", "laptop_to_0.01", "laptop_smoothed_to_0.01"]
    run = runs_of(experiment, target_loss=0.01)[0]
    assert run.config["training"]["target_loss"] == 0.01
    assert "label_smoothing" not in run.config["training"]


def test_scenario_from_the_shell(tmp_path, run_command):
    flags = ("--preset=smoke", "--label_smoothing=0.1", f"--output_dir={tmp_path}")
    status, plan, errors = run_command("scenario_batch_size", *flags, "--dry_run")
    assert (status, errors) == (0, "")
    assert "batch_size 20 seed 1" in plan
    assert not (tmp_path / "runs.jsonl").exists()
    # All but one are finished, as a training in a process of its own takes long.
    store = ExperimentStore(tmp_path)
    runs = runs_of("scenario_batch_size", "smoke", label_smoothing=0.1)
    for run in runs[:-1]:
        store.write_definition(run, runs_of)
        store.finish(run, {}, 1.0)
    script = ROOT / "bin" / "scenario_batch_size"
    command = start(script, *flags, "--num_workers=2", TF_CPP_MIN_LOG_LEVEL=None)
    assert finish(command, timeout=240)[::2] == (0, "")
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    found = {(r["config"]["training"]["batch_size"], r["seed"]): r["result"] for r in records}
    assert sorted(found) == [(10, 0), (10, 1), (20, 0), (20, 1)]
    assert [key for key, result in found.items() if "metrics" in result] == [(20, 1)]


def test_a_data_set_that_is_not_there_is_one_error_before_all_runs(tmp_path, run_command):
    flags = (
        "--preset=paper",
        f"--output_dir={tmp_path}",
        f"--data_dir={tmp_path / 'none'}",
        "--nodownload",
    )
    status, _, errors = run_command("scenario_confusion", *flags)
    assert status == 1
    assert "cannot load cifar10" in errors
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
