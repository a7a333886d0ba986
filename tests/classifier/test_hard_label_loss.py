"""Telling logits from probabilities by their values."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fisher_keras.classifier.hard_label_loss import (
    HardLabelCrossEntropy,
    hard_label_cross_entropy,
)

LOGITS = HardLabelCrossEntropy("sparse", from_logits=True, equals_compiled_loss=True)
PROBABILITIES = HardLabelCrossEntropy("sparse", from_logits=False, equals_compiled_loss=True)


@pytest.mark.parametrize("dtype", [tf.float64, tf.float32, tf.float16, tf.bfloat16])
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_probabilities_are_told_from_logits(dtype, num_classes):
    logits = np.random.default_rng(0).normal(size=(16, num_classes), scale=3)
    logits = tf.constant(logits, dtype)
    probabilities = tf.nn.softmax(logits)
    LOGITS.check_outputs(logits)
    PROBABILITIES.check_outputs(probabilities)
    with pytest.raises(tf.errors.InvalidArgumentError, match="outputs are probabilities"):
        LOGITS.check_outputs(probabilities)
    with pytest.raises(tf.errors.InvalidArgumentError, match="are not probabilities"):
        PROBABILITIES.check_outputs(logits)


def test_logits_of_one_example_may_add_up_to_nearly_1():
    """A sub-batch may hold a single example; a long training meets all kinds of logits."""
    LOGITS.check_outputs(tf.constant([[0.3, 0.6, 0.101]]))


@pytest.mark.parametrize("loss", [LOGITS, PROBABILITIES])
def test_nan_is_another_error(loss):
    loss.check_outputs(tf.constant([[np.nan, 0.5], [0.5, 0.5]]))


@pytest.mark.parametrize(
    ("dtype", "equal"), [(None, True), ("float64", True), ("bfloat16", False)]
)
def test_a_coarse_loss_is_not_that_of_the_hard_labels(dtype, equal):
    """A loss may have a dtype of its own, which rounds what the hard-label loss does not."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=dtype)
    assert hard_label_cross_entropy(loss, model).equals_compiled_loss == equal
