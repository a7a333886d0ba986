"""Tests of the quickstart: its networks, statistics, sentences, figure and command."""

import dataclasses
import os
import shlex
import signal

import keras
import numpy as np
import pytest
import scipy.stats
from marks import nightly
from processes import ROOT, finish, start

from fisher_keras.experiments.quickstart import report, text, training
from fisher_keras.experiments.quickstart.figure import quickstart_figure
from fisher_keras.experiments.quickstart.networks import METHODS, Settings, quickstart_runs
from fisher_keras.experiments.quickstart.results import Network, arms, differences, ordering
from fisher_keras.experiments.runs.runner import run_experiment
from fisher_keras.experiments.runs.store import ExperimentStore, Record
from fisher_keras.metrics import evaluate_local_minimum

OF_TINY = {
    "train_size": 20,
    "wrong_labels": 6,
    "other_wrong_labels": (0,),
    "other_seeds": 1,
    "steps": 9,
    "num_samples": 5,
    "num_trials": 2,
}
TINY = Settings(seeds=2, **OF_TINY)


# ------------------------------------------------------------------------------------- the data


def test_test_images_are_neither_trained_on_nor_in_the_validation_images():
    for seed in (0, 1):
        digits = training.draw_digits(200, 60, seed)
        parts = [digits.x, digits.validation[0], digits.test[0]]
        assert [len(part) for part in parts] == [200, 397, 1200]
        # The digits are 1,797 different images.
        assert len(np.unique(np.concatenate(parts).reshape(1797, -1), axis=0)) == 1797


def test_seeds_draw_other_images_but_the_same_validation_images():
    one, other = (training.draw_digits(200, 60, seed) for seed in (0, 1))
    assert (one.x != other.x).any()
    np.testing.assert_array_equal(one.validation[0], other.validation[0])


def test_labels_are_smoothed():
    digits = training.draw_digits(20, 6, 0)
    expected = np.where(np.arange(10) == digits.y[:, np.newaxis], 0.91, 0.01)
    np.testing.assert_allclose(digits.smoothed, expected, rtol=1e-6)


def test_only_the_first_labels_are_random():
    clean, noisy = (training.draw_digits(1000, number, 0) for number in (0, 600))
    np.testing.assert_array_equal(clean.x, noisy.x)
    np.testing.assert_array_equal(clean.y[600:], noisy.y[600:])
    # A random label of ten classes is right with probability 0.1.
    assert np.mean(clean.y[:600] == noisy.y[:600]) == pytest.approx(0.1, abs=0.05)


# ----------------------------------------------------------------------------------- the runs


def test_runs_are_those_of_a_seed_before_the_next():
    runs = quickstart_runs(dataclasses.replace(TINY, other_wrong_labels=(0, 3)))
    assert [(run.seed, run.config["method"]) for run in runs[:6]] == [
        (seed, method) for seed in (0, 1) for method in METHODS
    ]
    assert [run.config["wrong_labels"] for run in runs] == [6] * 6 + [0, 3]
    assert len({run.key for run in runs}) == 8


def test_methods_differ_in_nothing_else():
    plain, *others = (run.config for run in quickstart_runs(TINY)[:3])
    for config in others:
        differing = {name for name in config if config[name] != plain[name]}
        assert differing == {"method", "strength"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny quickstart: its store, its runs and its records."""
    store = ExperimentStore(tmp_path_factory.mktemp("quickstart"))
    runs = quickstart_runs(TINY)
    run_experiment(runs, training.train_network, store, None)
    return store, runs, [store.record(run) for run in runs]


def test_results_are_those_of_the_saved_networks(tiny):
    store, runs, records = tiny
    for run, record in list(zip(runs, records, strict=True))[2::4]:
        wrong, result = run.config["wrong_labels"], record.result
        digits = training.draw_digits(20, wrong, run.seed)
        network = keras.saving.load_model(store.run_directory(run) / "network.keras")
        predicted = network.predict(digits.test[0], verbose=0).argmax(axis=1)
        assert result["test_error"] == pytest.approx(100 * np.mean(predicted != digits.test[1]))
        assert list(result["stops"]) == ["8"]
        names = {"gamma_hat": "log_determinant", "log_det_margins": "log_determinant_margins"}
        again = evaluate_local_minimum(
            network, (digits.x, digits.smoothed), 5, 2, metrics=names.values(), progress=False
        )
        for name, metric in names.items():
            assert result[name] == pytest.approx(again.metrics[metric].mean, rel=1e-4)


def test_networks_of_a_seed_start_from_the_same_weights(tmp_path, monkeypatch):
    training._judge()  # Not one of those that are trained.
    weights, build = [], training.build_network

    def build_network():
        network = build()
        weights.append(network.get_weights())
        return network

    monkeypatch.setattr(training, "build_network", build_network)
    for run in quickstart_runs(dataclasses.replace(TINY, steps=1))[:3]:
        training.train_network(run, tmp_path)
    assert len(weights) == 3
    for other in weights[1:]:
        for one, two in zip(weights[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_all_methods_clip_to_the_same_norm():
    for run in quickstart_runs(TINY)[:3]:
        model = training._compiled(training.build_network(), run)
        clip_norms = [model.optimizer.global_clipnorm, getattr(model, "clip_norm", None)]
        assert sorted(norm for norm in clip_norms if norm is not None) == [1.0]


def test_what_is_finished_is_not_trained_again(tiny, capsys):
    store, runs, records = tiny
    run_experiment(runs, training.train_network, store, None)
    assert capsys.readouterr().out == "7 of 7 runs are finished.\n"
    assert [store.record(run) for run in runs] == records


def test_more_seeds_train_only_the_new_networks(tiny):
    _, runs, _ = tiny
    more = quickstart_runs(dataclasses.replace(TINY, seeds=3))
    assert len({run.key for run in more} - {run.key for run in runs}) == 3
    assert {run.key for run in runs} < {run.key for run in more}


# ----------------------------------------------------------------- statistics and what is said


def network(method, seed, error, stopped=0.0, gamma_hat=0.0, wrong=60):
    return Network(method, wrong, seed, error, stopped, 50.0, gamma_hat, 1.0, -gamma_hat)


def three_seeds(fisher, stopped=(14.0, 16.0, 15.0)):
    """Networks of all methods; SAM's errors are 20, 21 and 22, the plain ones' 30, 32 and 28."""
    errors = {"plain": (30.0, 32.0, 28.0), "sam": (20.0, 21.0, 22.0), "fisher": fisher}
    networks = [
        network(method, seed, errors[method][seed], stopped[seed], gamma_hat=errors[method][seed])
        for method in METHODS
        for seed in range(3)
    ]
    return [*networks, network("plain", 0, 5.0, gamma_hat=1.0, wrong=0)]


SETTINGS = Settings(seeds=3)
BETTER = three_seeds(fisher=(10.0, 11.5, 11.0))


def test_stopped_networks_have_the_test_error_of_the_best_validation_error():
    stops = {
        "8": {"validation": 40.0, "test": 1.0},
        "15": {"validation": 20.0, "test": 21.0},
        "30": {"validation": 30.0, "test": 2.0},
    }
    result = {"test_error": 9.0, "stops": stops, "wrong_labels_fitted": None}
    result |= {"gamma_hat": "-inf", "log_det_margins": 1.0, "excess_loss": 0.1}
    config = {"method": "plain", "wrong_labels": 0}
    record = Record("key", "quickstart", 1, config, seed=3, wall_time_s=1.0, result=result)
    found = Network.of(record)
    assert (found.test_error, found.stopped_error, found.gamma_hat) == (9.0, 21.0, -np.inf)


def test_differences_are_scipys():
    found = differences(arms(BETTER, 60))
    assert set(found) == {"plain", "sam", "stopped"}
    others = {"plain": [30, 32, 28], "sam": [20, 21, 22], "stopped": [14, 16, 15]}
    for arm, errors in others.items():
        expected = scipy.stats.ttest_rel([10.0, 11.5, 11.0], errors)
        interval = expected.confidence_interval(0.95)
        assert (found[arm].low, found[arm].high) == pytest.approx(tuple(interval))
        assert found[arm].mean == pytest.approx(10.8333 - np.mean(errors), abs=1e-4)


def test_differences_are_those_of_the_same_seed():
    assert differences(arms(BETTER[::-1], 60)) == differences(arms(BETTER, 60))


def test_order_is_scipys_over_all_networks():
    gamma_hats = [network.gamma_hat for network in BETTER]
    errors = [network.test_error for network in BETTER]
    expected = scipy.stats.kendalltau(gamma_hats, errors).statistic
    assert ordering(BETTER).value == pytest.approx(expected)
    assert ordering(BETTER, "excess_loss").value == pytest.approx(-expected)


def test_sentences_where_the_regularizer_helps():
    first, second, third = text.sentences(BETTER, SETTINGS)
    assert first == (
        "With random labels on 30 % of the training images, the regularizer ends with a test "
        "error of 10.8 %: 19.2 points lower than plain training (95 % interval 14.5 to 23.9), "
        "and 10.2 points lower than sharpness-aware minimization (SAM) (95 % interval 8.3 to "
        "12.1)."
    )
    assert second.startswith(
        "Plain training that stops at the best of 5 moments ends with 15.0 %, and the "
        "regularizer's error is 4.2 points lower than that (95 % interval 3.4 to 4.9)"
    )
    assert second.endswith("needs neither clean labels nor a stopping time.")
    assert third.startswith("Over all 10 networks, a lower gamma-hat, which takes no test images,")
    assert "goes with a lower test error (Kendall's tau 1.00, 95 % interval 1.00" in third


def test_sentences_where_it_does_not():
    # Three seeds about SAM's errors, and far above the plain ones'.
    networks = three_seeds(fisher=(19.0, 22.0, 22.5), stopped=(1.0, 2.0, 1.5))
    for index, one in enumerate(networks):
        networks[index] = dataclasses.replace(one, gamma_hat=-one.gamma_hat)
    first, second, third = text.sentences(networks, SETTINGS)
    assert first.endswith(
        "and the same as sharpness-aware minimization (SAM) within the noise of 3 seeds (+0.2 "
        "points, 95 % interval -2.4 to +2.8)."
    )
    assert "the regularizer's error is 19.7 points higher than that (95 % interval 1" in second
    assert "goes with a higher test error (Kendall's tau -1.00" in third


def test_an_order_within_the_noise_is_called_that():
    gamma_hats = [3.0, 2.0, 3.5, 1.0, 4.0, 0.0, 2.5, 1.5, 0.5, 3.2]
    networks = [
        dataclasses.replace(one, gamma_hat=value)
        for one, value in zip(BETTER, gamma_hats, strict=True)
    ]
    assert (
        "does not order the test errors beyond the noise" in text.sentences(networks, SETTINGS)[2]
    )
    same = [dataclasses.replace(one, gamma_hat=1.0) for one in BETTER]
    assert text.sentences(same, SETTINGS)[2].endswith("there is no order to compare.")


def test_table():
    assert text.results_table(BETTER, SETTINGS).splitlines()[1].split("  ")[0] == "plain"
    lines = [" ".join(line.split()) for line in text.results_table(BETTER, SETTINGS).splitlines()]
    assert lines[0] == "test error (%) fisher less this random labels fitted (%) gamma-hat"
    assert lines[1] == "plain 30.0 ± 2.0 -19.2 [-23.9, -14.5] 50 ± 0 30 ± 2"
    assert lines[3].endswith("10.8 ± 0.8 – 50 ± 0 11 ± 1")
    assert lines[4].startswith("plain, stopped early 15.0 ± 1.0 -4.2 [")


def test_figure_has_two_labelled_panels():
    left, right, *_ = quickstart_figure(BETTER, SETTINGS).axes
    for axes in (left, right):
        assert axes.get_ylabel() == "test error (%)"
        assert axes.get_xlabel()
        assert axes.get_title()
    seeds = np.array([line.get_ydata() for line in left.lines[:3]])
    np.testing.assert_array_equal(seeds[0], [30, 20, 10, 14])
    assert {annotation.get_text() for annotation in left.texts} == {"30.0", "21.0", "10.8", "15.0"}
    points = np.concatenate([collection.get_offsets() for collection in right.collections])
    expected = [(one.gamma_hat, one.test_error) for one in BETTER]
    assert sorted(map(tuple, points)) == sorted(expected)


def test_commands_can_be_typed_where_they_are_printed(tmp_path, monkeypatch, assert_understood):
    outside = os.path.relpath(ROOT / "bin", tmp_path)
    for folder, scripts in ((tmp_path, outside), (ROOT, "bin"), (ROOT / "bin", ".")):
        monkeypatch.chdir(folder)
        commands = [shlex.split(command) for command in text.next_commands()]
        assert [words[0] for words in commands] == [
            f"{scripts}/{name}" for name in ("train_cifar", "evaluate", "compare_methods")
        ]
    monkeypatch.setattr(text, "_CHECKOUT", tmp_path)
    for command in text.next_commands():
        assert command.startswith("fisher-keras ")
        assert_understood(shlex.split(command))


# ---------------------------------------------------------------------------------- the command


def test_everything_is_printed_and_drawn(tiny, capsys):
    store, *_ = tiny
    settings = dataclasses.replace(TINY, output_dir=str(store.directory))
    report.report(settings)
    printed = capsys.readouterr().out
    assert text.results_table([Network.of(r) for r in store.records()], settings) in printed
    *_, heading, one, two, three = printed.splitlines()
    assert heading == "Next, try:"
    assert [line.strip() for line in (one, two, three)] == text.next_commands()
    assert (store.directory / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    assert len((store.directory / "runs.jsonl").read_text().splitlines()) == 7


# What bin/quickstart does, with small networks.
TINY_QUICKSTART = f"""
import dataclasses, sys
from fisher_keras.experiments.command_line.main import main
from fisher_keras.experiments.quickstart import report
of_any_size = report.report
report.report = lambda options: of_any_size(dataclasses.replace(options, **{OF_TINY}))
main(["quickstart", *sys.argv[1:]])
"""


def stopped_after_network(number, flags, kill):
    """Starts the quickstart and sends it a signal; returns its exit code and last error line."""
    process = start("-c", TINY_QUICKSTART, *flags, TF_CPP_MIN_LOG_LEVEL="3")
    while not process.stdout.readline().startswith(f"run {number}/7  seed 0, 6 wrong labels, "):
        assert process.poll() is None
    process.send_signal(kill)
    status, _, errors = finish(process)
    assert "Traceback" not in errors
    return status, errors.splitlines()[-1:]


@pytest.mark.parametrize("killed", [False, nightly(True)])
def test_a_killed_and_a_stopped_quickstart_go_on(tmp_path, killed):
    flags = ["--seeds=2", f"--output_dir={tmp_path}"]
    store, runs = ExperimentStore(tmp_path), quickstart_runs(TINY)
    if killed:
        assert stopped_after_network(1, flags, signal.SIGKILL)[0] == -signal.SIGKILL
        kept = store.record(runs[0])
    # Nothing of the killed process stands in the way.
    status, last_line = stopped_after_network(2, flags, signal.SIGINT)
    command = f"fisher-keras quickstart {' '.join(flags)}"
    assert (status, last_line) == (130, [f"quickstart: stopped; go on with: {command}"])
    if killed:
        assert store.record(runs[0]) == kept
    assert [record.config["method"] for record in store.records()][:2] == ["plain", "sam"]
