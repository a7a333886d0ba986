"""Data and models that fit each other nowhere, or other files: one line that tells, and early."""

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
from keras import layers

from fisher_keras.classifier import Classifier
from fisher_keras.classifier.labels import labelled_data
from fisher_keras.fisher import example_gradient_norms, loss_gradient_gram
from fisher_keras.metrics import evaluate_local_minimum, hessian, robustness

X = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
Y = np.arange(20) % 3
FUNCTIONS = {
    "gram": loss_gradient_gram,
    "norms": lambda model, x, y: example_gradient_norms(model, (x, y)),
    "hessian": hessian,
    "robustness": lambda model, x, y: robustness(model, x),
    "logits": lambda model, x, y: Classifier(model).logits(x),
}


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(3)])


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("convert", "remedy"),
    [
        (scipy.sparse.csr_matrix, r"x\.toarray\(\)"),
        (tf.sparse.from_dense, r"tf\.sparse\.to_dense\(x\)"),
        (tf.RaggedTensor.from_tensor, r"x\.to_tensor\(\)"),
    ],
)
def test_inputs_that_are_not_dense(convert, remedy, name):
    with pytest.raises(ValueError, match=f"take dense arrays: give {remedy}"):
        FUNCTIONS[name](network(), convert(X), Y)


@pytest.mark.parametrize("name", ["gram", "norms", "hessian", "logits"])
def test_indices_outside_of_the_table(name):
    embedding = [keras.Input((4,), dtype="int32"), layers.Embedding(5, 3)]
    model = keras.Sequential([*embedding, layers.GlobalAveragePooling1D(), layers.Dense(3)])
    with pytest.raises(ValueError, match=r"cannot be evaluated at these x.* = 7 is not in \[0, 5"):
        FUNCTIONS[name](model, np.array([[0, 1, 2, 3], [3, 7, 1, 0]]), [0, 1])


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_models_for_batches_of_one_size(size, name):
    recurrent = [keras.Input(batch_shape=(size, 4, 2)), layers.LSTM(3, stateful=True)]
    model = keras.Sequential([*recurrent, layers.Dense(3)])
    with pytest.raises(ValueError, match=f"takes batches of {size} examples only"):
        FUNCTIONS[name](model, np.ones((8, 4, 2), "float32"), Y[:8])


def test_batches_of_several_lengths():
    rows = tf.data.Dataset.from_tensor_slices((tf.ragged.range(tf.range(3, 11)), Y[:8]))
    data = rows.map(lambda x, y: (x.to_tensor() if isinstance(x, tf.RaggedTensor) else x, y))
    with pytest.raises(ValueError, match=r"data must be of one shape .* \(6,\) and \(10,\)"):
        labelled_data(data.padded_batch(4))
    assert labelled_data(data.padded_batch(4, ([10], []))).x.shape == (8, 10)


def test_a_folder_for_the_trials(tmp_path):
    with pytest.raises(ValueError, match=r"trials_path must be a file, .* Given: the folder"):
        evaluate_local_minimum(
            *(network(), (X, Y), 4, 2),
            test_data=(np.full_like(X, np.nan), Y),  # They come later, and would be refused.
            trials_path=tmp_path,
            progress=False,
        )


def test_layers_by_their_order(tmp_path):
    """A file of trials may be begun with the same network under other names."""
    first, again = network(), network()
    options = {"layers": True, "trials_path": tmp_path / "trials.jsonl", "progress": False}
    begun = evaluate_local_minimum(first, (X, Y), 4, 2, **options)
    resumed = evaluate_local_minimum(again, (X, Y), 4, 3, **options)
    assert [row.name for row in resumed.layers] == [layer.name for layer in again.layers]
    assert begun.layer_weights.keys() != resumed.layer_weights.keys()
    values = [list(report.layers.values.values()) for report in (begun, resumed)]
    np.testing.assert_array_equal(values[0], np.array(values[1])[..., :2])
