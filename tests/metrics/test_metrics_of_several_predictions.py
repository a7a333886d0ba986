"""Evaluations of classifiers with several predictions an example, against obvious loops."""

import re

import keras
import numpy as np
import pytest
import several_predictions as several
import tensorflow as tf
from marks import each_value, nightly

from fisher_keras import FisherMetrics, check_classifier
from fisher_keras.classifier import Classifier
from fisher_keras.classifier.labels import labelled_data
from fisher_keras.metrics import evaluate_local_minimum, hessian
from fisher_keras.metrics.loss_and_errors import RunningDataLoss
from fisher_keras.metrics.margins import margins

NAMES = ["tagger", "u_net", "labels"]


def evaluate(model, x, y, weights, count, **options):
    return evaluate_local_minimum(model, (x, y, weights), count, 1, progress=False, **options)


def slow_losses(model, x, y, counts):
    """Returns the losses of each example at the positions that count."""
    return [
        np.array([float(v) for p, v in several.position_losses(model, *one).items() if c[p]])
        for *one, c in zip(x, y, counts, strict=True)
    ]


@pytest.mark.parametrize(("name", "unit"), each_value(NAMES, ["example", "position"]))
def test_metrics_are_those_of_the_slow_jacobian(name, unit, float64):
    model, x, y, weights = several.case(name, count=3)
    counts = several.counted(x, y, weights)
    j = several.jacobian(model, x, y, counts, unit)
    losses = slow_losses(model, x, y, counts)
    if unit == "position":
        # Two of the positions, which is one trial's sample.
        report = evaluate(model, x, y, weights, 2, unit=unit)
        random = np.random.default_rng([0, 0])
        rows = np.sort(random.choice(len(j), 2, replace=False))
        j, total = j[rows], np.concatenate(losses)[rows]
    else:
        report = evaluate(model, x, y, weights, 3)
        total = np.array([loss.sum() for loss in losses])
    xi = j @ j.T
    p = np.exp(-total)
    found = {metric: summary.mean for metric, summary in report.metrics.items()}
    log_det = np.linalg.slogdet(xi)[1]
    expected = {
        "log_determinant": log_det,
        "trace": np.trace(xi) / len(xi),
        "spectral_radius": np.linalg.eigvalsh(xi)[-1],
        "mean_margin": np.mean(np.log(p / (1 - p))),
        "log_residuals": 2 * np.sum(np.log(1 - p)),
        "log_determinant_margins": log_det - 2 * np.sum(np.log(1 - p)),
    }
    for metric, value in expected.items():
        np.testing.assert_allclose(found[metric], value, rtol=1e-8, err_msg=metric)
    assert f"{len(xi)} {unit}s" in str(report)
    everything = np.concatenate(losses)
    np.testing.assert_allclose(report.train.loss, everything.mean(), rtol=1e-9)
    assert report.train.num_examples == len(everything)


# Their losses are those of the tagger, whose mask they have, too.
MASKED = ("recurrent", "transformer")


@pytest.mark.parametrize(
    "name", [nightly(name) if name in MASKED else name for name in several.MODELS]
)
def test_losses_and_errors_are_those_of_keras(name):
    model, x, y, _ = several.case(name, count=30)
    binary = Classifier(model).likelihood(x).num_classes == 2
    loss = (
        keras.losses.BinaryCrossentropy if binary else keras.losses.SparseCategoricalCrossentropy
    )
    accuracy = keras.metrics.BinaryAccuracy if binary else keras.metrics.SparseCategoricalAccuracy
    from_logits = model.layers[-1].activation is keras.activations.linear
    threshold = {"threshold": 0.5} if binary else {}
    model.compile("sgd", loss(from_logits=from_logits), metrics=[accuracy(**threshold)])
    targets = y if model.output_shape[-1] > 1 else y[..., np.newaxis]
    report = evaluate(model, x, y, None, 2, metrics=["trace"], test_data=(x, y))
    expected, right = model.evaluate(x, targets, batch_size=30, verbose=0)
    np.testing.assert_allclose(report.train.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(report.train.error, 1 - right, atol=1e-6)
    np.testing.assert_allclose(report.test.loss, report.train.loss, rtol=1e-6)
    assert report.test.num_errors == report.train.num_errors


def test_label_smoothing_is_that_of_keras():
    model, x, y, _ = several.case("labels", count=20)
    model.compile("sgd", keras.losses.BinaryCrossentropy(label_smoothing=0.2))
    report = evaluate(model, x, y, None, 2, metrics=["trace"], label_smoothing=0.2)
    expected = model.evaluate(x, y, verbose=0, batch_size=20)
    np.testing.assert_allclose(report.train.loss, expected, rtol=1e-5)
    # The entropy of 0.9 and 0.1.
    np.testing.assert_allclose(report.train.label_entropy, 0.3250829733914482, rtol=1e-12)


def test_strata_are_the_classes_of_positions():
    model, x, y, _ = several.case("dense", count=12)
    report = evaluate(model, x, y, None, 20, unit="position", stratified=True, metrics=["trace"])
    assert "20 stratified positions" in str(report)
    with pytest.raises(ValueError, match=r"stratified=True .* one prediction an example"):
        evaluate(model, x, y, None, 5, stratified=True)
    with pytest.raises(ValueError, match=r"num_samples=61 positions .* data of 60"):
        evaluate(model, x, y, None, 61, unit="position")


def test_notes_and_figures_call_positions_by_their_name():
    model, x, y, _ = several.case("dense", count=2)
    twice = np.concatenate([x, x[:1]]), np.concatenate([y, y[:1]])
    num_positions = y[:1].size
    report = evaluate(model, *twice, None, 3 * num_positions, unit="position")
    repeated = rf"\(a repeated position\?\) for positions 0, {2 * num_positions};"
    assert re.search(repeated, " ".join(report.notes))
    assert report.plot_spectrum().get_title().startswith(f"1 trials of {3 * num_positions} posi")


def test_errors_call_positions_by_their_name():
    inputs = keras.Input((3, 2))
    root = keras.layers.Dense(2, keras.ops.sqrt, kernel_initializer="zeros")
    model = keras.Model(inputs, keras.layers.Dense(2)(root(inputs)))
    x, y = np.ones((4, 3, 2), np.float32), np.zeros((4, 3), int)
    # The square root of 0 is finite, and its derivative is not.
    with pytest.raises(ValueError, match="losses of 5 of 5 positions have no finite gradient"):
        evaluate(model, x, y, None, 5, unit="position")


def test_weights_make_other_trials(tmp_path):
    model, x, y, weights = several.case("dense")
    path = tmp_path / "trials"
    options = {"metrics": ["trace"], "trials_path": path}
    first = evaluate(model, x, y, weights, 2, **options)
    assert evaluate(model, x, y, weights, 2, **options).trials == first.trials
    for other in ({"weights": 1 - weights}, {"unit": "position"}):
        with pytest.raises(ValueError, match="another evaluation"):
            evaluate(model, x, y, **{"weights": weights, "count": 2, **other}, **options)


@pytest.mark.parametrize("name", ["tagger", "labels"])
def test_hessian_is_that_of_the_sum_over_positions(name, float64):
    model, x, y, weights = several.case(name, count=2)
    counts = several.counted(x, y, weights)

    def mean_gradient():
        return several.jacobian(model, x, y, counts).mean(axis=0)

    columns = []
    for variable in model.trainable_variables:
        values = variable.numpy()
        for place in np.ndindex(values.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = values.copy()
                moved[place] += step
                variable.assign(moved)
                ends.append(mean_gradient())
            variable.assign(values)
            columns.append((ends[0] - ends[1]) / 2e-5)
    found = hessian(model, x, y, sample_weight=weights)
    with pytest.raises(ValueError, match="leave whole examples out of x and y"):
        hessian(model, x, y, sample_weight=weights[:, 0])
    np.testing.assert_allclose(found, np.stack(columns, axis=1), atol=1e-8)


def test_the_hessian_of_examples_that_a_mask_leaves_out():
    masked, plain, x, y, kept = several.masked_examples()
    expected = hessian(plain, x[kept], y[kept]) * np.mean(kept)
    np.testing.assert_allclose(hessian(masked, x, y), expected, atol=1e-6)


def test_losses_of_one_position_and_of_none():
    """Soft labels stay soft where there is one position, and no loss is a mean over nothing."""
    model, x, *_ = several.case("dense", count=3)
    soft = np.array([[[0.5, 0.25, 0.25]], [[0.0, 0.5, 0.5]], [[0.2, 0.2, 0.6]]])
    report = evaluate(model, x[:, :1], soft, None, 2, metrics=["trace"])
    log_p = tf.nn.log_softmax(model(x[:, :1]))
    np.testing.assert_allclose(report.train.loss, -np.mean(np.sum(soft * log_p, -1)), rtol=1e-6)
    losses = RunningDataLoss(labelled_data((x, np.zeros((3, 5), int), np.zeros((3, 5), int))))
    losses.evaluate(Classifier(model), losses.rows)
    with pytest.raises(ValueError, match="No "):
        losses.result()


@pytest.mark.parametrize(
    ("of_positions", "expected"),
    [
        ([800.0, 801.0], 800 - np.log1p(np.exp(-1))),
        ([40.0, -20.0], -np.log(np.expm1(20 + np.log1p(np.exp(-20)) + np.exp(-40)))),
        ([0.0, 0.0], -np.log(3)),
        ([-900.0, 900.0], -900.0),
        ([np.inf, 5.0], 5.0),
    ],
)
def test_joint_margins_of_every_size(of_positions, expected):
    """Of two classes with logits (0, m), the margin of the second is m."""
    logits = np.stack([np.zeros(2), of_positions], axis=-1)[np.newaxis]
    found = margins(logits, np.ones((1, 2), int), None)
    np.testing.assert_allclose(found, [expected], rtol=1e-9)


def test_robustness_is_refused_before_the_first_trial():
    model, x, y, _ = several.case("u_net")
    with pytest.raises(ValueError, match="'robustness' is for classifiers with one prediction"):
        evaluate(model, x, y, None, 2, metrics=["robustness"])


@pytest.mark.parametrize("name", ["tagger", *map(nightly, ("u_net", "labels"))])
def test_callback_and_check(name):
    model, x, y, _ = several.case(name, count=16)
    loss = "binary_crossentropy" if name == "labels" else "sparse_categorical_crossentropy"
    if name == "u_net":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    for unit in ("example", "position"):
        callback = FisherMetrics((x, y), num_samples=4, metrics=["trace"], unit=unit)
        history = model.fit(x, y, callbacks=[callback], verbose=0)
        report = evaluate(model, x, y, None, 4, metrics=["trace"], unit=unit)
        assert history.history["trace"] == [report.metrics["trace"].mean]
    check = check_classifier(model, x, y)
    assert all(map(check.works, ["Gram matrix", "SAM", "regularizer, finite_difference"]))
    assert not check.works("robustness")


def test_logits_that_a_binary_loss_is_of():
    """In fit, the loss tells that outputs are labels, and that they are logits."""
    _, x, y, _ = several.case("labels", count=16)
    model = several.sequential((4,), keras.layers.Dense(3))
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    callback = FisherMetrics((x, y), num_samples=4, metrics=["trace"])
    history = model.fit(x, y, callbacks=[callback], verbose=0)
    z = tf.cast(model(x), tf.float64)
    report = evaluate(Classifier(model), x, y, None, 4, metrics=["trace"])
    assert history.history["trace"] == [report.metrics["trace"].mean]
    losses = -tf.math.log_sigmoid((2.0 * y - 1) * z)
    np.testing.assert_allclose(report.train.loss, np.mean(losses), rtol=1e-6)
