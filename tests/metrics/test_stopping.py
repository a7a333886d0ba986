"""Trials that end once the standard error of gamma-hat suffices."""

import keras
import numpy as np
import pytest

from fisher_keras import evaluate_local_minimum
from fisher_keras.metrics.summaries import summarize

X = np.random.default_rng(0).normal(size=(40, 5)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 40)
MOST = 40


def network(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(6, "tanh"), keras.layers.Dense(3)]
    )


def evaluate(model, **options):
    options = {"num_samples": 6, "num_trials": MOST, "progress": False} | options
    return evaluate_local_minimum(model, (X, Y), **options)


def gamma_hats(report):
    return np.array([trial.metrics["log_determinant"] for trial in report.trials])


def first_enough(values, limit):
    """The first T from 10 on with std / sqrt(T) below a limit."""
    counts = range(10, len(values) + 1)
    errors = [np.std(values[:count], ddof=1) / np.sqrt(count) for count in counts]
    return next((c for c, e in zip(counts, errors, strict=True) if e < limit), len(values))


@pytest.fixture(scope="module")
def models():
    return [network(seed) for seed in range(2)]


@pytest.fixture(scope="module")
def complete(models):
    return [evaluate(model) for model in models]


@pytest.mark.parametrize("share", [0.6, 0.7, 0.9, 0.1, 10])
def test_trials_end_with_the_first_that_suffices(models, complete, share):
    values = gamma_hats(complete[0])
    limit = share * np.std(values[:10], ddof=1) / np.sqrt(10)
    expected = first_enough(values, limit)
    assert (share > 1) == (expected == 10)
    assert (share < 0.5) == (expected == MOST)
    report = evaluate(models[0], standard_error=limit)
    assert report.trials == complete[0].trials[:expected]
    reached = np.std(values[:expected], ddof=1) / np.sqrt(expected) < limit
    assert reached != any("not below standard_error" in note for note in report.notes)
    # All examples count, whichever trials there were.
    assert report.train.num_examples == len(X)
    assert report.train.loss == pytest.approx(complete[0].train.loss, rel=1e-6)


def test_of_a_difference_of_two_networks(models, complete):
    difference = gamma_hats(complete[1]) - gamma_hats(complete[0])
    limit = 0.7 * np.std(difference[:10], ddof=1) / np.sqrt(10)
    expected = first_enough(difference, limit)
    assert 10 < expected < MOST
    report = evaluate(models[1], standard_error=limit, reference=complete[0])
    assert len(report.trials) == expected
    found = report.difference(complete[0])["log_determinant"]
    assert found.mean == pytest.approx(difference[:expected].mean())
    assert found.standard_error == pytest.approx(
        np.std(difference[:expected], ddof=1) / np.sqrt(expected)
    )
    short = evaluate(models[0], num_trials=4)
    few = evaluate(models[1], standard_error=1e-9, reference=short)
    assert len(few.trials) == 4
    assert "after all 4 trials, and not below standard_error=1e-09" in few.notes[-1]


def test_a_stopped_evaluation_ends_where_it_would_have(models, complete, tmp_path):
    values, path = gamma_hats(complete[0]), tmp_path / "trials.jsonl"
    limit = 0.7 * np.std(values[:10], ddof=1) / np.sqrt(10)
    expected = first_enough(values, limit)
    evaluate(models[0], num_trials=3, trials_path=path)
    first = evaluate(models[0], standard_error=limit, trials_path=path)
    assert len(first.trials) == expected == len(path.read_text().splitlines()) - 1
    # Trials that the file holds beyond that do not count.
    evaluate(models[0], trials_path=path)
    assert evaluate(models[0], standard_error=limit, trials_path=path).trials == first.trials
    assert first.trials == complete[0].trials[:expected]


def test_two_trials_have_a_standard_error():
    found = summarize([1.0, 3.0])
    assert (found.mean, found.std, found.standard_error) == pytest.approx((2.0, 2**0.5, 1.0))


@pytest.mark.filterwarnings("ignore::fisher_keras.metrics.SingularGramWarning")
def test_singular_samples_have_no_standard_error():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    report = evaluate_local_minimum(
        model, (X, Y), 20, 12, standard_error=100.0, progress=False, metrics=["log_determinant"]
    )
    assert len(report.trials) == 12
    assert (
        "the standard error is not known, as the log-determinant of a trial is inf"
        in report.notes[-1]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"standard_error": 0}, "standard_error must be"),
        ({"standard_error": 1, "metrics": ["trace"]}, "standard_error is that of the metric"),
        ({"reference": 0}, "reference is for standard_error"),
        ({"reference": 0, "standard_error": 1, "seed": 1}, "same samples .*seed was 0, is 1"),
        ({"reference": 1, "standard_error": 1}, "reference .* must have .*log_determinant"),
    ],
)
def test_what_cannot_be(models, complete, options, message):
    references = (complete[0], evaluate(models[0], num_trials=1, metrics=["trace"]))
    if "reference" in options:
        options = options | {"reference": references[options["reference"]]}
    with pytest.raises(ValueError, match=message):
        evaluate(models[1], **options)


def test_the_time_is_said_after_the_first_trial_without_tracing(models, capfd, monkeypatch):
    monkeypatch.setattr("fisher_keras.metrics.evaluation._WORTH_SAYING", 0)
    evaluate(models[0], num_trials=5, progress=True)
    assert "s: 3 more take 00:0" in capfd.readouterr().err


def test_of_data_in_files_the_trials_that_ran_count(models, tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r"), Y
    options = {"num_samples": 2, "progress": False}
    report = evaluate_local_minimum(models[0], mapped, standard_error=5.0, **options)
    ran = len(report.trials)
    assert ran < 12  # Else all examples would be sampled.
    fresh = evaluate_local_minimum(models[0], mapped, num_trials=ran, **options)
    rows = np.unique([np.random.default_rng([0, t]).choice(40, 2, False) for t in range(ran)])
    losses = keras.losses.sparse_categorical_crossentropy(Y, models[0](X), from_logits=True)
    for found in (report, fresh):
        np.testing.assert_allclose(found.train.loss, np.mean(losses.numpy()[rows]), rtol=1e-6)


def test_a_reference_that_is_no_report(models):
    with pytest.raises(ValueError, match=r"must be a report .* Given: dict"):
        evaluate(models[0], standard_error=1.0, reference={})
