"""The layers of a report against the Jacobians of each layer in float64."""

import json
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from marks import each_value, nightly
from slow_jacobian import jacobian, shake, xi

from fisher_keras import evaluate_local_minimum, loss_gradient_gram
from fisher_keras.fisher.layer_weights import weights_by_layer
from fisher_keras.metrics import SingularGramWarning
from fisher_keras.metrics.trials import draw_sample

COUNT, SAMPLES, CLASSES = 30, 10, 3


class Block(layers.Layer):
    """Weights of its own beside those of two layers in it, which have one name."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")
        self.inner = [layers.Dense(shape[-1], "tanh", name="dense") for _ in range(2)]
        for layer in self.inner:
            layer.build(shape)

    def call(self, x):
        for layer in self.inner:
            x = layer(x)
        return x * self.scale


def images():
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, activation="tanh"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(2, activation="tanh"),
            layers.Flatten(),
            layers.Dense(CLASSES),
        ]
    )


def nested():
    inputs = keras.Input((5,))
    shared = layers.Dense(5, "tanh", name="shared")
    parts = []
    for _ in range(2):
        inner = keras.Input((5,))
        parts.append(keras.Model(inner, layers.Dense(5, "tanh", name="one")(shared(inner))))
    outputs = parts[1](parts[0](Block()(inputs)))
    return keras.Model(inputs, layers.Dense(CLASSES, name="one")(outputs))


def tokens():
    return keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(7, 5),
            layers.LayerNormalization(),
            layers.GlobalAveragePooling1D(),
            layers.Dense(CLASSES),
        ]
    )


NETWORKS = {"images": (images, (6, 6, 2)), "nested": (nested, (5,)), "tokens": (tokens, (4,))}


def network_and_data(name):
    make, shape = NETWORKS[name]
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x = random.normal(size=(COUNT, *shape)).astype("float32")
    if name == "tokens":
        x = random.integers(0, 7, (COUNT, *shape))
    return shake(make()), x, random.integers(0, CLASSES, COUNT)


def evaluate(model, x, y, **options):
    options = {"num_samples": SAMPLES, "num_trials": 2, "layers": True} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SingularGramWarning)
        return evaluate_local_minimum(model, (x, y), progress=False, **options)


def columns(model):
    """The columns of J that belong to each layer, by path."""
    sizes = [int(np.prod(v.shape)) for v in model.trainable_variables]
    ends = np.cumsum(sizes)
    parts = [np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return {
        name: np.concatenate([parts[index] for index in indices])
        for name, indices in weights_by_layer(model).items()
    }


@pytest.mark.parametrize(("name", "chunk_size"), each_value(list(NETWORKS), [None, 4]))
def test_each_layer_has_the_gram_matrix_of_its_jacobian(float64, name, chunk_size):
    model, x, y = network_and_data(name)
    report = evaluate(model, x, y, chunk_size=chunk_size)
    found = columns(model)
    assert [row.name for row in report.layers] == list(found)
    assert sum(row.num_parameters for row in report.layers) == report.num_parameters
    for trial in report.trials:
        rows = draw_sample(y, SAMPLES, 0, trial.index, stratified=False)
        J = jacobian(model, x[rows], y[rows])
        for path, where in found.items():
            own = J[:, where]
            trace, log_determinant = trial.layers[path]
            np.testing.assert_allclose(trace, np.sum(own**2) / SAMPLES, rtol=1e-10)
            if np.linalg.matrix_rank(own) < SAMPLES:
                assert log_determinant == -np.inf
            else:
                expected = np.linalg.slogdet(own @ own.T)[1]
                np.testing.assert_allclose(log_determinant, expected, atol=1e-6)
        total = sum(trace for trace, _ in trial.layers.values())
        np.testing.assert_allclose(total, trial.metrics["trace"], rtol=1e-12)
    weights = [v.numpy().ravel() for v in model.trainable_variables]
    for row, indices in zip(report.layers, weights_by_layer(model).values(), strict=True):
        norm = np.linalg.norm(np.concatenate([weights[i] for i in indices]))
        assert row.log_weight_norm == pytest.approx(np.log(norm), rel=1e-6)


def test_layers_of_the_same_name_are_told_apart():
    names = list(weights_by_layer(network_and_data("nested")[0]))
    assert names == ["block", "block/dense", "block/dense'", "shared", "one", "one'", "one''"]
    assert list(weights_by_layer(network_and_data("images")[0])) == [
        "conv2d",
        "batch_normalization",
        "depthwise_conv2d",
        "dense",
    ]


def test_a_layer_takes_the_products_that_its_own_cosines_need():
    """One layer has cosines near 1, which float32 cannot tell apart, and the others have not."""
    random = np.random.default_rng(0)
    x = (1 + 1e-4 * random.normal(size=(8, 4, 100))).astype("float32")
    inputs = keras.Input((4, 100))
    alike = layers.Dense(1, name="alike")(inputs)
    apart = layers.Dense(30, "tanh", name="apart")(layers.Rescaling(1e4, -1e4)(inputs))
    joined = layers.GlobalAveragePooling1D()(layers.Concatenate()([alike, apart]))
    model = shake(keras.Model(inputs, layers.Dense(2, name="last")(joined)))
    y = np.zeros(8, int)
    gram = loss_gradient_gram(model, x, y, by_layer=True)
    J = jacobian(model, x, y)
    for path, where in columns(model).items():
        values = np.linalg.eigvalsh(J[:, where] @ J[:, where].T)
        assert (values[0] < 1e-5 * values[-1]) == (path == "alike")
        np.testing.assert_allclose(np.linalg.eigvalsh(xi(gram.layers[path])), values, rtol=2e-2)


@pytest.mark.parametrize(
    "name", [name if name == "tokens" else nightly(name) for name in NETWORKS]
)
def test_the_layers_add_up_to_the_whole(name):
    model, x, y = network_and_data(name)
    gram = loss_gradient_gram(model, x[:SAMPLES], y[:SAMPLES], by_layer=True)
    alone = loss_gradient_gram(model, x[:SAMPLES], y[:SAMPLES])
    assert alone.layers is None
    np.testing.assert_allclose(xi(gram), sum(map(xi, gram.layers.values())), rtol=1e-12)
    np.testing.assert_allclose(xi(gram), xi(alone), atol=1e-6 * np.abs(xi(alone)).max())
    np.testing.assert_array_equal(gram.logits, alone.logits)


def test_in_training_mode_by_layer():
    model, x, y = network_and_data("images")
    gram = loss_gradient_gram(model, x[:4], y[:4], training=True, by_layer=True)
    J = jacobian(model, x[:4], y[:4], batches=[[0, 1, 2, 3]])
    for path, where in columns(model).items():
        own = J[:, where]
        np.testing.assert_allclose(xi(gram.layers[path]), own @ own.T, rtol=1e-3, atol=1e-5)


def test_frozen_layers_have_no_row():
    model, x, y = network_and_data("images")
    model.layers[0].trainable = False
    assert evaluate(model, x, y).layers[0].name == "batch_normalization"


def test_a_report_without_layers(tmp_path):
    model, x, y = network_and_data("images")
    path = tmp_path / "trials.jsonl"
    report = evaluate(model, x, y, layers=False, trials_path=path)
    with pytest.raises(ValueError, match=r"no layers: give .*layers=True"):
        _ = report.layers
    with pytest.raises(ValueError, match="layers was None, is True"):
        evaluate(model, x, y, trials_path=path)


def test_layers_come_back_from_the_file(tmp_path):
    model, x, y = network_and_data("images")
    path = tmp_path / "trials.jsonl"
    first = evaluate(model, x, y, metrics=["robustness"], trials_path=path)
    again = evaluate(model, x, y, metrics=["robustness"], trials_path=path)
    assert str(again.layers) == str(first.layers)
    record = json.loads(again.to_json())
    assert record["layer_weights"]["dense"] == list(first.layer_weights["dense"])


def test_the_table():
    model, x, y = network_and_data("images")
    table = evaluate(model, x, y).layers
    lines = str(table).splitlines()[1:]
    assert len(table) == len(lines) == 4
    for row, line in zip(table, lines, strict=True):
        assert line.split()[:3] == [row.name, str(row.num_parameters), f"{row.trace.mean:.5g}"]
    assert "-inf" in str(table)
    assert str(table[1:3]) == str([table[1], table[2]])


def test_two_networks_side_by_side(tmp_path):
    model, x, y = network_and_data("images")
    table = evaluate(model, x, y).layers
    other_report = evaluate(shake(images(), seed=1), x, y)
    text = table.beside(other_report.layers)
    row, other = table[0], other_report.layers[0]
    pairs = np.subtract(
        *(table.values[r.name][1] for table, r in ((other_report.layers, other), (table, row)))
    )
    error = np.std(pairs, ddof=1) / np.sqrt(2)
    assert f"{pairs.mean():.5g} ± {error:.2g}" in text.splitlines()[1]
    figure = table.plot(other_report.layers, labels=("one", "two"))
    lines = [axes.get_lines() for axes in figure.axes]
    np.testing.assert_allclose(lines[0][0].get_ydata(), [r.trace.mean for r in table])
    assert np.isnan(lines[1][0].get_ydata()[1])
    figure.savefig(tmp_path / "layers.png")
    with pytest.raises(ValueError, match=r"same samples .* seed was 1, is 0"):
        table.beside(evaluate(model, x, y, seed=1).layers)
    with pytest.raises(ValueError, match="same numbers of parameters"):
        table.plot(evaluate(*network_and_data("nested")).layers)


def test_low_rank_adapters_beside_frozen_layers():
    """Keras' adapters are float32, whatever the model is."""
    random = np.random.default_rng(0)
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, "tanh", name="adapted"), layers.Dense(CLASSES)]
    )
    model.layers[0].enable_lora(2)
    model.layers[1].trainable = False
    for variable in model.trainable_variables:
        variable.assign(random.normal(size=variable.shape))
    x, y = random.normal(size=(9, 6)).astype("float32"), random.integers(0, CLASSES, 9)
    J = jacobian(model, x, y)
    assert J.shape == (9, 8 + 6 * 2 + 2 * 8)
    gram = loss_gradient_gram(model, x, y, by_layer=True)
    np.testing.assert_allclose(xi(gram), J @ J.T, atol=1e-5 * np.abs(J @ J.T).max())
    assert list(gram.layers) == ["adapted"]
