import json
import os
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from fisher_keras import FisherRegularizedModel
from fisher_keras.models import build_model

RHO = 0.3
L2 = 0.01


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch):
    # In front of the path of spawned processes, too.
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parents[1] / "benchmarks"))


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    return rng.normal(size=(6, 3)).astype("float32"), np.array([0, 1, 1, 2, 0, 2])


def dense_model(*middle):
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((3,)),
            *middle,
            keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(L2)),
        ]
    )


def compiled(model, learning_rate=1.0):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(learning_rate), loss)
    return model


def softmax_gradient(kernel, bias, x, y):
    """The gradient of softmax regression with an L2 penalty, in closed form, float64."""
    scores = np.exp(x @ kernel + bias)
    error = (scores / scores.sum(axis=1, keepdims=True) - np.eye(3)[y]) / len(x)
    return x.T @ error + 2 * L2 * kernel, error.sum(axis=0)


@pytest.mark.parametrize("eager", [False, True])
def test_a_sam_step_applies_the_gradient_at_the_perturbed_weights(batch, eager):
    from comparison import SharpnessAwareModel

    x, y = batch
    model = compiled(SharpnessAwareModel(dense_model(), rho=RHO), learning_rate=0.5)
    model.run_eagerly = eager
    kernel, bias = (w.astype("float64") for w in model.model.get_weights())
    g_kernel, g_bias = softmax_gradient(kernel, bias, x.astype("float64"), y)
    norm = np.sqrt((g_kernel**2).sum() + (g_bias**2).sum())
    expected = softmax_gradient(
        kernel + RHO * g_kernel / norm, bias + RHO * g_bias / norm, x.astype("float64"), y
    )

    model.train_on_batch(x, y)

    for before, after, gradient in zip(
        (kernel, bias), model.model.get_weights(), expected, strict=True
    ):
        np.testing.assert_allclose((before - after) / 0.5, gradient, rtol=1e-4, atol=1e-6)


def test_a_sam_step_moves_the_statistics_as_a_plain_step_does(batch):
    from comparison import SharpnessAwareModel

    plain = compiled(dense_model(keras.layers.BatchNormalization()))
    sam = compiled(SharpnessAwareModel(dense_model(keras.layers.BatchNormalization()), rho=RHO))
    for model in (plain, sam):
        model.train_on_batch(*batch)

    for ours, theirs in zip(
        sam.non_trainable_variables, plain.non_trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_the_unrolled_copies_do_the_regularized_step(batch):
    from comparison import UnrolledModel

    # Each example is a sub-batch, so that the random split does not matter.
    options = {"alpha": 0.1, "beta": 5.0, "num_sub_batches": 6, "clip_norm": 1.0}
    unrolled = compiled(UnrolledModel(dense_model(), **options))
    regularized = compiled(FisherRegularizedModel(dense_model(), **options))
    for model in (unrolled, regularized):
        model.train_on_batch(*batch)

    for ours, theirs in zip(
        unrolled.model.get_weights(), regularized.model.get_weights(), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_benchmark_prints_a_table_and_writes_json(tmp_path, monkeypatch, capsys):
    import measuring
    import step

    memory = {"plain": [30.0, 20.0], "finite_difference": [60.0, 30.0]}
    monkeypatch.setattr(measuring, "in_fresh_process", lambda _, variant, *rest: memory[variant])
    output = tmp_path / "step.json"
    settings = step.Settings(batch_size=4, num_sub_batches=2, steps=2, variants=tuple(memory))
    step.run(["cnn"], settings, output)

    printed = capsys.readouterr().out
    assert "## cnn" in printed
    assert "allocator settings:" in printed
    report = json.loads(output.read_text())
    assert report["versions"]["tensorflow"] == tf.__version__
    results = report["results"]["cnn"]
    assert list(results) == list(memory)
    for variant, figures in results.items():
        assert f"| {variant} " in printed
        assert len(figures["step_times_s"]) == 2
        for name in ("step_s", "trace_s", "first_call_s"):
            assert figures[name] > 0
            assert figures[f"{name}_ratio"] > 0
    assert results["plain"]["step_s_ratio"] == 1
    assert results["finite_difference"]["peak_mib_ratio"] == 2
    assert results["finite_difference"]["warm_peak_mib_ratio"] == 1.5


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux' /proc")
def test_memory_by_sub_batches_and_chunks(monkeypatch, capsys):
    import gram
    import measuring
    import memory

    peaks = iter([[30.0, 20.0], [60.0, 30.0], 40.0, 50.0, 44.0])
    monkeypatch.setattr(measuring, "in_fresh_process", lambda *_: next(peaks))
    settings = memory.Settings(8, (4,), "cnn", "cnn", 6, (6, 3))
    steps, chunks = memory.measure_steps(settings), memory.measure_gram(settings)
    assert list(steps) == ["plain", "M = 4"]
    assert "| M = 4 | 60 | 2.00 | 30 | 1.50 |" in " ".join(memory.steps_table(steps).split())
    assert chunks["chunk_size = 3"] == {"peak_mib": 44.0, "peak_mib_above": 4.0}
    monkeypatch.setattr(gram, "NETWORKS", {"cnn": gram.Network("cnn", width=0.1)})
    assert np.isfinite(memory._gram_memory(settings, 3))  # In this process, beside other models.


def test_steps_with_and_without_xla(monkeypatch):
    import step
    import xla

    found = []
    monkeypatch.setattr(step, "compiled", lambda variant, *rest: (variant, rest[-1]))
    monkeypatch.setattr(step, "one_step", lambda model, _: found.append(model))
    results = xla.measure("cnn", step.Settings(4, 2, 2, ("plain", "finite_difference, shared")))
    assert found.count(("plain", True)) == found.count(("plain", False)) == 1 + 2
    for variant, figures in results.items():
        assert len(figures["xla_step_times_s"]) == 2
        assert f"| {variant} " in xla.table(results)


def test_steps_on_two_devices_and_in_two_processes(monkeypatch):
    import scaling

    steps = []

    class Place:
        def __init__(self, name, processes, *_):
            self.name = name, processes

        def step(self, variant):
            steps.append((*self.name, variant))

        def end(self):
            steps.append(self.name)

    monkeypatch.setattr(scaling, "Place", Place)
    results = scaling.measure("cnn", scaling.Settings(batch_size=4, num_sub_batches=2, steps=3))
    for place in (("one", 1), ("devices", 1), ("processes", 2)):
        assert steps.count((*place, "finite_difference")) == 2 + 3
        assert steps.count(place) == 1
    assert results["plain, one device"]["step_s_ratio"] == 1
    assert "| finite_difference, two processes " in scaling.table(results)


def test_growth_is_measured_and_its_formula_found(monkeypatch):
    import growth
    import measuring

    asked = []

    def point(function, name, value, settings):
        asked.append(value)
        return value, [0.5 * value + 2 * value**2] * 3, 100 + 3 * value

    monkeypatch.setattr(measuring, "in_fresh_process", point)
    results = growth.measure("N'", growth.Settings(num_samples=(50, 100, 800)))
    assert asked == [50, 100, 800]
    for value in asked:
        figures = results[str(value)]
        assert figures["time_s"] == 0.5 * value + 2 * value**2
        for measured, model in (("time_s", "time_model_s"), ("peak_mib", "peak_model_mib")):
            assert figures[model] == pytest.approx(figures[measured])
    assert "| 100 | 20050.000 | 1.00 | 400 | 1.00 |" in " ".join(growth.table(results).split())
    above, below = growth.figure({"N'": results}).axes
    assert above.lines[1].get_ydata()[2] == 0.5 * 800 + 2 * 800**2
    assert below.lines[1].get_ydata()[0] == 250


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux' /proc")
def test_a_point_of_growth(monkeypatch):
    import gram
    import growth

    monkeypatch.setattr(gram, "NETWORKS", {})
    weights, times, peak = growth._point("W", 1, growth.Settings(rounds=1))
    assert weights == 77_850
    assert len(times) == 1
    assert times[0] > 0
    assert peak > 0


@pytest.mark.nightly
def test_the_peak_memory_is_that_of_a_fresh_process():
    import measuring
    import step

    settings = step.Settings(batch_size=64, num_sub_batches=2, steps=1, variants=("plain",))
    peak, warm_peak = measuring.in_fresh_process(step.peak_memory, "plain", "cnn", settings)

    # The first two convolutions keep 64 channels of 32x32 floats for each of the 64 images.
    assert 2 * 64 * 64 * 32 * 32 * 4 / 2**20 < warm_peak <= peak < 2000


def explicit_log_determinant(model, images, labels):
    """From one gradient after the other."""
    rows = []
    for image, label in zip(images, labels, strict=True):
        with tf.GradientTape() as tape:
            loss = -tf.nn.log_softmax(model(image[None], training=False))[0, label]
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        rows.append(np.concatenate([np.ravel(g) for g in gradients]))
    jacobian = np.stack(rows).astype("float64")
    return np.linalg.slogdet(jacobian @ jacobian.T)[1]


def test_all_ways_to_the_log_determinant_agree():
    import gram

    keras.utils.set_random_seed(0)
    model = build_model("cnn", 10, width=0.1)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")
    labels = np.arange(4, dtype="int32")
    expected = explicit_log_determinant(model, images, labels)
    for variant in ("Gram matrix", "vectorized_map"):
        action = gram.VARIANTS[variant](model, images, labels)
        assert action() == pytest.approx(expected, abs=1e-3)


def test_the_gram_benchmark_prints_tables_and_writes_json(tmp_path, monkeypatch, capsys):
    import gram
    import measuring

    memory = {"batch gradient": 30.0, "Gram matrix": 60.0, "vectorized_map": 90.0}
    monkeypatch.setattr(measuring, "in_fresh_process", lambda _, variant, *rest: memory[variant])
    monkeypatch.setattr(gram, "NETWORKS", {"cnn": gram.Network("cnn", width=0.1)})
    gram.NETWORKS["large"] = gram.Network("cnn", width=0.2, only_memory=True)
    output = tmp_path / "gram.json"
    gram.run(["cnn", "large"], gram.Settings(num_samples=3, rounds=2), output)

    printed = capsys.readouterr().out
    assert printed.startswith("N' = 3, 2 rounds\n")
    results = json.loads(output.read_text())["results"]
    assert list(results["cnn"]) == list(memory)
    for variant, figures in results["cnn"].items():
        assert f"| {variant} " in printed
        assert len(figures["times_s"]) == 2
        assert figures["time_s_ratio"] > 0
        assert figures["peak_mib_above"] == memory[variant] - 30
    assert list(results["large"]) == ["batch gradient", "Gram matrix"]
    assert "time_s" not in results["large"]["Gram matrix"]
    assert printed.count("+30") == 2


def test_a_report_beside_its_gram_matrices(monkeypatch):
    import gram
    import report

    monkeypatch.setattr(gram, "NETWORKS", {"cnn": gram.Network("cnn", width=0.1)})
    settings = report.Settings(num_samples=3, num_trials=2, num_images=9, rounds=2)
    results = report.measure("cnn", settings)
    assert results["Gram matrices"]["time_s_ratio"] == 1
    assert len(results["report"]["times_s"]) == 2
    assert "| report " in report.table(results)


def test_pytorchs_network_is_the_same():
    torch = pytest.importorskip("torch")
    import torch_resnet

    keras.utils.set_random_seed(0)
    model = build_model("resnet", 10)
    random = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(variable.numpy() * random.uniform(0.5, 1.5, variable.shape))
    network = torch_resnet.ResNet20().eval()
    modules = [m for m in network.modules() if list(m.parameters(recurse=False))]
    layers = [layer for layer in model.layers if layer.weights]
    for module, layer in zip(modules, layers, strict=True):
        state = [values for values in module.state_dict().values() if values.ndim]
        for values, weight in zip(state, layer.get_weights(), strict=True):
            weight = weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight.T
            values.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
    images = random.normal(size=(5, 32, 32, 3)).astype("float32")
    with torch.no_grad():
        logits = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(logits, model(images, training=False), rtol=1e-3, atol=1e-4)
