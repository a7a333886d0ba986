"""The comparison of training methods: its runs, its strengths, its table, its command."""

import contextlib
import dataclasses
import re

import numpy as np
import pytest
import scipy.stats

from fisher_keras.experiments.comparisons import common
from fisher_keras.experiments.comparisons.arms import ARMS, OTHER_NETWORKS
from fisher_keras.experiments.comparisons.methods import (
    PRESETS,
    make_methods_table,
    methods_table,
    named_runs,
    options_runs,
)
from fisher_keras.experiments.comparisons.table_options import MethodsOptions
from fisher_keras.experiments.runs.engine import FailedRunsError
from fisher_keras.experiments.runs.experiment import preset_of
from fisher_keras.experiments.runs.store import Record, kind
from fisher_keras.experiments.runs.trained_network import TrainedNetwork
from fisher_keras.experiments.training.config import TrainingConfig, resolve


def runs_of(preset, arms="usual", **options):
    named = named_runs(preset_of(PRESETS, MethodsOptions(preset=preset, **options)), arms)
    return [run for _, run in named]


def table_of(networks, preset, arms="usual"):
    named = named_runs(preset_of(PRESETS, MethodsOptions(preset=preset)), arms)
    return methods_table(networks, {kind(run): name for name, run in named})


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("arms", ["usual", "further", "cnn", "gelu", "all"])
def test_strengths_are_multiples_of_parity_and_sub_batches_have_16_images(preset, arms):
    for run in runs_of(preset, arms):
        training = run.config["training"]
        name = run.label.partition(" of parity")[0].rpartition(", ")[2]
        m = training.get("num_sub_batches", training.get("sub_batches"))
        assert m in (None, training["batch_size"] // 16)
        if training.get("regularize") and "strength" not in training:
            effective_rate = training["learning_rate"] / (1 - 0.9)
            strength = 2 * training["alpha"] * training["beta"] * m / effective_rate
            assert strength == pytest.approx(float(name), rel=0.01)
            assert training.get("share_gradients", False) == ("not shared" not in run.label)
        assert training.get("strength", float("nan")) in (0.25, 1.0) or "any rate" not in run.label


def test_the_usual_arms_are_among_all_and_no_run_is_there_twice():
    usual, further, every = (runs_of("laptop", arms) for arms in ("usual", "further", "all"))
    assert {run.key for run in usual} < {run.key for run in further} < {run.key for run in every}
    assert len(usual) == 7 * 2 * 5
    cnn, gelu = runs_of("laptop", "cnn"), runs_of("laptop", "gelu")
    # What has a batch size of its own counts once for both batch sizes: an arm, and the CNN.
    assert len(cnn) == len(OTHER_NETWORKS["cnn"].arms) * 5
    assert len(gelu) == len(OTHER_NETWORKS["gelu"].arms) * 2 * 5
    assert len(further) == (2 * (len(ARMS) - 1) + 1) * 5
    assert len(every) == len(further) + len(cnn) + len(gelu)
    assert {run.key for run in cnn + gelu} < {run.key for run in every}
    assert len({(run.label, run.seed) for run in every}) == len(every)
    for run in every:
        training = run.config["training"]
        assert ("cnn" in run.label) == (training["arch"] == "cnn") == (training["width"] == 0.25)
        assert ("gelu" in run.label) == (training.get("activation") == "gelu")
        assert ("batches of 16" in run.label) == (training["batch_size"] == 16)


def test_a_network_is_not_beside_itself_nor_has_another_activation_than_its_own():
    networks = {
        "cnn": {"cnn", "cnn gelu"},
        "wide_resnet": {"wide_resnet", "wide_resnet gelu", "cnn"},
        "keras.applications:MobileNetV2": {"keras.applications:MobileNetV2", "cnn"},
    }
    for arch, expected in networks.items():
        configs = [run.config["training"] for run in runs_of("smoke", "all", arch=arch)]
        found = {" ".join((c["arch"], c.get("activation", ""))).strip() for c in configs}
        assert found == expected


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


def test_all_arms_can_be_trained_as_they_say():
    for run in runs_of("smoke", "all"):
        resolve(TrainingConfig(**run.config["training"], seed=run.seed))


def test_arms_batch_sizes_and_seeds_can_be_chosen():
    chosen = {"only": ("plain", "ghost"), "batch_size": 256, "first_seed": 5, "num_seeds": 2}
    named = options_runs(MethodsOptions(preset="laptop", **chosen))
    names = [(name, run.seed, run.config["training"]["batch_size"]) for name, run in named]
    assert names == [(arm, seed, 256) for seed in (5, 6) for arm in ("plain", "ghost")]
    usual = {run.key for run in runs_of("laptop", num_seeds=7)}
    assert {run.key for _, run in named} <= usual


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 128}, "--batch_size must be one of the preset's, 64, 256, got 128"),
        ({"arms": "cnn", "arch": "cnn"}, "--arms=cnn is not for --arch=cnn: leave one out"),
        (
            {"arms": "gelu", "arch": "keras.applications:ResNet50"},
            "--arms=gelu is not for --arch=keras.applications:ResNet50",
        ),
        ({"only": ("m-sam",)}, "--arms=usual has no arm 'm-sam': add --arms=further"),
        ({"only": ("adam",)}, "--arm must be one of plain; clipped; .*, got 'adam'"),
    ],
)
def test_a_choice_that_is_not_there_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        options_runs(MethodsOptions(preset="laptop", **options))


def network(run, test_error, trace=np.e, **parts):
    fit = {"loss": 0.3, "error_percent": 0.0, "num_images": 64, "calibration_error": 0.1}
    metrics = {"log_determinant": {"mean": -5.0}, "trace": {"mean": trace}}
    result = {
        "train": {**fit, "excess_loss": 0.3},
        "test": {**fit, "error_percent": test_error},
        **parts,
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
    header, plain, fisher = table_of(networks[::-1], "laptop")
    plain, fisher = (dict(zip(header, row, strict=True)) for row in (plain, fisher))
    names = ("resnet", "64", "plain", "3")
    assert tuple(plain[n] for n in ("network", "batch", "method", "runs")) == names
    assert plain["less plain"] == plain["less clipped"] == fisher["less clipped"] == "–"
    assert fisher["less ghost"] == "–"
    differences = np.subtract(errors["fisher, 1 of parity"], errors["plain"])
    low, high = scipy.stats.t.interval(0.95, 2, differences.mean(), scipy.stats.sem(differences))
    expected = f"{differences.mean():+.2f} [{low:+.2f}, {high:+.2f}]"
    assert fisher["less plain"] == expected
    assert fisher["ln trace"] == "1.00 ± 0.00"
    assert fisher["normalized"] == "– (3 of 3: -inf)"


@pytest.mark.parametrize("stop", [None, FailedRunsError, KeyboardInterrupt])
def test_the_table_has_all_that_is_finished(tmp_path, monkeypatch, capsys, stop):
    """Of an arm and a seed alone that are trained, and also where a run fails or is stopped."""

    def execute_runs(runs, *others, **options):
        trained.extend(run.label for run in runs)
        if stop:
            raise stop

    trained, errors = [], {"plain": 12.0, "sam": 11.0, "fisher, 0.25 of parity": 10.0}
    monkeypatch.setattr(common, "execute_runs", execute_runs)
    found = [
        network(run, errors[name] + run.seed / 10).record.to_line()
        for name, run in named_runs(PRESETS["laptop"])
        if name in errors and run.seed < 3
    ]
    (tmp_path / "runs.jsonl").write_text("".join(found))
    given = {"only": ("sam",), "batch_size": 64, "num_seeds": 1, "output_dir": str(tmp_path)}
    with pytest.raises(stop) if stop else contextlib.nullcontext():
        make_methods_table(MethodsOptions(preset="laptop", **given))
    assert trained == ["batch 64 sam seed 0"]
    table = (tmp_path / "methods.md").read_text()
    assert table in capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("|")[2:7]] for line in table.splitlines()[2:8]]
    expected = [
        [batch, name, "3", f"{error + 0.1:.2f} ± 0.10"]
        for batch in ("64", "256")
        for name, error in zip(
            ("plain", "fisher, 0.25 of parity", "sam"), (12, 10, 11), strict=True
        )
    ]
    assert [row[:4] for row in cells] == expected
    assert cells[2][4].startswith("-1.00 [")


def test_table_has_ln_det_xi_if_all_networks_have_it():
    first, second, *_ = [network(run, 50.0) for run in runs_of("laptop") if run.seed == 0]
    later = {**first.metrics, "log_determinant_margins": 650.04}
    first, also = (dataclasses.replace(n, metrics=later) for n in (first, second))
    header, *rows = table_of([first, also], "laptop")
    assert [row[header.index("ln det Xi")] for row in rows] == ["650.0"] * 2
    assert "ln det Xi" not in table_of([first, second], "laptop")[0]


def test_sam_has_the_rho_that_is_best_by_validation():
    """The test errors go the other way, and decide nothing."""
    validation = {"sam": 30.0, "sam, rho 0.1": 20.0, "sam, rho 0.2": 25.0}
    networks = []
    for run in runs_of("laptop", "all"):
        method = run.label.partition(" seed")[0].removeprefix("batch 256 ")
        if method in validation and run.seed < 2:
            part = {"loss": 1.0, "error_percent": validation[method], "num_images": 1000}
            networks.append(network(run, 90 - validation[method], validation=part))
    *_, best = table_of(networks, "laptop", "all")
    assert best[2:5] == ["best by validation: sam, rho 0.1", "2", "70.00 ± 0.00"]
    del networks[0].record.result["validation"]
    rows = table_of([TrainedNetwork.of(n.record) for n in networks], "laptop", "all")
    assert [row[2] for row in rows[1:]] == list(validation)


def test_the_best_rho_is_that_of_the_seeds_that_all_have():
    """Seed 1 has harder images, which only one of both has been trained on so far."""
    validation = {("sam", 0): 30.0, ("sam", 1): 60.0, ("sam, rho 0.1", 0): 40.0}
    networks = []
    for run in runs_of("laptop", "all"):
        method = run.label.partition(" seed")[0].removeprefix("batch 256 ")
        if (method, run.seed) in validation:
            error = validation[method, run.seed]
            part = {"loss": 1.0, "error_percent": error, "num_images": 1000}
            networks.append(network(run, 50.0, validation=part))
    *_, best = table_of(networks, "laptop", "all")
    assert best[2] == "best by validation: sam"


def test_the_command_plans_all_runs(tmp_path, run_command):
    flags = ["--preset=smoke", f"--output_dir={tmp_path}", "--dry_run"]
    status, output, errors = run_command("compare_methods", *flags)
    assert (status, errors) == (0, "")
    assert len(re.findall(r"batch 32 .* seed [01]", output)) == 14


def test_an_arm_is_judged_by_the_losses_of_its_control():
    """A loss of 0.3 is usual for all arms together, and 100 times that of plain training."""
    networks = []
    for run in runs_of("laptop"):
        if run.seed < 2:
            found = network(run, 50.0)
            plain = " plain seed" in run.label
            part = dataclasses.replace(found.train, excess_loss=0.003 if plain else 0.3)
            networks.append(dataclasses.replace(found, train=part))
    flagged = {tuple(row[1:3]): row[-1] for row in table_of(networks, "laptop")[1:]}
    assert {arm for (_, arm), count in flagged.items() if not count} == {"plain"}
    assert set(flagged.values()) == {"", "2"}


def test_a_target_loss_leaves_an_arm_its_own_end():
    runs = named_runs(preset_of(PRESETS, MethodsOptions(preset="laptop", target_loss=0.1)), "all")
    ends = {
        name: [run.config["training"].get(f"target_{end}") for end in ("loss", "error")]
        for name, run in runs
    }
    assert ends.pop("plain, to 5 % train error") == [None, 5.0]
    assert all(end == [0.1, None] for end in ends.values())
