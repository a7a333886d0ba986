"""Reading and checking of what users give as data."""

import tracemalloc

import numpy as np
import pytest
import tensorflow as tf

from fisher_keras.classifier.labels import label_distributions, labelled_data


def arrays(count=7):
    random = np.random.default_rng(0)
    return random.normal(size=(count, 3)), random.integers(0, 4, count)


def test_all_forms_of_the_same_data():
    x, y = arrays()
    expected = labelled_data((x, y))
    forms = [
        (tf.constant(x), tf.constant(y)),
        [x, y[:, None]],
        (x, y.astype("uint8")),
        (x, y.astype("float32")),
        tf.data.Dataset.from_tensor_slices((x, y)).batch(3),
    ]
    for form in forms:
        data = labelled_data(form)
        assert len(data) == 7
        np.testing.assert_array_equal(data.x, x)
        np.testing.assert_array_equal(data.y, y)
        assert data.fingerprint == expected.fingerprint
    assert labelled_data((x + 1, y)).fingerprint != expected.fingerprint


def test_structures_and_distributions():
    x, y = arrays()
    one_hot = np.eye(4)[y]
    data = labelled_data(tf.data.Dataset.from_tensor_slices(({"a": x, "b": x}, one_hot)).batch(2))
    np.testing.assert_array_equal(data.hard_labels, y)
    taken = data.take(np.array([5, 1]))
    np.testing.assert_array_equal(taken.x["b"], x[[5, 1]])
    np.testing.assert_array_equal(taken.hard_labels, y[[5, 1]])


def test_label_distributions():
    np.testing.assert_allclose(
        label_distributions([1, 0], 2, label_smoothing=0.1), [[0.05, 0.95], [0.95, 0.05]]
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((3, 2)), "data must be a pair .* Given: ndarray"),
        ((np.zeros((3, 2)), np.zeros(4)), r"x of \(3, 2\), y of \(4,\)"),
        ((np.zeros((0, 2)), np.zeros(0)), "at least one"),
        (
            (np.zeros((2, 2)), np.array([-1, 0])),
            "The labels of data .* Given: label -1 for example 0",
        ),
        ((np.zeros((2, 2)), np.array([0.3, 0.7])), "classes 0, 1, .* Given: label 0.3"),
        ((np.zeros((2, 2)), np.array([[1.0, 1.0], [0.0, 1.0]])), "distributions"),
        ((np.zeros((2, 2)), np.array(["cat", "dog"])), "dtype <U3"),
        (tf.data.Dataset.from_tensor_slices(arrays()), r"data\.batch\(100\)"),
        (tf.data.Dataset.from_tensor_slices(arrays()).batch(2).repeat(), "has no end"),
        (tf.data.Dataset.from_tensor_slices(arrays()).batch(2).take(0), "no batches"),
        (tf.data.Dataset.from_tensor_slices(arrays()[0]).batch(2), r"batches \(x, y\)"),
    ],
)
def test_what_is_wrong_is_said(data, message):
    with pytest.raises(ValueError, match=message):
        labelled_data(data)


def test_many_classes_take_the_memory_of_their_labels():
    """And not that of a matrix of all classes by all classes."""
    tracemalloc.start()
    found = label_distributions(np.array([0, 19_999, 7]), 20_000, label_smoothing=0.1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * found.nbytes
    np.testing.assert_array_equal(found.argmax(axis=1), [0, 19_999, 7])
    np.testing.assert_allclose(found.sum(axis=1), 1)
