"""Arguments that are no model, no arrays or no labels: one line, from every public function."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fisher_keras import FisherMetrics, evaluate_local_minimum, loss_gradient_gram
from fisher_keras.classifier.labels import fingerprint
from fisher_keras.metrics import hessian, hessian_log_determinant, robustness

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
Y = np.arange(12) % 3

FUNCTIONS = {
    "loss_gradient_gram": loss_gradient_gram,
    "hessian": hessian,
    "hessian_log_determinant": hessian_log_determinant,
    "evaluate_local_minimum": lambda model, x, y: evaluate_local_minimum(
        model, (x, y), 4, 1, progress=False
    ),
    "robustness": lambda model, x, y: robustness(model, x),
    "FisherMetrics": lambda model, x, y: FisherMetrics((x, y), num_samples=2),
}
OF_LABELS = sorted(FUNCTIONS.keys() - {"robustness"})
OF_GRADIENTS = ["evaluate_local_minimum", "hessian", "hessian_log_determinant"]


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"FisherMetrics"}))
@pytest.mark.parametrize("model", [None, "model.keras", lambda x: x, keras.layers.Dense(3)])
def test_what_is_no_model(name, model):
    with pytest.raises(ValueError, match=r"must be a keras\.Model .* Given: "):
        FUNCTIONS[name](model, X, Y)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.tolist(), r"np\.asarray"),
        (np.float32(3), r"np\.asarray"),
        (X[:0], "at least one"),
        ([X, X[:3]], "at least one"),
    ],
)
def test_what_is_no_array_of_examples(name, x, message):
    with pytest.raises(ValueError, match=message) as caught:
        FUNCTIONS[name](network(), x, Y)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", OF_LABELS)
@pytest.mark.parametrize("y", [None, 3, Y[:5], np.stack([Y] * 2)])
def test_labels_of_another_number(name, y):
    with pytest.raises(ValueError, match=r"same number .* \(12, 4\), y of|data has no labels"):
        FUNCTIONS[name](network(), X, y)


@pytest.mark.parametrize("name", OF_LABELS)
def test_labels_may_be_a_list(name):
    FUNCTIONS[name](network(), X, Y.tolist())


@pytest.mark.parametrize("name", OF_GRADIENTS)
def test_nothing_to_train(name):
    model = network()
    model.trainable = False
    with pytest.raises(ValueError, match="no trainable variables"):
        FUNCTIONS[name](model, X, Y)


def test_numpy_numbers(tmp_path):
    model = network()
    five, one, half = np.int64(5), np.int32(1), np.float32(0.5)
    of_numpy = evaluate_local_minimum(
        model,
        (X, Y),
        five,
        one,
        np.uint8(3),
        np.array(["trace", "robustness"]),
        half,
        stratified=np.True_,
        from_logits=np.True_,
        chunk_size=np.int16(2),
        progress=np.False_,
        trials_path=tmp_path / "trials.jsonl",
    )
    of_python = evaluate_local_minimum(
        model,
        (X, Y),
        5,
        1,
        3,
        ("trace", "robustness"),
        0.5,
        stratified=True,
        chunk_size=2,
        progress=False,
        trials_path=tmp_path / "trials.jsonl",  # Which holds the same evaluation.
    )
    for name, summary in of_python.metrics.items():
        assert of_numpy.metrics[name].mean == summary.mean
    np.testing.assert_array_equal(
        hessian(model, X, Y, np.True_, half), hessian(model, X, Y, True, 0.5)
    )
    assert robustness(model, X, batch_size=five) == pytest.approx(robustness(model, X), rel=1e-6)
    gram = loss_gradient_gram(model, X, Y, np.True_, np.False_, five, normalize_logits=half)
    assert gram.matrix.shape == (12, 12)


@pytest.mark.parametrize("smoothing", [-0.1, 1, np.nan, "0.1", True])
def test_label_smoothing(smoothing):
    with pytest.raises(ValueError, match="label_smoothing must be"):
        hessian(network(), X, Y, label_smoothing=smoothing)


def test_labels_are_checked_before_the_trials_by_their_rows_in_the_data():
    x, y = np.tile(X, (50, 1)), np.tile(Y, 50)
    y[400:] = 3
    with pytest.raises(ValueError, match=r"labels of data .* Given: label 3 for example 400"):
        evaluate_local_minimum(network(), (x, y), 4, 1, progress=False)


def test_the_fingerprint_of_strings_is_of_their_content():
    def same(first, second):
        return fingerprint([first]) == fingerprint([second])

    texts = ["a longer text, of its own", "b", "ü"]
    arrays = [
        lambda t: tf.constant(t).numpy(),
        lambda t: np.array(t, object),
        np.array,
        lambda t: np.array(t, np.dtypes.StringDType()),
    ]
    for make in arrays:
        copy = "".join(list(texts[0])), *texts[1:]
        assert same(make(texts), make(list(copy)))
        assert not same(make(texts), make(["a longer text, of another", "b", "ü"]))
    assert not same(np.array(["ab", "c"], object), np.array(["a", "bc"], object))


def test_trials_of_a_model_of_strings_go_on(tmp_path):
    def evaluate(num_trials):
        texts = tf.constant([["a", "b"], ["b", "b"], ["c", "a"]] * 2).numpy()
        keras.utils.set_random_seed(0)
        lookup = keras.layers.StringLookup(vocabulary=["a", "b", "c"], output_mode="multi_hot")
        inputs = keras.Input((2,), dtype="string")
        outputs = keras.layers.Dense(2)(lookup(inputs))
        return evaluate_local_minimum(
            keras.Model(inputs, outputs),
            (texts, np.array([0, 1] * 3)),
            2,
            num_trials,
            metrics=("trace",),
            progress=False,
            trials_path=tmp_path / "trials.jsonl",
        )

    first = evaluate(1)
    assert evaluate(2).trials[0] == first.trials[0]
