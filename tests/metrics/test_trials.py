"""Samples of the trials, and the file that keeps them."""

import json
import math

import numpy as np
import pytest

from fisher_keras.metrics.singular import LinearDependence
from fisher_keras.metrics.trials import Trial, TrialFile, draw_sample

EVALUATION = {"seed": 3, "metrics": ["trace"], "rounding": 2**-23, "logits": [[1.0]]}
TRIALS = [
    Trial(0, {"trace": 0.3}, (1.0, -math.inf), LinearDependence((1,), ((2, 3),), (), 2.0**-10)),
    Trial(1, {"trace": -math.inf}, (2.0, 1e-300), LinearDependence((), (), ())),
]


@pytest.mark.parametrize("stratified", [False, True])
def test_samples(stratified):
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    samples = [draw_sample(labels, 25, 5, trial, stratified) for trial in range(400)]
    for sample in samples:
        assert len(np.unique(sample)) == 25
    np.testing.assert_array_equal(samples[7], draw_sample(labels, 25, 5, 7, stratified))
    assert not np.array_equal(samples[7], samples[8])
    assert not np.array_equal(samples[7], draw_sample(labels, 25, 6, 7, stratified))
    # Every example is as likely as any other: 400 / 4 times, with a deviation of about 9.
    counts = np.bincount(np.concatenate(samples), minlength=100)
    assert np.abs(counts - 100).max() < 45
    if stratified:
        shares = np.array([np.bincount(labels[sample]) for sample in samples])
        assert (np.abs(shares - [17.5, 5, 2.5]) <= [0.5, 0, 0.5]).all()


def test_all_examples_can_be_drawn():
    for stratified in (False, True):
        sample = draw_sample(np.array([1, 0, 1, 1]), 4, 0, 0, stratified)
        np.testing.assert_array_equal(sample, np.arange(4))


def test_trials_come_back_as_they_were(tmp_path):
    path = tmp_path / "new" / "trials.jsonl"
    file = TrialFile(path, EVALUATION)
    for trial in TRIALS:
        file.add(trial)
    assert TrialFile(path, EVALUATION).finished == dict(enumerate(TRIALS))
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.parametrize("torn_in", ["the header", "a trial"])
def test_a_torn_last_line_is_dropped(tmp_path, torn_in):
    path = tmp_path / "trials.jsonl"
    TrialFile(path, EVALUATION).add(TRIALS[0])
    text = path.read_text()
    path.write_text(text[:9] if torn_in == "the header" else text + text.splitlines()[1][:20])
    file = TrialFile(path, EVALUATION)
    assert file.finished == ({} if torn_in == "the header" else {0: TRIALS[0]})
    file.add(TRIALS[1])
    assert TrialFile(path, EVALUATION).finished[1] == TRIALS[1]


def test_a_file_of_another_evaluation_is_refused(tmp_path):
    path = tmp_path / "trials.jsonl"
    TrialFile(path, EVALUATION).add(TRIALS[0])
    with pytest.raises(ValueError, match="another evaluation: seed was 3, is 4"):
        TrialFile(path, {**EVALUATION, "seed": 4})
    assert TrialFile(path, EVALUATION).finished == {0: TRIALS[0]}


@pytest.mark.parametrize(
    ("logits", "same"),
    [
        # Float32 computes them to within 1e-4 of the largest; another function is off by more.
        ([[1.0, -90.0], [-90.0, 2.005]], True),
        ([[1.0, -90.0], [-90.0, 2.1]], False),
        ([[1.0, -90.0], [-90.0, 1.9]], False),
        ([[1.0, -90.0]], False),
    ],
)
def test_logits_tell_the_function_but_for_rounding(tmp_path, logits, same):
    path = tmp_path / "trials.jsonl"
    TrialFile(path, {**EVALUATION, "logits": [[1.0, -90.0], [-90.0, 2.0]]}).add(TRIALS[0])
    if same:
        assert TrialFile(path, {**EVALUATION, "logits": logits}).finished == {0: TRIALS[0]}
        return
    with pytest.raises(ValueError, match="another function of the same weights"):
        TrialFile(path, {**EVALUATION, "logits": logits})


@pytest.mark.parametrize(
    ("gradients", "same"),
    [
        # Each to within 1e-4 of itself, and one that is zero to within rounding of the largest.
        ([1.0001, 3.0, 2e-5, math.inf], True),
        ([1.001, 3.0, 0.0, math.inf], False),
        ([1.0, 3.0, 2e-4, math.inf], False),
        ([1.0, 3.0, 0.0, math.nan], False),
        ([1.0, 3.0, 0.0], False),
    ],
)
def test_gradients_tell_the_function_but_for_rounding(tmp_path, gradients, same):
    path = tmp_path / "trials.jsonl"
    TrialFile(path, {**EVALUATION, "gradients": [1.0, 3.0, 0.0, math.inf]}).add(TRIALS[0])
    if same:
        assert TrialFile(path, {**EVALUATION, "gradients": gradients}).finished == {0: TRIALS[0]}
        return
    with pytest.raises(ValueError, match="gradients are those of another function"):
        TrialFile(path, {**EVALUATION, "gradients": gradients})


def test_a_file_of_an_earlier_format_is_refused_and_left_alone(tmp_path):
    """It does not tell which function of the weights its trials are of."""
    path = tmp_path / "trials.jsonl"
    TrialFile(path, EVALUATION).add(TRIALS[0])
    header, trial = path.read_text().splitlines()
    text = json.dumps({"evaluation": json.loads(header)["evaluation"]}) + "\n" + trial + "\n"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"trials\.jsonl was written by an earlier version"):
        TrialFile(path, EVALUATION)
    assert path.read_text() == text


def test_a_file_without_trials_is_anybodys(tmp_path):
    path = tmp_path / "trials.jsonl"
    TrialFile(path, EVALUATION)
    TrialFile(path, {**EVALUATION, "seed": 4}).add(TRIALS[0])
    assert TrialFile(path, {**EVALUATION, "seed": 4}).finished == {0: TRIALS[0]}


@pytest.mark.parametrize("dependence", [[], {}, {"zero": 3, "parallel": [], "dependent": []}])
def test_a_damaged_trial_is_refused(tmp_path, dependence):
    path = tmp_path / "trials.jsonl"
    TrialFile(path, EVALUATION).add(TRIALS[0])
    header, trial = path.read_text().splitlines()
    path.write_text(
        header + "\n" + json.dumps(json.loads(trial) | {"dependence": dependence}) + "\n"
    )
    with pytest.raises(ValueError, match="not a file of trials, or is damaged"):
        TrialFile(path, EVALUATION)


@pytest.mark.parametrize(
    "content",
    ["weights", "a,b\n1,2\n", "{}\n", '{"evaluation": {"seed": 3}}\n[]\n', "\xff\n"],
)
def test_other_files_are_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "mine.txt"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match="not a file of trials"):
        TrialFile(path, {"seed": 3})
    assert path.read_text(encoding="latin-1") == content
