"""Arguments of the two methods: those that they refuse, and those that they take."""

import json

import keras
import numpy as np
import pytest
from small_models import compiled, conv_net, images

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel

OUT_OF_RANGE = {
    FisherRegularizedModel: [
        *(("alpha", value) for value in (0.0, "small", float("nan"))),
        *(("beta", -1.0), ("beta", "big"), ("strength", -1.0), ("interval", 0)),
        *(("num_sub_batches", 0), ("num_sub_batches", 2.5), ("clip_norm", 0.0)),
        *(("gradient", "exact"), ("seed", "one"), ("seed", -1)),
        *(("step_length", 0.0), ("step_length", "far"), ("direction", "up")),
    ],
    SharpnessAwareModel: [
        *(("rho", value) for value in (-1.0, "far", float("nan"))),
        *(("sub_batches", 0), ("sub_batches", 1.5)),
    ],
}


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [(method, *pair) for method, pairs in OUT_OF_RANGE.items() for pair in pairs],
)
def test_arguments_out_of_range(method, name, value):
    with pytest.raises(ValueError, match=rf"{name}.* must be .*Given: .*{value!r}\."):
        method(conv_net(), **{name: value})


def test_numbers_of_numpy_are_numbers():
    arguments = {
        "alpha": np.float32(0.5),
        "beta": np.int64(3),
        "num_sub_batches": np.int32(4),
        "clip_norm": np.float64(2.0),
        "seed": np.uint8(7),
    }
    model = FisherRegularizedModel(conv_net(), **arguments)
    config = json.loads(json.dumps(model.get_config()))
    assert {name: config[name] for name in arguments} == {
        "alpha": 0.5,
        "beta": 3.0,
        "num_sub_batches": 4,
        "clip_norm": 2.0,
        "seed": 7,
    }


def test_not_a_classifier():
    with pytest.raises(ValueError, match="functional"):
        FisherRegularizedModel("resnet")
    inputs = keras.Input((3,))
    two = keras.Model(inputs, [keras.layers.Dense(2)(inputs), keras.layers.Dense(2)(inputs)])
    with pytest.raises(ValueError, match="one output"):
        FisherRegularizedModel(two)


def test_without_a_loss():
    model = FisherRegularizedModel(conv_net())
    with pytest.raises(ValueError, match="compile"):
        model.regularized_gradients(*images())


@pytest.mark.parametrize("method", OUT_OF_RANGE)
def test_nothing_to_train(method):
    network = conv_net()
    network.trainable = False
    with pytest.raises(ValueError, match="no trainable variables"):
        compiled(network, method=method).train_on_batch(*images())


@pytest.mark.parametrize("share_gradients", [False, True])
def test_loss_weights_weigh_the_loss(share_gradients):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(12, 4)).astype(np.float32), np.arange(12) % 3
    classifier = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = FisherRegularizedModel(classifier, beta=0.0, share_gradients=share_gradients, seed=0)
    gradients = []
    for loss_weights in (None, [2.0]):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, loss_weights=loss_weights)
        gradients.append(model.regularized_gradients(x, y)[0])
    for once, twice in zip(*gradients, strict=True):
        np.testing.assert_allclose(2 * once.numpy(), twice.numpy(), rtol=1e-5)
