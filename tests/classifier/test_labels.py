"""Reading and checking of what users give as data."""

import tracemalloc

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from fisher_keras.classifier.labels import labelled_data
from fisher_keras.classifier.likelihood import Likelihood


def arrays(count=7):
    random = np.random.default_rng(0)
    return random.normal(size=(count, 3)), random.integers(0, 4, count)


class Batches(keras.utils.PyDataset):
    """Batches of 3 as Keras users have them; endless on request, else shuffled at each reading."""

    endless = shuffled = False

    def __init__(self, *arrays):
        super().__init__()
        self._arrays = arrays

    @property
    def num_batches(self):
        return None if self.endless else 3

    def __getitem__(self, index):
        if self.shuffled and index == 0:
            order = np.random.permutation(7)
            self._arrays = tuple(array[order] for array in self._arrays)
        return tuple(array[3 * index : 3 * index + 3] for array in self._arrays)


class Endless(Batches):
    endless = True


class Shuffled(Batches):
    shuffled = True


@pytest.mark.parametrize(
    "shuffled",
    [
        lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)).shuffle(7).batch(3),
        lambda x, y: tf.data.Dataset.from_tensor_slices((x.astype(str), y)).shuffle(7).batch(3),
        Shuffled,
    ],
)
def test_a_shuffled_data_set_is_the_same_at_each_reading(shuffled):
    x, y = arrays()
    first, *others = (labelled_data(shuffled(x, y)) for _ in range(4))
    for other in others:
        assert other.fingerprint == first.fingerprint
    known = x if first.x.dtype == x.dtype else np.char.encode(x.astype(str))
    order = [int(np.flatnonzero((known == row).all(axis=1))[0]) for row in first.x]
    assert sorted(order) == list(range(7))
    np.testing.assert_array_equal(first.y, y[order])


def augmented():
    noise = lambda x, y: (x + tf.random.normal(x.shape, dtype=x.dtype), y)  # noqa: E731
    return tf.data.Dataset.from_tensor_slices(arrays()).map(noise).batch(3)


def sparse_batches():
    x = tf.sparse.from_dense(arrays()[0])
    return tf.data.Dataset.from_tensor_slices((x, arrays()[1])).batch(3)


def test_all_forms_of_the_same_data():
    x, y = arrays()
    expected = labelled_data((x, y))
    forms = [
        (tf.constant(x), tf.constant(y)),
        [x, y[:, None]],
        (x, y.astype("uint8")),
        (x, y.astype("float32")),
        tf.data.Dataset.from_tensor_slices((x, y)).batch(3),
        (x, y, np.linspace(0, 1, 7)),
        tf.data.Dataset.from_tensor_slices((x, y, np.linspace(0, 1, 7))).batch(3),
        Batches(x, y),
        Batches(x, y, np.linspace(0, 1, 7)),
    ]
    for form in forms:
        data = labelled_data(form)
        assert len(data) == 7
        np.testing.assert_array_equal(data.x, x)
        np.testing.assert_array_equal(data.y, y)
        assert data.fingerprint == expected.fingerprint
    assert labelled_data((x + 1, y)).fingerprint != expected.fingerprint


@pytest.mark.parametrize("shuffled", [False, True])
def test_weights_of_positions_go_with_their_examples(shuffled):
    x, _ = arrays()
    random = np.random.default_rng(1)
    y, weights = random.integers(0, 4, (7, 5)), random.integers(0, 2, (7, 5))
    y[weights == 0] = -1  # Which no classifier has.
    given = tf.data.Dataset.from_tensor_slices((x, y, weights))
    data = labelled_data((given.shuffle(7) if shuffled else given).batch(3))
    order = [int(np.flatnonzero((x == row).all(axis=1))[0]) for row in data.x]
    np.testing.assert_array_equal(data.weights, weights[order])
    np.testing.assert_array_equal(data.take(np.array([2])).weights, weights[order][2:3])
    arrays_alone = labelled_data((x, y, weights))
    assert shuffled or data.fingerprint == arrays_alone.fingerprint
    other = labelled_data((x, y, weights * (np.arange(5) > 0)))
    assert other.fingerprint != arrays_alone.fingerprint
    with pytest.raises(ValueError, match=r"Given: label -1 for example 0 at position"):
        labelled_data((x, y))


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
        Likelihood((), 2).distributions([1, 0], label_smoothing=0.1), [[0.05, 0.95], [0.95, 0.05]]
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
        ((np.zeros((2, 2)), np.array([[0.5, 1.0], [0.0, 1.0]])), "distributions"),
        ((np.zeros((2, 2)), np.array(["cat", "dog"])), "dtype <U3; number the classes"),
        ((np.zeros((2, 2)), None), r"data has no labels; give \(x, y\)"),
        ((np.zeros((2, 2)), {"out": np.zeros(2)}), r"a dict of \['out'\]: .* y\['out'\]"),
        ((np.zeros((2, 2)), (np.zeros(2), np.zeros(2))), r"tuple of 2 arrays: .* y\[0\]"),
        ((scipy.sparse.eye(2, format="csr"), np.zeros(2)), r"csr_\w+, .* x\.toarray\(\)"),
        ((tf.sparse.eye(2), np.zeros(2)), r"SparseTensor, .* tf\.sparse\.to_dense"),
        ((tf.ragged.constant([[1], [2, 3]]), np.zeros(2)), r"RaggedTensor, .* x\.to_tensor"),
        (sparse_batches(), r"SparseTensor, .* tf\.sparse\.to_dense"),
        (((np.zeros((2, 2)), np.zeros(2)) for _ in range(3)), "Join .* Given: generator"),
        (Endless(*arrays()), "has no end"),
        (augmented(), "other examples each time .* augmentation"),
        (
            tf.data.Dataset.from_tensor_slices(arrays(30)).shuffle(30).batch(20, True),
            "drop_remainder",
        ),
        (tf.data.Dataset.from_tensor_slices(arrays()), r"data\.batch\(100\)"),
        (tf.data.Dataset.from_tensor_slices(arrays()).batch(2).repeat(), "has no end"),
        (tf.data.Dataset.from_tensor_slices(arrays()).batch(2).take(0), "no batches"),
        (tf.data.Dataset.from_tensor_slices(arrays()[0]).batch(2), r"batches \(x, y\)"),
    ],
)
def test_what_is_wrong_is_said(data, message):
    with pytest.raises(ValueError, match=message):
        labelled_data(data)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_many_classes_take_the_memory_of_their_labels(smoothing):
    """And not that of a matrix of all classes by all classes, 3 GiB."""
    labels = np.array([0, 19_999, 7])
    tracemalloc.start()
    found = Likelihood((), 20_000).distributions(labels, label_smoothing=smoothing)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * found.nbytes
    np.testing.assert_array_equal(found.argmax(axis=1), labels)
    np.testing.assert_allclose(found.sum(axis=1), 1)
