"""The Gram matrix of classifiers with several predictions an example, against obvious loops."""

import keras
import numpy as np
import pytest
import several_predictions as several
from keras import layers
from marks import nightly
from slow_jacobian import xi

from fisher_keras.classifier import Classifier
from fisher_keras.fisher import loss_gradient_gram
from fisher_keras.fisher.gram_function import GramFunction

STRUCTURED = ("dense", "tagger", "u_net", "labels")


@pytest.mark.parametrize(
    "name", [nightly(name) if name == "recurrent" else name for name in several.MODELS]
)
def test_gram_is_that_of_the_slow_jacobian(name, float64):
    model, x, y, weights = several.case(name)
    classifier = Classifier(model)
    in_chunks = loss_gradient_gram(classifier, x, y, chunk_size=2)
    if name in STRUCTURED:  # No example needs a pass of its own.
        assert not classifier.cached(GramFunction, False).fallback_weights
    j = several.jacobian(model, x, y, several.counted(x, y))
    np.testing.assert_allclose(xi(in_chunks), j @ j.T, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(xi(loss_gradient_gram(classifier, x, y)), j @ j.T, rtol=1e-9)
    for unit in ("example", "position"):
        found = loss_gradient_gram(classifier, x, y, sample_weight=weights, unit=unit)
        j = several.jacobian(model, x, y, several.counted(x, y, weights), unit)
        np.testing.assert_allclose(xi(found), j @ j.T, rtol=1e-9, atol=1e-10)
        assert found.counted.shape == (len(j), *y.shape[1:])


def test_labels_in_all_forms_and_where_nothing_counts(float64):
    model, x, y, weights = several.case("dense")
    expected = loss_gradient_gram(model, x, y, sample_weight=weights)
    odd = np.where(weights, y, -1)
    for form in (y[..., np.newaxis], np.eye(several.CLASSES)[y], odd):
        found = loss_gradient_gram(model, x, form, sample_weight=weights[..., np.newaxis][..., 0])
        np.testing.assert_array_equal(xi(found), xi(expected))
    weights[1] = 0
    found = loss_gradient_gram(model, x, y, sample_weight=weights)
    assert found.log_scale[1] == -np.inf
    np.testing.assert_array_equal(found.matrix[1], np.eye(len(x))[1])


def test_normalized_logits_at_each_position(float64):
    model, x, y, weights = several.case("dense")
    head = keras.Sequential(
        [model, layers.Lambda(lambda z: z / (0.5 * keras.ops.norm(z, axis=-1, keepdims=True)))]
    )
    found = loss_gradient_gram(model, x, y, sample_weight=weights, normalize_logits=0.5)
    expected = loss_gradient_gram(head, x, y, True, sample_weight=weights)
    np.testing.assert_allclose(xi(found), xi(expected), rtol=1e-9)


def test_gradients_below_the_smallest_number():
    """Logits of two classes, (0, 1000 t) at position t: the last position hardly has a loss."""
    model = several.sequential((3, 1), layers.Dense(2, use_bias=False))
    model.set_weights([np.array([[0.0, 1000.0]])])
    x = np.array([[[1.0], [2.0], [3.0]]])
    gram = loss_gradient_gram(model, x, np.ones((1, 3), int))
    # The gradient is sqrt(2) times the sum of t e^(-1000 t).
    np.testing.assert_allclose(gram.log_scale, [np.log(2) / 2 - 1000], rtol=1e-10)


def test_examples_that_a_mask_leaves_out():
    masked, plain, x, y, kept = several.masked_examples()
    found, expected = loss_gradient_gram(masked, x, y), loss_gradient_gram(plain, x, y)
    np.testing.assert_allclose(found.log_scale[kept], expected.log_scale[kept], rtol=1e-6)
    assert np.isneginf(found.log_scale[~kept]).all()


BINARY = keras.losses.BinaryCrossentropy(from_logits=True)


@pytest.mark.parametrize(
    ("head", "loss", "options", "bernoulli"),
    [
        ("sigmoid", None, {}, True),
        ("sigmoid", "binary_crossentropy", {}, True),
        ("sigmoid", "categorical_crossentropy", {}, "sigmoid of 3 outputs"),
        ("sigmoid", None, {"likelihood": "categorical"}, "sigmoid of 3 outputs"),
        (None, None, {}, False),
        (None, BINARY, {}, True),
        (None, BINARY, {"likelihood": "categorical"}, False),
        (None, None, {"likelihood": "bernoulli"}, True),
        ("softmax", None, {"likelihood": "bernoulli"}, "softmax of 3 outputs"),
        ("softplus", None, {"likelihood": "bernoulli"}, "Pass from_logits"),
        ("sigmoid", None, {"normalize_logits": 1.0}, "Pass normalize_logits=None"),
    ],
)
def test_labels_are_told_from_classes(head, loss, options, bernoulli):
    model = several.sequential((4,), layers.Dense(3, head))
    if loss is not None:
        model.compile("sgd", loss)
    classifier, x = Classifier(model, **options), np.ones((2, 4))
    if isinstance(bernoulli, str):
        with pytest.raises(ValueError, match=bernoulli):
            classifier.logits(x)
    else:
        assert classifier.logits(x).shape == ((2, 3, 2) if bernoulli else (2, 3))


def test_several_labels_of_outputs_that_are_taken_for_classes():
    model = several.sequential((4,), layers.Dense(3))
    with pytest.raises(ValueError, match=r"label \[1 1 0\] .* likelihood='bernoulli'"):
        loss_gradient_gram(model, np.ones((2, 4)), np.array([[1, 1, 0], [0, 0, 1]]))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("dense", {"y": np.zeros((4, 6))}, r"shape \(N, 5\), .* Given: shape \(4, 6\)"),
        ("dense", {"y": np.full((4, 5), 3)}, r"label 3 for example 0 at position \(0,\)"),
        ("dense", {"y": np.full((4, 5, 3), 0.5)}, r"label \[0.5 0.5 0.5\] for example 0 at"),
        ("labels", {"y": np.zeros(4)}, "3 labels that are yes or no each, .* end it in a softmax"),
        ("labels", {"y": np.full((4, 3), 0.5)}, "classes 0..1 .* label 0.5"),
        ("dense", {"sample_weight": np.ones((4, 6))}, r"shape \(4, 5\), .* Given: \(4, 6\)"),
        ("dense", {"sample_weight": np.full((4, 5), 0.5)}, "Given: a weight of 0.5"),
        ("dense", {"sample_weight": np.zeros(4)}, r"examples out of x and y .*: shape \(4,\)"),
        (
            "dense",
            {"sample_weight": np.zeros(4), "unit": "position"},
            "examples out of x and y",
        ),
        ("dense", {"unit": "word"}, "unit must be one of .*position"),
        (
            "dense",
            {"unit": "position", "sample_weight": np.zeros((4, 5))},
            "No position of the data counts",
        ),
        ("dense", {"unit": "position", "training": True}, "for inference mode"),
    ],
)
def test_what_does_not_fit_is_refused(name, arguments, message):
    model, x, y, _ = several.case(name)
    with pytest.raises(ValueError, match=message):
        loss_gradient_gram(model, x, **{"y": y, **arguments})
