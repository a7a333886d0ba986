"""All private parts of Keras and TensorFlow that the package relies on.

If a test here fails with a new version of Keras or TensorFlow, mend the function that it names
before looking at anything else.
"""

import ast
import contextlib
import inspect
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import fisher_keras
from fisher_keras.classifier import Classifier, stateless
from fisher_keras.graph import keras_private

PACKAGE = pathlib.Path(fisher_keras.__file__).parent
# Private attribute: the function of keras_private.py that uses it.
PRIVATE = {
    "_clip_gradients": "clipping",
    "_compile_metrics": "unbuilt_metrics",
    "_distributed_dataset": "batch_spec",
    "_flatten_layers": "all_layers",
    "_fn_kwargs": "loss_arguments",
    "_get_metrics_result_or_logs": "epoch_logs",
    "_get_own_losses": "penalties_of_call",
    "_get_own_metrics": "metrics_made_by",
    "_iterations": "num_updates",
    "_keras_history": "output_layer",
    "_keras_mask": "mask_of",
    "_maybe_symbolic_build": "build_from",
    "_metrics": "metrics_made_by",
    "_set_attr": "infer_no_more_shapes",
}
# Methods of Keras that are replaced for a while, by name; those that a class of ours overrides.
REPLACED = ("_all_reduce_sum_gradients", *keras_private._SYNC_POINTS)
OVERRIDDEN = {
    "_get_metrics_result_or_logs": ["self", "logs"],
    "_maybe_symbolic_build": ["self", "iterator", "data_batch"],
}


def private_attributes(path):
    """Private attributes of other objects than self and cls: name, function that uses it."""
    found = set()
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "os")
                if not own and not node.attr.startswith("__"):
                    found.add((node.attr, function.name))
    return found


def core_modules():
    return [p for p in PACKAGE.rglob("*.py") if "experiments" not in p.parts]


def test_private_attributes_are_used_in_one_module_alone():
    found = {p.relative_to(PACKAGE).as_posix(): private_attributes(p) for p in core_modules()}
    assert found.pop("graph/keras_private.py") == set(PRIVATE.items())
    assert not {path: names for path, names in found.items() if names}


def test_private_modules_are_not_imported():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not any(n.startswith(("keras.src", "tensorflow.python")) for n in names)


def test_optimizers_synchronize_where_we_know_of():
    """And nowhere else, so that without these each replica updates by itself."""
    optimizer = keras.optimizers.Optimizer
    (trainer,) = [c for c in optimizer.__mro__ if "_all_reduce_sum_gradients" in vars(c)]
    source = inspect.getsource(trainer)
    meeting = set(re.findall(r"def (\w+)\(self(?:(?!\n    def )[\s\S])*?merge_call", source))
    assert meeting == set(keras_private._SYNC_POINTS) - {
        "_overwrite_model_variables_with_average_value"
    }
    for name in keras_private._SYNC_POINTS:
        assert sum(name in vars(c) for c in optimizer.__mro__) == 2
    assert set(REPLACED) <= set(dir(optimizer))


def test_methods_of_keras_that_are_overridden():
    hooks = vars(keras_private.TrainerHooks)
    assert OVERRIDDEN.keys() == {
        name
        for name in hooks.keys() & set(dir(keras.Model))
        if name[1] != "_" and name.startswith("_")
    }
    for name, arguments in OVERRIDDEN.items():
        assert list(inspect.signature(getattr(keras.Model, name)).parameters) == arguments


def test_our_keras_classes_use_and_hide_no_private_name_of_keras():
    """`self._name` of a Keras model is ours, and Keras has none of that name."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    modules = [f"regularizer/{name}.py" for name in ("step", "fisher", "sam")]
    for module in ["classifier/wrapper.py", *modules]:
        own = {
            node.attr
            for node in ast.walk(ast.parse((PACKAGE / module).read_text()))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
            and node.attr.startswith("_")
        }
        assert not own & set(dir(model))


# --------------------------------------------------------------------------- all_layers, is_built


class Holder(keras.layers.Layer):
    """A layer that holds layers, one of them in a list."""

    def __init__(self):
        super().__init__()
        self.first = keras.layers.Dense(2)
        self.others = [keras.layers.Dense(3)]

    def call(self, inputs):
        return self.others[0](self.first(inputs))


def test_all_layers_finds_layers_at_any_depth():
    holder, norm = Holder(), keras.layers.BatchNormalization()
    inner = keras.Sequential([keras.Input((4,)), holder])
    model = keras.Sequential([inner, norm])
    found = {id(layer) for layer in keras_private.all_layers(model)}
    expected = [model, inner, holder, holder.first, *holder.others, norm]
    assert {id(layer) for layer in expected} <= found, "Layer._flatten_layers has changed"


class HalfBuilt(keras.Model):
    """Is `built` before its head is."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = keras.layers.Dense(4), keras.layers.Dense(3)

    def build(self, shape):
        self.hidden.build(shape)

    def call(self, inputs):
        return self.head(self.hidden(inputs))


@pytest.mark.parametrize(
    "scope", [contextlib.nullcontext, lambda: keras.StatelessScope(collect_losses=True)]
)
def test_penalties_of_a_call_are_those_that_layers_add(scope):
    """Of a layer in a model in a model; not those of weights, nor of the call before."""
    penalized = keras.layers.ActivityRegularization(l1=1.0)
    inner = keras.Sequential([keras.Input((2,)), penalized])
    model = keras.Sequential([inner, keras.layers.Dense(1, kernel_regularizer="l2")])
    model(np.ones((1, 2)))
    with scope():
        model(np.full((1, 2), 3.0))
        found = keras_private.penalties_of_call(model)
    assert [float(penalty) for penalty in found] == [6.0]


def test_building():
    model = HalfBuilt()
    assert not keras_private.is_built(model)
    model.build((None, 2))
    assert model.built
    assert not keras_private.is_built(model)
    Classifier(model).build(np.ones((7, 2), np.float32))
    assert keras_private.is_built(model)
    assert [tuple(v.shape) for v in model.trainable_variables] == [(2, 4), (4,), (4, 3), (3,)]


# ----------------------------------------------------------------------------------- output_layer


def test_output_layer_of_a_functional_model():
    inputs = keras.Input((4,))
    shared, head = keras.layers.Dense(4), keras.layers.Dense(3)
    head(keras.Input((4,)))  # It has an output elsewhere, too.
    output = head(shared(shared(inputs)))
    side = keras.layers.Dense(4)(inputs)
    message = "KerasTensor._keras_history has changed"
    assert keras_private.output_layer(keras.Model(inputs, output)) is head, message
    assert keras_private.output_layer(keras.Model(inputs, shared(side))) is shared, message
    addition = keras_private.output_layer(keras.Model(inputs, output + 1))
    assert not isinstance(addition, keras.Layer), message
    assert isinstance(addition, keras.Operation), message


# ------------------------------------------------------------------------------------------ seeds

RANDOM_LAYERS = {
    "Dropout": lambda: keras.layers.Dropout(0.5),
    "SpatialDropout1D": lambda: keras.layers.SpatialDropout1D(0.5),
    "GaussianNoise": lambda: keras.layers.GaussianNoise(1.0),
    "GaussianDropout": lambda: keras.layers.GaussianDropout(0.5),
    "AlphaDropout": lambda: keras.layers.AlphaDropout(0.5),
}


@pytest.mark.parametrize("layer", RANDOM_LAYERS.values(), ids=RANDOM_LAYERS)
def test_seed_states_are_all_that_random_layers_move(layer):
    model = keras.Sequential([keras.Input((3, 4)), layer(), keras.layers.Dense(2), layer()])
    before = [v.numpy() for v in model.non_trainable_variables]
    model(np.ones((5, 3, 4)), training=True)
    moved = [
        variable
        for variable, old in zip(model.non_trainable_variables, before, strict=True)
        if np.any(variable.numpy() != old)
    ]
    message = "seed generators no longer keep a variable named seed_generator_state"
    assert [v.path for v in keras_private.seed_states(model)] == [v.path for v in moved], message
    assert len(moved) == 2


@pytest.mark.parametrize(
    ("layer", "moves"),
    [
        (lambda: keras.layers.Dropout(0.5), True),
        (lambda: keras.layers.Lambda(lambda x: x + keras.random.normal([4])), True),
        (lambda: keras.layers.BatchNormalization(), False),
        (lambda: keras.layers.Dense(2), False),
    ],
)
def test_seeds_that_move_in_a_scope(layer, moves):
    model = keras.Sequential([keras.Input((3, 4)), layer()])
    with stateless.dropping_changes() as scope:
        model(np.ones((5, 3, 4)), training=True)
    message = "StatelessScope.state_mapping has changed"
    assert keras_private.moves_seeds(scope, model) == moves, message


def test_a_seed_state_is_a_seed_and_a_counter():
    generator = keras.random.SeedGenerator(1234)
    first = np.array(generator.next())
    np.testing.assert_array_equal(first, [1234, 0])
    np.testing.assert_array_equal(generator.state.numpy(), [1234, 1])
    assert "int" in keras.backend.standardize_dtype(generator.state.dtype)
    generator.state.assign(first)
    np.testing.assert_array_equal(np.array(generator.next()), first)


@pytest.mark.parametrize("layer", RANDOM_LAYERS.values(), ids=RANDOM_LAYERS)
def test_own_seeds_draw_other_numbers_again_and_again(layer):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((30, 4)), layer(), keras.layers.BatchNormalization()])
    weights = stateless.values(model.trainable_variables)
    state = stateless.values(model.non_trainable_variables)
    x = np.ones((5, 30, 4), np.float32)

    def drawn(index):
        own = keras_private.with_own_seeds(model, state, tf.constant(index))
        with stateless.scope(model, weights, own):
            return np.array(model(x, training=True))

    with stateless.scope(model, weights, state):
        unchanged = np.array(model(x, training=True))
    np.testing.assert_array_equal(drawn(0), unchanged)
    np.testing.assert_array_equal(drawn(3), drawn(3))
    assert len({drawn(index).tobytes() for index in range(6)}) == 6
    own = keras_private.with_own_seeds(model, state, tf.constant(3))
    names = [v.name for v in model.non_trainable_variables]
    changed = [n for n, a, b in zip(names, own, state, strict=True) if np.any(a != b)]
    assert set(changed) == {"seed_generator_state"}


# --------------------------------------------------------- public, but told by no documentation


def test_the_loss_tracker_is_the_first_metric_named_loss():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse", metrics=["mae"])
    x, y = np.ones((4, 2)), np.ones((4, 2))
    logs = model.evaluate(x, y, return_dict=True, verbose=0)
    tracker = next(metric for metric in model.metrics if metric.name == "loss")
    np.testing.assert_allclose(tracker.result(), logs["loss"])
    tracker.update_state(1e6)
    np.testing.assert_allclose(model.get_metrics_result()["loss"], tracker.result())


def test_an_optimizer_that_scales_no_loss_returns_it_itself():
    one = tf.ones(())
    assert keras.optimizers.SGD().scale_loss(one) is one
    scaling = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=64.0)
    scaling.build([])
    assert float(scaling.scale_loss(one)) == 64


def test_tensorflow_takes_dataclasses_apart():
    from fisher_keras.regularizer.step_types import LossAndGradient, SubBatchTerms

    terms = SubBatchTerms(LossAndGradient(tf.constant(1.0), [tf.constant(2.0), tf.constant(3.0)]))
    double = tf.function(lambda t: tf.nest.map_structure(lambda v: 2 * v, t), autograph=False)
    for result in (
        double(terms),
        tf.while_loop(lambda t: t.regularizer.loss < 2, lambda t: (double(t),), (terms,))[0],
        tf.function(lambda p: tf.cond(p, lambda: double(terms), lambda: terms))(tf.constant(True)),
    ):
        assert isinstance(result, SubBatchTerms)
        assert result.loss is None
        assert [float(v) for v in tf.nest.flatten(result)] == [2.0, 4.0, 6.0]
