"""Networks of a training that are not the package's own."""

import dataclasses
import importlib
import sys

import keras
import numpy as np
import pytest

from fisher_keras.experiments.comparisons import regularization
from fisher_keras.experiments.runs.experiment import execute_runs, preset_of
from fisher_keras.experiments.runs.run_options import ExperimentOptions
from fisher_keras.experiments.scenarios import pool
from fisher_keras.experiments.scenarios.runs import SCENARIOS, scenario_runs
from fisher_keras.experiments.training.arch import build_network, network_settings, recipe_of
from fisher_keras.experiments.training.config import TrainingConfig, resolve
from fisher_keras.experiments.training.run_files import RunFiles
from fisher_keras.experiments.training.train import train
from fisher_keras.models import RECIPES

NETWORKS = """
import keras


def linear(num_classes, image_shape):
    return keras.Sequential(
        [keras.Input(image_shape), keras.layers.Flatten(), keras.layers.Dense(num_classes)]
    )


def certain(num_classes, image_shape):
    return keras.Sequential([linear(num_classes, image_shape), keras.layers.Softmax()])


def wider(num_classes, image_shape):
    return linear(num_classes + 1, image_shape)


class Double(keras.layers.Layer):
    def call(self, x):
        return 2 * x


def unregistered(num_classes, image_shape):
    return keras.Sequential([linear(num_classes, image_shape), Double()])


def of_lambda(num_classes, image_shape):
    double = keras.layers.Lambda(lambda x: 2 * x)
    return keras.Sequential([linear(num_classes, image_shape), double])
"""


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """A module of a user in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"nets_{tmp_path.name}.py"
    path.write_text(NETWORKS)
    return path


def test_a_users_network_is_trained_by_the_resnets_recipe(networks):
    arch = f"{networks.stem}:linear"
    config = TrainingConfig(
        arch=arch, dataset="digits", train_size=40, epochs=1, batch_size=20, method="fisher"
    )
    assert recipe_of(arch) == RECIPES["resnet"]
    assert resolve(config).learning_rate == RECIPES["resnet"].learning_rate
    record = train(config, quiet=True)
    assert record["parameters"] == 16 * 16 * 10 + 10
    assert (networks.parent / "runs" / "digits_linear_fisher_seed0" / "last.keras").exists()


def test_keras_applications_give_logits():
    config = TrainingConfig(arch="keras.applications:MobileNetV2")
    network = build_network(config, 7, (32, 32, 3))
    outputs = network.predict(np.ones((1, 32, 32, 3)), verbose=0)
    assert outputs.shape == (1, 7)
    assert network.layers[-1].activation is keras.activations.linear


@pytest.mark.parametrize("name", ["certain", "wider"])
def test_what_gives_no_logits_of_the_classes_is_refused(networks, name):
    with pytest.raises(ValueError, match=r"must return .* that gives 10 logits"):
        build_network(TrainingConfig(arch=f"{networks.stem}:{name}"), 10, (8, 8, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "resnet18"}, "--arch must be one of cnn, .* or package.module:function"),
        ({"arch": "nets:linear", "depth": 8}, "--depth is not for --arch=nets:linear"),
    ],
)
def test_what_no_network_has_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**options)


def runs(experiment, **options):
    options = ExperimentOptions(preset="laptop", **options)
    return scenario_runs(experiment, preset_of(SCENARIOS[experiment], options))


def test_an_experiment_takes_other_data_and_another_network(networks):
    changes = {"dataset": "digits", "train_size": 300, "validation_size": 0}
    for run in runs("scenario_augmentation", arch=f"{networks.stem}:linear", **changes):
        training = TrainingConfig(**run.config["training"])
        assert (training.dataset, training.train_size, training.validation_size) == (
            *("digits", 300),
            0,
        )
        # Those of the preset's network are gone; the rest of the preset is as it was.
        assert (training.depth, training.width, training.epochs) == (None, None, 150)
    # The preset's own network keeps its size.
    (key,) = {run.key for run in runs("scenario_batch_size", arch="resnet")[:1]}
    assert key == runs("scenario_batch_size")[0].key


def test_the_code_of_a_users_network_defines_a_run(networks):
    def first_key():
        return runs("scenario_batch_size", arch=f"{networks.stem}:linear")[0].key

    before = first_key()
    assert first_key() == before
    networks.write_text(NETWORKS.replace("Flatten()", "GlobalAveragePooling2D()"))
    importlib.invalidate_caches()
    del sys.modules[networks.stem]
    assert first_key() != before


def test_the_code_that_a_users_network_imports_defines_a_run(networks):
    helper = networks.with_name(f"of_{networks.name}")
    networks.write_text(f"from {helper.stem} import WIDTH\n{NETWORKS}")
    found = []
    for width in (8, 8, 9):
        helper.write_text(f"WIDTH = {width}\n")
        for path in (networks, helper):
            sys.modules.pop(path.stem, None)
        importlib.invalidate_caches()
        found.append(network_settings(f"{networks.stem}:linear"))
    assert found[0] == found[1] != found[2]


def test_a_training_is_not_resumed_with_other_code_of_its_network(networks):
    config = resolve(TrainingConfig(arch=f"{networks.stem}:linear", dataset="digits", resume=True))
    files = RunFiles(config.output_dir)
    record = {"status": "running", "flags": dataclasses.asdict(config)}
    record |= {"network": {"source": "of before"}}
    files.directory.mkdir(parents=True)
    files.write_record(record)
    with pytest.raises(ValueError, match=r"cannot resume .*: the code of --arch=.*:linear is not"):
        train(config, quiet=True)


@pytest.mark.parametrize("name", ["unregistered", "of_lambda"])
def test_a_network_that_could_not_be_read_again_is_refused_before_any_run(networks, name):
    options = ExperimentOptions(preset="smoke", arch=f"{networks.stem}:{name}")
    preset = preset_of(SCENARIOS["scenario_confusion"], options)
    with pytest.raises(ValueError, match=f":{name}: Keras could not read .* from its file"):
        execute_runs(scenario_runs("scenario_confusion", preset), preset, options)


def test_a_table_is_of_the_network_and_the_data_that_are_asked_for():
    options = regularization.TableOptions(
        preset="smoke", dataset="digits", arch="keras.applications:MobileNetV2"
    )
    found = regularization.regularization_runs(regularization._preset(options))
    assert {(r.config["training"]["arch"], r.config["training"]["dataset"]) for r in found} == {
        ("keras.applications:MobileNetV2", "digits")
    }


def test_a_pool_of_another_network_varies_what_all_networks_have(networks, monkeypatch):
    found = []
    monkeypatch.setattr(pool, "execute_runs", lambda runs, *_: found.extend(runs))
    pool.run_pool(ExperimentOptions(preset="smoke", arch=f"{networks.stem}:linear"))
    assert len(found) == 6
    assert all({"width", "l2_penalty"}.isdisjoint(r.config["training"]) for r in found)


def test_too_few_images_are_refused_before_any_run(tmp_path):
    options = ExperimentOptions(preset="smoke", train_size=1390, output_dir=str(tmp_path / "out"))
    preset = preset_of(SCENARIOS["scenario_confusion"], options)
    with pytest.raises(ValueError, match="10 are neither trained on nor held out"):
        execute_runs(scenario_runs("scenario_confusion", preset), preset, options)
    assert not (tmp_path / "out").exists()
