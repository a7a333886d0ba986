"""Options that are changed after `compile` act, and are checked as those of `__init__`."""

import functools

import keras
import numpy as np
import pytest
from gradient_norm_penalty import GradientNormPenalty
from marks import nightly
from small_models import assert_equal, images, sparse_loss, weights_of

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel

FISHER = {"alpha": 0.01, "beta": 20.0, "num_sub_batches": 3, "clip_norm": 2.0, "seed": 3}
FISHER |= {"gradient": "finite_difference", "share_gradients": False}
DEFAULTS = {FisherRegularizedModel: FISHER, SharpnessAwareModel: {"rho": 0.05}}
OTHER = {
    FisherRegularizedModel: {
        "alpha": 0.1,
        "beta": 60.0,
        "num_sub_batches": 2,
        "clip_norm": 0.01,
        "seed": 4,
        "gradient": "hessian_vector_product",
        "share_gradients": True,
    },
    SharpnessAwareModel: {"rho": 2.0, "adaptive": True},
    GradientNormPenalty: {"strength": 2.0, "step_length": 0.5},
}
CASES = [(kind, name) for kind, others in OTHER.items() for name in others]
# Numbers of a step, as alpha and rho are.
ALIKE = ("beta", "clip_norm", "seed", "strength")


def network():
    keras.utils.set_random_seed(7)
    layers = [keras.layers.Flatten(), keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((6, 6, 2)), *layers])


def made(kind, classifier, **options):
    options = DEFAULTS.get(kind, {}) | options
    model = kind(classifier, **options)
    model.compile(keras.optimizers.SGD(0.1), sparse_loss(), jit_compile=False)
    return model


class Sets(keras.callbacks.Callback):
    """Sets an attribute after the first batch."""

    def __init__(self, name, value):
        super().__init__()
        self.name, self.value = name, value

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:
            setattr(self.model, self.name, self.value)


@functools.cache
def trained_without_a_change(kind, batches):
    """The weights after so many batches."""
    x, y = images(24)
    model = made(kind, network())
    model.fit(x[: 12 * batches], y[: 12 * batches], batch_size=12, shuffle=False, verbose=0)
    return weights_of(model)


@pytest.mark.parametrize(
    ("kind", "name", "how"),
    [
        *((*case, "callback") for case in CASES if case[1] not in ALIKE),
        *(nightly(*case, "callback") for case in CASES if case[1] in ALIKE),
        (*CASES[-1], "between"),
        nightly(*CASES[1], "between"),
    ],
)
def test_a_changed_option_acts(kind, name, how):
    x, y = images(24)
    value = OTHER[kind][name]
    changed = made(kind, network())
    if how == "callback":
        callbacks = [Sets(name, value)]
        changed.fit(x, y, batch_size=12, shuffle=False, verbose=0, callbacks=callbacks)
    else:
        changed.train_on_batch(x[:12], y[:12])
        setattr(changed, name, value)
        changed.train_on_batch(x[12:], y[12:])
    expected = made(kind, network(), **{name: value})
    before = trained_without_a_change(kind, 1)
    for variable, weight in zip(expected.trainable_variables, before, strict=True):
        variable.assign(weight)
    expected.optimizer.iterations.assign(1)
    expected.train_on_batch(x[12:], y[12:])
    assert changed.get_config()[name] == value
    assert_equal(weights_of(changed), weights_of(expected))
    pairs = zip(trained_without_a_change(kind, 2), weights_of(changed), strict=True)
    assert any(np.any(a != b) for a, b in pairs)


def test_the_public_gradients_have_it_with_xla_too():
    x, y = images()
    for xla in (False, True):
        model = FisherRegularizedModel(network(), seed=1)
        model.compile("sgd", sparse_loss(), jit_compile=xla)
        before = model.regularized_gradients(x, y)[2]
        model.alpha = 2 * model.alpha
        after = model.regularized_gradients(x, y)[2]
        assert float(after) == pytest.approx(2 * float(before), rel=1e-2)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (FisherRegularizedModel, "beta", -1.0),
        (FisherRegularizedModel, "alpha", "small"),
        (FisherRegularizedModel, "num_sub_batches", 2.5),
        (FisherRegularizedModel, "gradient", "exact"),
        (SharpnessAwareModel, "rho", -0.1),
    ],
)
def test_a_bad_value_is_refused_and_not_kept(kind, name, value):
    model = made(kind, network())
    before = model.get_config()[name]
    with pytest.raises(ValueError, match=rf"{name}.* must be .*Given: .*{value!r}"):
        setattr(model, name, value)
    assert getattr(model, name) == before


def test_options_that_do_not_go_together_are_refused(set_policy):
    set_policy("mixed_bfloat16")
    model = made(FisherRegularizedModel, network(), gradient="hessian_vector_product")
    with pytest.raises(ValueError, match="bfloat16"):
        model.gradient = "finite_difference"
    assert model.gradient == "hessian_vector_product"


@pytest.mark.parametrize("value", [1, np.True_, 1.0])
def test_what_equals_a_choice_is_that_choice(value):
    """The code asks whether it is True itself."""
    model = FisherRegularizedModel(network(), share_gradients=value)
    assert model.share_gradients is True
    assert SharpnessAwareModel(network(), adaptive=value).rho == 0.5


def test_what_equals_no_choice_is_refused():
    with pytest.raises(ValueError, match=r"adaptive must be one of False, True\. Given: 'false'"):
        SharpnessAwareModel(network(), adaptive="false")
    with pytest.raises(ValueError, match=r"clip_norm.*must be a finite number.*Given: inf"):
        FisherRegularizedModel(network(), clip_norm=float("inf"))


def test_options_that_need_each_other_are_changed_by_a_new_model(set_policy):
    set_policy("mixed_bfloat16")
    model = made(FisherRegularizedModel, network(), step_length=0.1)
    with pytest.raises(ValueError, match="by a new model"):
        model.gradient = "hessian_vector_product"
