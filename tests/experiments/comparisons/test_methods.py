"""The comparison of training methods: its runs, its strengths, its table, its command."""

import re

import numpy as np
import pytest
import scipy.stats

from fisher_keras.experiments.comparisons.methods import PRESETS, methods_runs, methods_table
from fisher_keras.experiments.runs.experiment import ExperimentOptions, preset_of
from fisher_keras.experiments.runs.store import Record
from fisher_keras.experiments.runs.trained_network import TrainedNetwork


def runs_of(preset, **options):
    return methods_runs(preset_of(PRESETS, ExperimentOptions(preset=preset, **options)))


@pytest.mark.parametrize("preset", PRESETS)
def test_strengths_are_multiples_of_parity_and_sub_batches_have_16_images(preset):
    strengths = []
    for run in runs_of(preset):
        training = run.config["training"]
        if training.get("regularize"):
            m = training["num_sub_batches"]
            assert m * 16 == training["batch_size"]
            effective_rate = training["learning_rate"] / (1 - 0.9)
            strengths.append(2 * training["alpha"] * training["beta"] * m / effective_rate)
            assert training["share_gradients"]
    assert len(strengths) == len(runs_of(preset)) * 3 / 7
    np.testing.assert_allclose(strengths, [0.25, 1, 4] * (len(strengths) // 3), rtol=0.01)


def test_methods_of_a_seed_differ_in_the_method_alone():
    shared = []
    of_methods = {"regularize", "method", "alpha", "beta", "num_sub_batches", "clip_norm", "rho"}
    of_methods |= {"share_gradients", "gradient"}
    for run in runs_of("laptop", label_smoothing=0.1)[:7]:
        training = run.config["training"]
        assert training["label_smoothing"] == 0.1
        shared.append({k: v for k, v in training.items() if k not in of_methods})
        assert run.seed == 0
    assert shared == shared[:1] * 7


def network(run, test_error, trace=np.e):
    fit = {"loss": 0.3, "error_percent": 0.0, "num_images": 64, "calibration_error": 0.1}
    metrics = {"log_determinant": {"mean": -5.0}, "trace": {"mean": trace}}
    result = {
        "train": {**fit, "excess_loss": 0.3},
        "test": {**fit, "error_percent": test_error},
        "metrics": metrics,
        "normalized_metrics": {**metrics, "log_determinant": {"mean": "-inf"}},
    }
    return TrainedNetwork.of(Record(run.key, **run.definition, wall_time_s=1.0, result=result))


def test_table_has_paired_differences():
    errors = {"plain": [10.0, 12.0, 11.0], "fisher, 1 of parity": [9.0, 10.5, 9.5]}
    networks = []
    for run in runs_of("laptop"):
        method = run.label.partition(" seed")[0].removeprefix("batch 64 ")
        if method in errors and run.seed < 3:
            networks.append(network(run, errors[method][run.seed]))
    header, plain, fisher = methods_table(networks[::-1])
    plain, fisher = (dict(zip(header, row, strict=True)) for row in (plain, fisher))
    assert (plain["batch"], plain["method"], plain["runs"]) == ("64", "plain", "3")
    assert plain["less plain"] == plain["less clipped"] == fisher["less clipped"] == "-"
    assert fisher["less ghost"] == "-"
    differences = np.subtract(errors["fisher, 1 of parity"], errors["plain"])
    low, high = scipy.stats.t.interval(0.95, 2, differences.mean(), scipy.stats.sem(differences))
    expected = f"{differences.mean():+.2f} [{low:+.2f}, {high:+.2f}]"
    assert fisher["less plain"] == expected
    assert fisher["ln trace"] == "1.00 ± 0.00"
    assert fisher["normalized"] == "-inf"


def test_the_command_plans_all_runs(tmp_path, run_command):
    flags = ["--preset=smoke", f"--output_dir={tmp_path}", "--dry_run"]
    status, output, errors = run_command("compare_methods", *flags)
    assert (status, errors) == (0, "")
    assert len(re.findall(r"batch 32 .* seed [01]", output)) == 14
