"""Tests of the quickstart: its networks, what they come to, text, figure and files."""

import dataclasses
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from matplotlib.colors import to_hex
from processes import finish

from fisher_keras.datasets import confusion_set, load_dataset, subset
from fisher_keras.experiments.evaluate import EvaluationConfig, evaluate
from fisher_keras.experiments.quickstart import next_commands as commands
from fisher_keras.experiments.quickstart import progress as bar
from fisher_keras.experiments.quickstart import report, run, text
from fisher_keras.experiments.quickstart.figure import quickstart_figure
from fisher_keras.experiments.quickstart.networks import METHODS, Settings, networks
from fisher_keras.experiments.quickstart.results import (
    MethodRun,
    Minimum,
    error_differences,
    ordering,
)

ROOT = pathlib.Path(__file__).parents[2]
TINY = Settings(
    seeds=1,
    minima_seeds=1,
    train_size=20,
    epochs=2,
    confusion_sizes=(0, 10),
    num_samples=5,
    num_trials=2,
)
METHODS_ONLY = dataclasses.replace(TINY, seeds=2, confusion_sizes=())


# ------------------------------------------------------------------------------ which networks


def test_networks_are_those_of_a_seed_before_the_next():
    wanted = networks(Settings(seeds=3, minima_seeds=2, confusion_sizes=(0, 50)))
    groups = [(0, [*METHODS, 0, 50]), (1, [*METHODS, 0, 50]), (2, METHODS)]
    assert [(network.training.seed, network.group) for network in wanted] == [
        (seed, group) for seed, of_seed in groups for group in of_seed
    ]
    assert len({network.name for network in wanted}) == 13


def test_networks_of_a_half_differ_in_nothing_else():
    def differences(*groups):
        found = networks(Settings(seeds=1, confusion_sizes=(0, 50)))
        one, other = (
            dataclasses.asdict(next(n.training for n in found if n.group == group))
            for group in groups
        )
        return {name: other[name] for name in one if one[name] != other[name]}

    assert differences("baseline", "clipped") == {"clip_norm": 10.0}
    assert differences("clipped", "regularized") == {
        "regularize": True,
        "alpha": 1e-4,
        "beta": 10.0,
        "num_sub_batches": 8,
    }
    assert differences(0, 50) == {"confusion_size": 50}


def test_only_networks_whose_settings_changed_get_another_folder():
    def names(**changes):
        return {network.name for network in networks(dataclasses.replace(TINY, **changes))}

    assert names(num_trials=3) == names()
    assert len(names(seeds=2) - names()) == 3
    assert names() < names(seeds=2, minima_seeds=2)
    assert len(names() - names(confusion_sizes=(0, 11))) == 1
    assert not names() & names(epochs=3)


# ------------------------------------------------------------------------- training, for real


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Both halves of a single seed: the folder, the runs and the minima."""
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, *run.carry_out(TINY, folder)


def records(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/run.json")}


def test_each_method_is_trained_from_the_same_images(tiny):
    folder, runs, _ = tiny
    assert [one.method for one in runs] == list(METHODS)
    of_methods = [value for value in records(folder).values() if value["flags"]["arch"] == "cnn"]
    assert len({json.dumps(value["data"]) for value in of_methods}) == 1
    for one in runs:
        assert len(one.train_losses) == len(one.test_errors) == TINY.epochs
        # Whole numbers of the 397 test images.
        wrong = np.array(one.test_errors) * 397 / 100
        np.testing.assert_allclose(wrong, np.round(wrong), atol=1e-3)


def test_numbers_are_those_of_the_saved_networks(tiny):
    folder, runs, minima = tiny
    digits = load_dataset("digits")
    images, labels, rest, _ = subset(digits.train_images, digits.train_labels, 20, seed=0)
    mean, std = images.mean(), images.std()

    def log_probabilities(path, x):
        model = keras.saving.load_model(path, compile=False)
        logits = model.predict((x - mean) / std, verbose=0).astype(np.float64)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def error(log_p, y):
        return 100 * np.mean(log_p.argmax(axis=1) != y)

    for one in runs:
        (path,) = folder.glob(f"{one.method}_seed0_*/last.keras")
        log_p = log_probabilities(path, images)
        assert one.train_loss == pytest.approx(-log_p[np.arange(20), labels].mean(), rel=1e-5)
        test_error = error(log_probabilities(path, digits.test_images), digits.test_labels)
        assert one.test_errors[-1] == pytest.approx(test_error, abs=1e-3)
    for minimum in minima:
        others, random_labels = confusion_set(rest, minimum.confusion_size, 10, seed=0)
        trained = np.concatenate([images, others]), np.concatenate([labels, random_labels])
        log_p = log_probabilities(minimum.model, trained[0])
        assert minimum.train_error == pytest.approx(error(log_p, trained[1]), abs=1e-3)
        # Smoothed by 0.1, a label of 10 classes is 0.91 and nine times 0.01.
        smoothed = np.where(np.eye(10)[labels] == 1, 0.91, 0.01)
        least = -(0.91 * np.log(0.91) + 9 * 0.01 * np.log(0.01))
        loss = -(smoothed * log_p[:20]).sum(axis=1).mean()
        assert minimum.excess_loss == pytest.approx(loss - least, rel=1e-4)


def test_gamma_hat_is_that_of_the_command_to_try(tiny, capsys):
    _, _, minima = tiny
    *_, command = commands.next_commands(TINY, minima)
    flags = dict(flag.removeprefix("--").split("=") for flag in shlex.split(command)[1:])
    assert flags.pop("model") == str(minima[-1].model)
    numbers = {name: int(flags[name]) for name in flags if name != "dataset"}
    config = EvaluationConfig(
        tuple(str(minimum.model) for minimum in minima),
        dataset=flags["dataset"],
        metrics=("log_determinant",),
        **numbers,
    )
    values = {report.metrics["log_determinant"].mean for report in evaluate(config).values()}
    assert sorted(values) == pytest.approx(sorted(minimum.gamma_hat for minimum in minima))


def test_a_second_start_redoes_nothing(tiny, monkeypatch, capsys):
    folder, *results = tiny
    monkeypatch.setattr(run, "train", None)
    monkeypatch.setattr(run, "evaluate_local_minimum", None)
    assert list(run.carry_out(TINY, folder)) == results
    assert capsys.readouterr().out == f"0 networks to train; 5 are in {folder}.\n"


def test_another_number_of_trials_trains_nothing(tiny, capsys):
    folder, _, minima = tiny
    before = records(folder)
    _, again = run.carry_out(dataclasses.replace(TINY, num_trials=3), folder)
    assert records(folder) == before
    assert [one.excess_loss for one in again] == [one.excess_loss for one in minima]
    assert [one.gamma_hat for one in again] != [one.gamma_hat for one in minima]
    assert capsys.readouterr().out.splitlines()[-1].endswith("about 0 s left")


# ------------------------------------------------------------------ training, with a stand-in


@pytest.fixture
def trained(monkeypatch):
    """Replaces the training, and returns the names of the folders trained so far."""
    names = []

    def train(config, callbacks, **options):
        folder = pathlib.Path(config.output_dir)
        names.append(folder.name.rpartition("_")[0])
        for epoch in range(config.epochs):
            for callback in callbacks:
                callback.on_epoch_begin(epoch)
                callback.on_epoch_end(epoch)
        record = {
            "status": "finished",
            "seed": config.seed,
            "parameters": 1234,
            "train": {"cross_entropy": 1.0},
            "test": {"error_percent": 25.0},
            "history": {"cross_entropy": [2.0, 1.5], "val_accuracy": [0.5, 0.75]},
        }
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(record))
        return record

    monkeypatch.setattr(run, "train", train)
    return names


def test_a_stopped_quickstart_goes_on_where_it_was(tmp_path, trained, monkeypatch):
    train = run.train

    def stopped_at_seed_1(config, *arguments, **options):
        if config.seed == 1:
            raise KeyboardInterrupt
        return train(config, *arguments, **options)

    monkeypatch.setattr(run, "train", stopped_at_seed_1)
    with pytest.raises(KeyboardInterrupt):
        run.carry_out(METHODS_ONLY, tmp_path)
    assert trained == ["baseline_seed0", "clipped_seed0", "regularized_seed0"]
    trained.clear()
    monkeypatch.setattr(run, "train", train)
    runs, _ = run.carry_out(METHODS_ONLY, tmp_path)
    assert trained == ["baseline_seed1", "clipped_seed1", "regularized_seed1"]
    assert runs[0] == MethodRun("baseline", 0, (2.0, 1.5), (50.0, 25.0), 1.0, 1234)


def test_what_is_trained_at_last_for_lack_of_digits_is_refused_at_first(tmp_path, trained):
    for size in (4, 1391):
        settings = dataclasses.replace(TINY, train_size=size)
        with pytest.raises(ValueError, match=f"--train_size must be from 5, .* 1390, .* {size}"):
            run.carry_out(settings, tmp_path)
    assert trained == []


def test_a_damaged_record_is_named(tmp_path, trained):
    run.carry_out(METHODS_ONLY, tmp_path)
    (damaged, *_) = tmp_path.glob("clipped_seed1_*/run.json")
    damaged.write_text("{")
    with pytest.raises(ValueError, match=f"{re.escape(str(damaged))} is damaged: remove"):
        run.carry_out(METHODS_ONLY, tmp_path)


def test_a_line_for_each_network_with_the_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(bar.time, "monotonic", lambda: now[0])
    progress = bar.Progress([10.0, 30.0])
    epochs = progress.each_epoch(5.0)
    epochs.on_epoch_begin(1)  # An earlier process did the first.
    now[0] = 2.0
    epochs.on_epoch_end(1)
    progress.finish_network("one")  # 5 units in 2 seconds; 30 are left.
    now[0] = 6.0
    progress.advance(10.0)
    progress.finish_network("two")  # The other 20 were done before.
    progress.close()
    assert capsys.readouterr() == ("[1/2] one; about 12 s left\n[2/2] two; about 0 s left\n", "")


# ------------------------------------------------------------------------------ what is said


def method_run(method, seed, losses, errors):
    return MethodRun(method, seed, tuple(losses), tuple(errors), losses[-1], 51514)


# Means and sample standard deviations by hand, of the last epochs. Test errors: baseline 4 and 6,
# clipped 5 and 5, regularized 3 and 4. Losses: 0.5 and 1.5, 0.25 and 0.75, 1 and 1.
RUNS = [
    method_run("baseline", 0, [2.0, 0.5], [9.0, 4.0]),
    method_run("clipped", 0, [2.0, 0.25], [9.0, 5.0]),
    method_run("regularized", 0, [2.0, 1.0], [8.0, 3.0]),
    method_run("baseline", 1, [4.0, 1.5], [7.0, 6.0]),
    method_run("clipped", 1, [4.0, 0.75], [8.0, 5.0]),
    method_run("regularized", 1, [2.0, 1.0], [8.0, 4.0]),
]


def minimum(size, seed, error, gamma_hat, loss=0.02, train_error=0.0):
    model = pathlib.Path(f"runs/confusion{size}_seed{seed}/last.keras")
    return Minimum(size, seed, error, train_error, loss, gamma_hat, 19314, model)


# gamma-hat orders the sizes from both seeds, and all networks but for the two of size 200.
MINIMA = [
    minimum(0, 0, 2.0, 60.0, loss=0.01),
    minimum(100, 0, 16.0, 85.0, loss=0.03),
    minimum(200, 0, 28.0, 100.0, loss=0.07),
    minimum(0, 1, 3.0, 62.0, loss=0.02),
    minimum(100, 1, 18.0, 90.0, loss=0.04),
    minimum(200, 1, 30.0, 95.0, loss=0.06),
]


def test_table_of_the_methods():
    assert text.method_table(RUNS) == (
        "             test error (%)    training loss\n"
        "baseline        5.00 ± 1.41  1.0000 ± 0.7071\n"
        "clipped         5.00 ± 0.00  0.5000 ± 0.3536\n"
        "regularized     3.50 ± 0.71  1.0000 ± 0.0000"
    )


def test_table_of_the_minima():
    assert text.minimum_table(MINIMA) == (
        "random labels  test error (%)   gamma-hat      excess loss  training error (%)\n"
        "0                 2.50 ± 0.71  61.0 ± 1.4  0.0150 ± 0.0071         0.00 ± 0.00\n"
        "100              17.00 ± 1.41  87.5 ± 3.5  0.0350 ± 0.0071         0.00 ± 0.00\n"
        "200              29.00 ± 1.41  97.5 ± 3.5  0.0650 ± 0.0071         0.00 ± 0.00"
    )


def test_a_difference_within_the_noise_is_called_that():
    differences = error_differences(RUNS)
    # Of two seeds, -1 and -2: the interval reaches 12.706 standard errors of 1/2.
    assert differences.keys() == {"baseline", "clipped"}
    for difference in differences.values():
        assert difference.mean == -1.5
        assert (difference.low, difference.high) == pytest.approx((-7.853, 4.853), abs=1e-3)
    assert text.method_sentences(RUNS)[0] == (
        "Test error of regularized less baseline, from the same seed: -1.50 points in the mean, "
        "95 % interval (Student's t) -7.85 to +4.85: within the noise of 2 seeds."
    )


@pytest.mark.parametrize(
    ("regularized", "end"),
    [
        ([1.0, 1.1], ": lower by more than the noise of 2 seeds."),
        ([9.0, 9.1], ": higher by more than the noise of 2 seeds."),
        ([3.0, 3.0], ": the same from all 2 seeds."),
    ],
)
def test_other_differences(regularized, end):
    runs = [
        method_run(method, seed, [1.0], [errors[seed]])
        for method, errors in (
            ("baseline", [5.0, 5.0]),
            ("clipped", [5.0, 5.0]),
            ("regularized", regularized),
        )
        for seed in (0, 1)
    ]
    assert all(sentence.endswith(end) for sentence in text.method_sentences(runs))


def test_differences_are_those_of_the_same_seed():
    assert error_differences(RUNS[::-1]) == error_differences(RUNS)


def test_gamma_hat_that_orders_the_sizes():
    found = ordering(MINIMA)
    # 14 of the 15 pairs are in the same order; of the three pairs of one size, two.
    assert found.tau.value == pytest.approx(13 / 15)
    assert found.tau_within_sizes == pytest.approx(1 / 3)
    assert (found.num_seeds, found.num_ordered_seeds) == (2, 2)
    assert found.not_converged == ()
    ordered, tau, within, loss = text.minimum_sentences(MINIMA)
    assert ordered.endswith("the order of their test errors from 2 of 2 seeds.")
    assert "over the 6 networks: 0.87, 95 % interval (bootstrap) " in tau
    assert tau.endswith(": lower gamma-hat goes with lower test error, as the paper says.")
    assert within.endswith("tau is 0.33 in the mean.")
    assert loss.startswith("But the excess loss orders them, too (tau 0.87, 95 % interval")


def with_gamma_hats(values):
    return [
        dataclasses.replace(minimum, gamma_hat=value)
        for minimum, value in zip(MINIMA, values, strict=True)
    ]


def test_gamma_hat_that_does_not_order_the_sizes_is_called_that():
    minima = with_gamma_hats([3.0, 2.0, 3.5, 1.0, 4.0, 0.0])
    ordered, tau, *_ = text.minimum_sentences(minima)
    assert ordered.endswith("from 0 of 2 seeds.")
    assert tau.endswith(": within the noise, gamma-hat does not order these networks.")


def test_gamma_hat_in_the_opposite_order_is_called_that():
    minima = with_gamma_hats([-minimum.gamma_hat for minimum in MINIMA])
    ordered, tau, *_ = text.minimum_sentences(minima)
    assert ordered.endswith("from 0 of 2 seeds.")
    assert "networks: -0.87, " in tau
    assert tau.endswith(": lower gamma-hat goes with higher test error, against the paper.")


def test_equal_gamma_hats_have_no_order():
    _, tau, *_ = text.minimum_sentences(with_gamma_hats([1.0] * 6))
    assert tau.endswith(": undefined: all are equal.")


def test_an_excess_loss_that_does_not_order_the_networks_is_not_blamed():
    minima = [dataclasses.replace(minimum, excess_loss=0.02) for minimum in MINIMA]
    assert not any("excess loss" in sentence for sentence in text.minimum_sentences(minima))


def test_networks_that_are_no_minima_are_told():
    minima = [dataclasses.replace(MINIMA[0], train_error=2.0), *MINIMA[1:]]
    assert text.minimum_sentences(minima)[-1] == (
        "Not at such a minimum as the metric assumes, but counted: 1 of 6 networks (0 random "
        "labels, seed 0: training error 2.00 % (more than 0.5 %), for example)."
    )


def test_figure():
    losses, errors, scatter = quickstart_figure(RUNS, MINIMA).axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in errors.lines}
    assert curves == {
        "baseline": [[1, 8], [2, 5]],
        "clipped": [[1, 8.5], [2, 5]],
        "regularized": [[1, 8], [2, 3.5]],
    }
    baseline_band = losses.collections[0].get_paths()[0].vertices[:, 1]
    assert (baseline_band.min(), baseline_band.max()) == (0.5, 4.0)
    points = {line.get_label(): line.get_xydata().tolist() for line in scatter.lines}
    assert points == {
        "0": [[60, 2], [62, 3]],
        "100": [[85, 16], [90, 18]],
        "200": [[100, 28], [95, 30]],
    }
    for axes in (errors, scatter):
        assert len({to_hex(line.get_color()) for line in axes.lines}) == 3
    assert "0.87" in scatter.get_title()


def test_results_are_printed_and_saved(tmp_path, monkeypatch, capsys):
    settings = Settings(seeds=2, output_dir=str(tmp_path))
    monkeypatch.setattr(report, "carry_out", lambda *_: (RUNS, MINIMA))
    report.report(settings)
    printed = capsys.readouterr().out
    assert text.summary(settings, RUNS, MINIMA) in printed
    *_, heading, train, _, evaluate_metrics = printed.splitlines()
    assert heading.startswith("Next, try")
    assert train.endswith("train_cifar --arch=densenet")
    assert "evaluate_metrics --model=" in evaluate_metrics
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"]["epochs"] == settings.epochs
    assert results["differences"]["clipped"]["mean"] == -1.5
    assert results["minima"][0]["gamma_hat"] == 60.0
    assert results["ordering"]["tau"]["value"] == pytest.approx(13 / 15)
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "quickstart.pdf").read_bytes().startswith(b"%PDF")


# ---------------------------------------------------------------------------- what can be typed


def test_commands_can_be_typed_where_they_are_printed(tmp_path, monkeypatch):
    folder = tmp_path / "a folder" / "runs"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    minima = [
        dataclasses.replace(minimum, model=folder / f"{minimum.confusion_size}.keras")
        for minimum in MINIMA
    ]
    train, scenario, evaluate_metrics = commands.next_commands(Settings(), minima)
    assert shlex.split(train) == [f"{ROOT}/bin/train_cifar", "--arch=densenet"]
    assert shlex.split(scenario) == [f"{ROOT}/bin/scenario_confusion", "--preset=laptop"]
    script, *flags = shlex.split(evaluate_metrics)
    assert script == f"{ROOT}/bin/evaluate_metrics"
    assert flags[:2] == ["--model=a folder/runs/0.keras", "--model=a folder/runs/200.keras"]

    monkeypatch.chdir(ROOT)
    assert commands.next_commands(Settings(), minima)[0] == "bin/train_cifar --arch=densenet"
    monkeypatch.chdir(ROOT / "bin")  # Where a name alone would be looked for on PATH.
    assert commands.next_commands(Settings(), minima)[0].startswith(
        shlex.quote(f"{ROOT}/bin/train_cifar")
    )
    monkeypatch.setattr(commands, "_CHECKOUT", tmp_path)
    starts = [line.split()[:2] for line in commands.next_commands(Settings(), minima)]
    names = ("train_cifar", "scenario_confusion", "evaluate_metrics")
    assert starts == [["fisher-keras", name] for name in names]


def test_ctrl_c_ends_with_the_command_that_goes_on(tmp_path):
    flags = ["--train_size=60", "--epochs=1", f"--output_dir={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fisher_keras.experiments.quickstart", *flags],
        cwd=ROOT,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not process.stdout.readline().startswith("[ 1/21] seed 0, baseline: test error "):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    status, _, errors = finish(process)
    assert status == 130
    command = f"fisher-keras quickstart {' '.join(flags)}"
    assert errors.splitlines()[-1] == f"quickstart: stopped; go on with: {command}"
    assert "Traceback" not in errors
    (record,) = tmp_path.glob("runs/baseline_seed0_*/run.json")
    assert json.loads(record.read_text())["status"] == "finished"
