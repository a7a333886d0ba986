"""Traced functions that are kept as long as their model."""

import concurrent.futures
import gc
import weakref

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier.model_functions import for_batches, function_of
from fisher_keras.metrics import evaluate_local_minimum, robustness


def classifier():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def make_object(model):
    return object()


def test_a_function_is_made_once_for_a_model_and_its_options():
    made = []

    def make(model, *options):
        made.append((model.name, *options))
        return object()

    first, second = classifier(), classifier()
    assert function_of(first, make, "auto") is function_of(first, make, "auto")
    assert function_of(first, make, True) is not function_of(first, make, "auto")
    assert function_of(second, make, "auto") is not function_of(first, make, "auto")
    assert made == [(first.name, "auto"), (first.name, True), (second.name, "auto")]


def test_each_thread_has_its_own_functions():
    model = classifier()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        there = pool.submit(function_of, model, make_object).result()
        assert pool.submit(function_of, model, make_object).result() is there
    assert function_of(model, make_object) is not there


def test_functions_see_the_weights_of_the_moment():
    model, x = classifier(), np.ones((2, 4), "float32")
    before = robustness(model, x)
    model.layers[0].kernel.assign(np.zeros((4, 3)))
    assert before > 0
    assert robustness(model, x) == 0


def test_a_model_is_not_kept():
    model = classifier()
    data = np.random.default_rng(0).normal(size=(9, 4)).astype("float32"), np.arange(9) % 3
    evaluate_local_minimum(
        model, data, num_samples=4, num_trials=1, metrics=("trace", "robustness"), progress=False
    )
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_batches_of_any_size_are_traced_once():
    traces = []

    def total(x):
        traces.append(x)
        return tf.reduce_sum(x["a"]) + tf.cast(tf.shape(x["a"])[0], tf.float32)

    function = for_batches(total)
    for size in (3, 1, 8):
        assert function({"a": np.ones((size, 2), "float32")}) == 3 * size
    assert len(traces) == 1
