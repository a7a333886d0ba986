"""evaluate_local_minimum against explicit Jacobians, and what its report says."""

import doctest
import importlib.util
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from marks import nightly
from test_loss_and_errors import bin_by_bin

from fisher_keras import FisherRegularizedModel, metrics
from fisher_keras.classifier import Classifier
from fisher_keras.fisher import loss_gradient_gram
from fisher_keras.metrics import (
    MAX_TRAIN_LOSS,
    METRICS,
    LocalMinimumReport,
    MetricSummary,
    SingularGramWarning,
    evaluate_local_minimum,
    evaluation,
    loss_and_errors,
    robustness,
)
from fisher_keras.metrics.trials import draw_sample

N, NUM_CLASSES = 40, 3


def examples(count=N, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, 5)).astype("float32"), random.integers(0, NUM_CLASSES, count)


def classifier(units=4):
    """A small network that behaves differently in training."""
    keras.utils.set_random_seed(1)
    layers = [
        keras.Input((5,)),
        keras.layers.Dense(units),
        keras.layers.BatchNormalization(),
        keras.layers.Activation("tanh"),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(NUM_CLASSES),
    ]
    model = keras.Sequential(layers)
    model.layers[1].moving_mean.assign(np.linspace(-0.3, 0.3, units))
    return model


@pytest.fixture(scope="module")
def model():
    """A classifier for all tests that do not ask for more; none changes it."""
    return classifier()


@pytest.fixture(scope="module")
def traced(model):
    """The same one, for tests that need not trace it themselves."""
    return Classifier(model)


def perfect_classifier():
    """One that is right with a margin of 20 on `separable` examples."""
    layer = keras.layers.Dense(NUM_CLASSES)
    model = keras.Sequential([keras.Input((NUM_CLASSES,)), layer])
    layer.set_weights([20 * np.eye(NUM_CLASSES), np.zeros(NUM_CLASSES)])
    return model


def separable(count=9):
    labels = np.arange(count) % NUM_CLASSES
    noise = np.random.default_rng(0).normal(size=(count, NUM_CLASSES))
    return (np.eye(NUM_CLASSES)[labels] + 0.01 * noise).astype("float32"), labels


def evaluate(model, data, **kwargs):
    kwargs = {"num_samples": 6, "num_trials": 3, "progress": False} | kwargs
    return evaluate_local_minimum(model, data, **kwargs)


def loss_of(z, label):
    return -tf.nn.log_softmax(z)[label]


def margin_of(z, label):
    return z[label] - tf.reduce_logsumexp([z[k] for k in range(NUM_CLASSES) if k != label])


def jacobian(model, x, labels, function=loss_of):
    """J, a gradient of a function of logits and label a row, one example after the other."""
    rows = []
    for x_i, label in zip(x, labels, strict=True):
        with tf.GradientTape() as tape:
            value = function(model(x_i[None], training=False)[0], label)
        gradients = tape.gradient(value, [v.value for v in model.trainable_variables])
        rows.append(np.concatenate([np.ravel(g) for g in gradients]))
    return np.stack(rows)


def cross_entropy(model, x, labels):
    z = model(x, training=False).numpy().astype(float)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(x)), labels].mean(), np.mean(z.argmax(axis=1) != labels)


def metrics_of_jacobian(model, x, labels):
    """Values of METRICS for a sample, and the logarithms of its eigenvalues, from J itself."""
    J = jacobian(model, x, labels)
    eigenvalues = np.linalg.svd(J, compute_uv=False) ** 2
    squares = np.sum(J**2, axis=1)
    of_margins = jacobian(model, x, labels, margin_of)
    z = model(x, training=False).numpy()
    p = np.exp(z)[np.arange(6), labels] / np.exp(z).sum(axis=1)
    weights = np.concatenate([np.ravel(v) for v in model.trainable_variables])
    values = [
        np.log(eigenvalues).sum(),
        np.log(squares).sum(),
        np.log(np.linalg.det(J @ J.T / np.sqrt(np.outer(squares, squares)))),
        eigenvalues[0],
        np.mean(squares**2),
        np.sum((J.T @ J / 6) ** 2),
        squares.mean(),
        np.exp(-np.sum(eigenvalues / squares.sum() * np.log(eigenvalues / squares.sum()))),
        np.linalg.slogdet(of_margins @ of_margins.T)[1],
        2 * np.log(1 - p).sum(),
        np.mean(np.log(p / (1 - p))),
        np.log(eigenvalues / 6 + 1e-3).sum(),
        np.sum(eigenvalues / (eigenvalues + 6e-3)),
        -np.log(np.sum((eigenvalues / squares.sum()) ** 2)),
        np.log(np.linalg.norm(weights)),
        robustness(model, x),
    ]
    return values, np.log(eigenvalues)


def test_every_trial_against_the_explicit_jacobian(float64):
    model, (x, y), test = classifier(), examples(), examples(15, seed=1)
    before = [v.numpy() for v in model.variables]
    report = evaluate(model, (x, y), seed=2, metrics=METRICS, test_data=test)
    for trial in report.trials:
        rows = draw_sample(y, 6, 2, trial.index, stratified=False)
        values, log_eigenvalues = metrics_of_jacobian(model, x[rows], y[rows])
        found = [trial.metrics[name] for name in METRICS]
        np.testing.assert_allclose(found, values, rtol=1e-8)
        np.testing.assert_allclose(trial.log_spectrum, log_eigenvalues, atol=1e-8)
    for name in METRICS:
        values = [trial.metrics[name] for trial in report.trials]
        std = np.std(values, ddof=1)
        np.testing.assert_allclose(
            [*vars(report.metrics[name]).values()], [np.mean(values), std, std / math.sqrt(3)]
        )
    for found, data in ((report.train, (x, y)), (report.test, test)):
        np.testing.assert_allclose(
            [found.loss, found.error], cross_entropy(model, *data), rtol=1e-9
        )
        p = tf.nn.softmax(model(data[0], training=False)).numpy()
        right = p.argmax(axis=1) == data[1]
        expected = bin_by_bin(p.max(axis=1), right, 15)
        np.testing.assert_allclose(found.calibration_error, expected, rtol=1e-9)
    assert report.num_parameters == 4 * 5 + 4 + 2 * 4 + 4 * 3 + 3
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())


def test_the_example_runs():
    assert doctest.testmod(evaluation).failed == 0


def test_all_forms_of_model_and_data_give_the_same(model, traced, tmp_path):
    x, y = examples()
    expected = evaluate(model, (x, y))
    dataset = tf.data.Dataset.from_tensor_slices((x, np.eye(NUM_CLASSES)[y])).batch(7)
    assert evaluate(traced, dataset).trials == expected.trials
    wrapped = FisherRegularizedModel(model)
    assert evaluate(wrapped, (x, y)).trials == expected.trials
    assert evaluate(traced, (x, y)).trials == expected.trials
    numbers = {"num_samples": np.int64(6), "num_trials": 3.0, "seed": np.uint8(0)}
    assert evaluate(traced, (x, y), **numbers).trials == expected.trials
    assert evaluate(traced, (x, y), seed=1).trials != expected.trials
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert evaluate(loaded, (x, y)).evaluation == expected.evaluation


def test_a_stopped_evaluation_goes_on(tmp_path, monkeypatch):
    model, data, path = classifier(), examples(), tmp_path / "trials.jsonl"
    expected = evaluate(model, data, num_trials=5, metrics=("trace", "robustness"))
    calls = []

    def stopping(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    original = evaluation.loss_gradient_gram
    monkeypatch.setattr(evaluation, "loss_gradient_gram", stopping)
    arguments = {"trials_path": path, "num_trials": 5, "metrics": ("trace", "robustness")}
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, data, **arguments)
    assert len(path.read_text().splitlines()) == 3
    report = evaluate(model, data, **arguments)
    assert report.trials == expected.trials
    assert len(calls) == 6
    assert evaluate(model, data, **arguments).metrics == expected.metrics
    assert len(calls) == 6
    model.layers[0].kernel.assign_add(np.ones((5, 4)))
    with pytest.raises(ValueError, match="another evaluation: model was"):
        evaluate(model, data, **arguments)


class ByHand(keras.layers.Layer):
    """A softmax that the graph does not tell from other functions."""

    def call(self, x):
        return keras.ops.exp(x) / keras.ops.sum(keras.ops.exp(x), axis=-1, keepdims=True)


def two_layers(policy="float32"):
    """A classifier with two layers of the same shape, the activation of one, and probabilities."""
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(5, "tanh", dtype=policy) for _ in range(2)]
    head = [keras.layers.Dense(NUM_CLASSES, dtype=policy), ByHand(dtype=policy)]
    return keras.Sequential([keras.Input((5,)), *layers, *head])


def frozen(*indices):
    model = two_layers()
    for index in indices:
        model.layers[index].trainable = False
    return model


def with_another_activation():
    model = two_layers()
    model.layers[1].activation = keras.activations.softsign
    return model


class Gate(keras.layers.Layer):
    """Does nothing, but for gradients."""

    way = None

    def call(self, x):
        if self.way == "stopped":
            return tf.stop_gradient(x)
        return x + 0 * x if self.way is None else x + self.way(x) - tf.stop_gradient(self.way(x))


def gated(way=None, of_inputs=False):
    keras.utils.set_random_seed(1)
    inputs, gate = keras.Input((5,)), Gate()
    gate.way = way
    dense = keras.layers.Dense(4, "tanh")
    features = dense(gate(inputs)) if of_inputs else gate(dense(inputs))
    outputs = keras.layers.Dense(NUM_CLASSES)(features + keras.layers.Dense(4)(inputs))
    return keras.Model(inputs, keras.layers.Softmax()(outputs))


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        (two_layers, with_another_activation, {}, "logits are those of another function"),
        (two_layers, lambda: frozen(0, 1), {}, "num_parameters was 78, is 18"),
        (lambda: frozen(0), lambda: frozen(1), {}, "another evaluation: trainable was"),
        (two_layers, lambda: two_layers("mixed_float16"), {}, "dtypes was"),
        (gated, lambda: gated("stopped"), {}, "gradients are those of another function"),
        (gated, lambda: gated(lambda x: 0.01 * x), {}, "gradients are those of another function"),
        (
            lambda: gated(of_inputs=True),
            lambda: gated("stopped", of_inputs=True),
            {"metrics": ("robustness",)},
            "gradients are those of another function",
        ),
    ],
)
def test_trials_of_another_function_of_the_same_weights_are_refused(
    first, second, options, message, tmp_path
):
    path = tmp_path / "trials.jsonl"
    metrics = {name: options[name] for name in options if name == "metrics"}
    evaluate(first(), examples(), from_logits=False, trials_path=path, **metrics)
    before = path.read_text()
    with pytest.raises(ValueError, match=message):
        evaluate(second(), examples(), **{"from_logits": False} | options, trials_path=path)
    assert path.read_text() == before


def test_trials_go_on_where_functions_are_eager(tmp_path):
    path = tmp_path / "trials.jsonl"
    expected = evaluate(two_layers(), examples(), trials_path=path)
    tf.config.run_functions_eagerly(True)
    try:
        again = evaluate(two_layers(), examples(), trials_path=path)
    finally:
        tf.config.run_functions_eagerly(False)
    assert again.trials == expected.trials


def test_trials_of_the_same_function_rounded_otherwise_go_on(tmp_path):
    """As those of another machine or number of threads are; the order of magnitude of float32."""
    path = tmp_path / "trials.jsonl"
    expected = evaluate(two_layers(), examples(), trials_path=path)
    header, *trials = path.read_text().splitlines()
    header = json.loads(header)
    logits = np.array(header["evaluation"]["logits"])
    for change, same in ((1e-6, True), (1e-2, False)):
        header["evaluation"]["logits"] = (logits + change * np.abs(logits).max()).tolist()
        path.write_text("\n".join([json.dumps(header), *trials, ""]))
        if same:
            again = evaluate(two_layers(), examples(), trials_path=path)
            assert again.trials == expected.trials
        else:
            with pytest.raises(ValueError, match="logits are those of another function"):
                evaluate(two_layers(), examples(), trials_path=path)


@pytest.mark.parametrize(
    "options",
    [
        *(nightly({}), nightly({"chunk_size": 4}), nightly({"normalize_logits": 0.3})),
        {"chunk_size": 4, "normalize_logits": 0.3, "stratified": True},
    ],
)
def test_what_trials_have_evaluated_is_not_evaluated_again(model, monkeypatch, tmp_path, options):
    (x, y), path = examples(), tmp_path / "trials.jsonl"
    soft = 0.8 * np.eye(NUM_CLASSES)[y] + 0.2 / NUM_CLASSES
    expected = evaluate(model, (x, soft), metrics=("robustness",)).train
    seen = []

    def evaluating(losses, classifier, rows):
        seen.append(rows.tolist())
        return original(losses, classifier, rows)

    original = loss_and_errors.RunningDataLoss.evaluate
    monkeypatch.setattr(loss_and_errors.RunningDataLoss, "evaluate", evaluating)
    for first, count in ((0, 2), (2, 5), (5, 5)):  # Those before are found in the file.
        report = evaluate(model, (x, soft), num_trials=count, trials_path=path, **options)
        stratified = options.get("stratified", False)
        samples = [draw_sample(y, 6, 0, trial, stratified) for trial in range(first, count)]
        assert seen.pop() == sorted(set(range(N)) - {row for rows in samples for row in rows})
        for name, value in vars(expected).items():
            assert getattr(report.train, name) == pytest.approx(value, rel=1e-6), name


def test_a_trial_depends_on_its_sample_alone(model, traced, tmp_path):
    """Some samples hold an example twice, but for rounding, and need products in float64."""
    (x, y), path = examples(), tmp_path / "trials.jsonl"
    x[20:], y[20:] = x[:20] + 1e-4, y[:20]
    options = {"seed": 17, "num_trials": 6}
    expected = evaluate(traced, (x, y), **options).trials
    samples = [draw_sample(y, 6, 17, trial, stratified=False) for trial in range(6)]
    twice = [len(set(rows % 20)) < 6 for rows in samples]
    assert twice == [False, False, True, False, True, False]
    for rows, trial in list(zip(samples, expected, strict=True))[2:4]:
        alone = loss_gradient_gram(model, x[rows], y[rows])
        assert trial.log_spectrum == tuple(metrics.log_spectrum(alone))
    evaluate(model, (x, y), **options | {"num_trials": 3}, trials_path=path)
    assert evaluate(model, (x, y), **options, trials_path=path).trials == expected
    assert evaluate(traced, (x, y), **options).trials == expected


def test_stratified_samples(model, traced):
    x, y = examples()
    y = np.sort(y)
    report = evaluate(traced, (x, y), stratified=True)
    rows = draw_sample(y, 6, 0, 0, stratified=True)
    J = jacobian(model, x[rows], y[rows])
    np.testing.assert_allclose(report.trials[0].metrics["trace"], np.sum(J**2) / 6, rtol=1e-4)


def test_normalized_logits(float64):
    """They are those of a model that normalizes its own; losses are of the model as it is."""
    model, data = classifier(), examples()
    inputs = keras.Input((5,))
    z = model(inputs)
    scaled = z / (0.3 * keras.ops.norm(z, axis=-1, keepdims=True))
    expected = evaluate(keras.Model(inputs, scaled), data, metrics=METRICS)
    report = evaluate(model, data, metrics=METRICS, normalize_logits=0.3)
    for name in METRICS:
        np.testing.assert_allclose(
            report.metrics[name].mean, expected.metrics[name].mean, rtol=1e-9
        )
    np.testing.assert_allclose(report.train.loss, cross_entropy(model, *data)[0])
    assert "normalize_logits=0.3" in str(report)


def test_a_sigmoid_unit_is_a_softmax_of_two():
    x, y = examples()
    y = y % 2
    unit = keras.layers.Dense(1, "sigmoid")
    sigmoid = keras.Sequential([keras.Input((5,)), unit])
    kernel, bias = np.random.default_rng(0).normal(size=(5, 1)), np.array([0.2])
    unit.set_weights([kernel, bias])
    report = evaluate(sigmoid, (x, y), metrics=("trace", "robustness"))
    z = x @ kernel[:, 0] + bias
    p = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(
        report.train.loss, -np.mean(np.log(np.where(y == 1, p, 1 - p))), rtol=1e-5
    )
    squares = (y - p) ** 2 * (1 + np.sum(x**2, axis=1))
    rows = [draw_sample(y, 6, 0, trial, stratified=False) for trial in range(3)]
    np.testing.assert_allclose(
        report.metrics["trace"].mean, np.mean(squares[np.concatenate(rows)]), rtol=1e-5
    )
    # The probabilities p and 1 - p move against each other: the norm is sqrt(2) that of p's.
    norms = 2 * (p * (1 - p)) ** 2 * np.sum(kernel**2)
    np.testing.assert_allclose(
        report.metrics["robustness"].mean, np.mean(norms[np.concatenate(rows)]), rtol=1e-5
    )


def test_assumptions_that_do_not_hold_are_noted(model, traced):
    x, y = examples()
    report = evaluate(traced, (x, y))
    loss, error = cross_entropy(model, x, y)
    assert f"the training loss is {loss:.3g} above the least" in report.notes[0]
    assert f"({round(error * N)} of {N} examples are misclassified)" in report.notes[1]
    assert all(note in str(report) for note in report.notes)
    (hard,) = evaluate(perfect_classifier(), separable()).notes
    assert "labels are hard: the cross-entropy then has no minimum" in hard


def test_a_softmax_that_saturates_in_float32():
    model, (x, y) = perfect_classifier(), separable()
    kernel = model.layers[0].kernel
    kernel.assign(10 * kernel)
    report = evaluate(model, (x, y), metrics=("log_determinant", "trace"), num_trials=2)
    assert len(report.notes) == 1
    for trial in report.trials:
        rows = draw_sample(y, 6, 0, trial.index, stratified=False)
        z = x[rows].astype(float) @ kernel.numpy().astype(float)
        # p - y to first order in the small p_k, about e^-200.
        cotangents = np.exp(z - z[np.arange(6), y[rows]][:, None])
        cotangents[np.arange(6), y[rows]] = 0
        cotangents -= np.eye(NUM_CLASSES)[y[rows]] * cotangents.sum(axis=1, keepdims=True)
        features = np.column_stack([x[rows], np.ones(6)])
        J = np.einsum("nk,nd->nkd", cotangents, features).reshape(6, -1)
        norms = np.linalg.norm(J, axis=1)
        unit = J / norms[:, None]
        expected = 2 * np.log(norms).sum() + np.linalg.slogdet(unit @ unit.T)[1]
        assert expected < -2000
        np.testing.assert_allclose(trial.metrics["log_determinant"], expected, rtol=1e-5)
        np.testing.assert_allclose(trial.metrics["trace"], np.mean(norms**2), rtol=1e-3)


@pytest.mark.filterwarnings("ignore::fisher_keras.metrics.SingularGramWarning")
def test_trials_go_on_where_probabilities_are_zero(tmp_path):
    """Their logarithms are no numbers that a file could be compared by."""

    def probabilities(z):
        p = tf.exp(z - tf.reduce_max(z, axis=-1, keepdims=True))
        return p / tf.reduce_sum(p, axis=-1, keepdims=True)

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, probabilities)])
    model.set_weights([np.eye(3, dtype="float32"), np.zeros(3, "float32")])
    data = 1000 * np.eye(3, dtype="float32")[[0, 1, 2, 0]], np.array([0, 1, 2, 0])
    assert np.min(model(data[0])) == 0
    options = {"trials_path": tmp_path / "trials", "progress": False, "metrics": ["trace"]}
    for _ in range(2):
        assert len(evaluate_local_minimum(model, data, 2, 2, **options).trials) == 2


def test_the_least_loss_of_smoothed_labels_is_their_entropy():
    x, labels = separable()
    y = 0.9 * np.eye(NUM_CLASSES)[labels] + 0.1 / NUM_CLASSES
    layer = keras.layers.Dense(NUM_CLASSES)
    model = keras.Sequential([keras.Input((NUM_CLASSES,)), layer])
    margin = math.log((0.9 + 0.1 / 3) / (0.1 / 3))
    layer.set_weights([margin * np.eye(NUM_CLASSES), np.zeros(NUM_CLASSES)])
    report = evaluate(model, (x, y))
    entropy = -np.mean(np.sum(y * np.log(y), axis=1))
    np.testing.assert_allclose(report.train.label_entropy, entropy)
    np.testing.assert_allclose(report.train.loss, entropy, rtol=1e-3)
    hard = cross_entropy(model, x, labels)[0]
    np.testing.assert_allclose(report.train.hard_label_loss, hard, rtol=1e-5)
    smoothing = evaluate(model, (x, labels), label_smoothing=0.1, test_data=(x, labels))
    for name, value in vars(report.train).items():
        np.testing.assert_allclose(getattr(smoothing.train, name), value, err_msg=name)
    np.testing.assert_allclose(smoothing.test.loss, hard, rtol=1e-5)
    assert smoothing.notes == ()
    assert report.train.loss > MAX_TRAIN_LOSS
    assert report.notes == ()


def test_a_repeated_image_is_named_by_its_rows_in_the_data():
    x, y = separable()
    x[7], y[7] = x[4], y[4]
    with pytest.warns(SingularGramWarning, match=r"1 of 1 samples .* for examples 4, 7") as caught:
        report = evaluate(
            perfect_classifier(), (x, y), num_samples=9, num_trials=1, metrics=["log_determinant"]
        )
    assert len(caught) == 1
    assert report.metrics["log_determinant"].mean == -math.inf
    assert "examples 4, 7" in report.notes[-1]
    record = json.loads(report.to_json(), parse_constant=pytest.fail)
    assert record["metrics"]["log_determinant"] == {
        "mean": "-inf",
        "std": "nan",
        "standard_error": "nan",
    }


def test_more_samples_than_parameters():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(NUM_CLASSES, use_bias=False)])
    with pytest.warns(SingularGramWarning, match="No sample of 20 .* 15 trainable parameters"):
        evaluate(model, examples(), num_samples=20)


def test_the_report(traced):
    report = evaluate(traced, examples(), test_data=examples(10), metrics=METRICS)
    text = str(report)
    assert "3 trials of 6 examples, seed 0" in text
    for name, summary in report.metrics.items():
        assert f"{name} " in text
        assert f"{summary.mean:.6g}" in text
    assert f"({report.test.num_errors} of 10)" in text
    record = json.loads(report.to_json(), parse_constant=pytest.fail)
    assert record["metrics"]["trace"] == vars(report.metrics["trace"])
    assert record["train"]["error"] == report.train.error
    assert [trial["metrics"] for trial in record["trials"]] == [t.metrics for t in report.trials]
    assert record["evaluation"]["num_samples"] == 6


def test_the_report_as_markdown_and_as_a_frame(traced, monkeypatch):
    report = evaluate(traced, examples(), test_data=examples(10))
    text = report.to_markdown()
    for name, summary in report.metrics.items():
        cells = f"{summary.mean:.6g} | {summary.standard_error:.2g}"
        assert f"| {name} | {cells} |" in text
    assert f"| test | {report.test.loss:.4g} | {100 * report.test.error:.2f} |" in text
    assert all(f"- {note}" in text for note in report.notes)
    if importlib.util.find_spec("pandas"):
        frame = report.to_frame()
        assert list(frame.index) == list(report.metrics)
        assert frame.loc["trace"].to_dict() == vars(report.metrics["trace"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="no package pandas: run pip install 'pandas'"):
        report.to_frame()


def test_the_spectrum_plot(traced, tmp_path):
    report = evaluate(traced, examples())
    axes = report.plot_spectrum()
    (line,) = axes.get_lines()
    expected = np.mean([trial.log_spectrum for trial in report.trials], axis=0) / math.log(10)
    np.testing.assert_allclose(line.get_ydata(), expected)
    axes.figure.savefig(tmp_path / "spectrum.png")
    assert report.plot_spectrum(axes) is axes
    without = evaluate(traced, examples(), metrics=["robustness"])
    assert without.trials[0].log_spectrum == ()
    with pytest.raises(ValueError, match="no spectrum"):
        without.plot_spectrum()


def test_names_of_version_0_2():
    assert metrics.Fit is metrics.DataLoss
    assert metrics.Dependence is metrics.LinearDependence


def test_one_trial_has_no_deviation(traced):
    report = evaluate(traced, examples(), num_trials=1, metrics=["trace"])
    assert isinstance(report, LocalMinimumReport)
    assert isinstance(report.metrics["trace"], MetricSummary)
    assert math.isnan(report.metrics["trace"].std)


def test_the_progress_bar(traced, capfd):
    evaluate(traced, examples(), progress=True)
    assert "3/3" in capfd.readouterr().err
    evaluate(traced, examples())
    assert "3/3" not in capfd.readouterr().err


def test_a_model_that_is_not_built_yet():
    model = keras.Sequential([keras.layers.Dense(NUM_CLASSES)])
    assert math.isfinite(evaluate(model, examples()).metrics["log_determinant"].mean)


def test_nan_outputs_are_one_error(traced):
    x, y = examples()
    x[30, 2] = np.nan
    with pytest.raises(ValueError, match=r"for 1 of .* examples of data .* the first is 30"):
        evaluate(traced, (x, y))
    with pytest.raises(ValueError, match="examples of test_data"):
        evaluate(traced, examples(), test_data=(x, y))


def test_logits_are_no_probabilities(model):
    with pytest.raises(ValueError, match=r"no probabilities .* from_logits=False"):
        evaluate(model, examples(), from_logits=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 41}, "num_samples=41 .* data of 40"),
        ({"num_samples": 0}, "num_samples must be"),
        ({"num_trials": 2.5}, "num_trials must be"),
        ({"seed": -1}, "seed must be"),
        ({"label_smoothing": 1}, "label_smoothing must be"),
        ({"chunk_size": 0}, "chunk_size must be"),
        ({"metrics": 5}, "metrics must be names out of"),
        ({"metrics": ("flatness",)}, "metrics must be names out of"),
        ({"metrics": "trace"}, "metrics must be names out of"),
        ({"metrics": ()}, "metrics must be names out of"),
        ({"normalize_logits": 0}, "normalize_logits must be"),
        ({"normalize_logits": math.nan}, "normalize_logits must be"),
        ({"test_data": examples(5)[0]}, "test_data must be"),
    ],
)
def test_bad_arguments(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(model, examples(), **arguments)


@pytest.mark.parametrize("row", range(0, N, N // 3))
def test_a_label_of_no_class_is_refused_in_whichever_row(traced, row, tmp_path):
    """Before the first trial, which may not sample it."""
    x, y = examples()
    y[row] = 5
    path = tmp_path / "trials.jsonl"
    with pytest.raises(ValueError, match=rf"0\.\.2.* Given: label 5 for example {row}"):
        evaluate(traced, (x, y), num_samples=1, num_trials=1, trials_path=path)
    assert not path.exists()


@pytest.mark.parametrize("chunk_size", [nightly(1), 4])
def test_chunks_change_nothing(model, chunk_size):
    names = ("log_determinant", "trace", "robustness")
    found = evaluate(model, examples(), metrics=names, chunk_size=chunk_size)
    expected = evaluate(model, examples(), metrics=names)
    for name in names:
        assert found.metrics[name].mean == pytest.approx(expected.metrics[name].mean, rel=1e-5)
    assert found.evaluation == expected.evaluation


class WithoutDerivative(keras.layers.Layer):
    """Its derivative is NaN where its input is large, and nothing else."""

    def call(self, x):
        far = keras.ops.abs(x) > 1e3
        return keras.ops.where(far, 0.0, x) + keras.ops.sqrt(keras.ops.where(far, 0 * x, 1.0))


@pytest.mark.parametrize("name", ["trace", "robustness"])
def test_examples_without_a_derivative_are_named_by_their_rows_in_the_data(name):
    layers = [keras.layers.Dense(3), WithoutDerivative(), keras.layers.Dense(NUM_CLASSES)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    x, y = examples()
    x[37] = 1e6
    with pytest.raises(ValueError, match=r"1 of 20 examples.* first at \[37\]"):
        evaluate(model, (x, y), num_samples=20, num_trials=9, metrics=(name,))
