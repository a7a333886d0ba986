"""--method decides what trains a network."""

import dataclasses

import keras
import pytest
from tiny_network import TINY

from fisher_keras import FisherRegularizedModel, SharpnessAwareModel
from fisher_keras.experiments.runs.run_options import ExperimentOptions
from fisher_keras.experiments.runs.trained_run import training_settings
from fisher_keras.experiments.training.building import build_models
from fisher_keras.experiments.training.config import resolve
from fisher_keras.experiments.training.data import load_training_data
from fisher_keras.experiments.training.train import TrainingConfig, train
from fisher_keras.models import RegularizerSettings, write_regularizer_settings


def config(**changes):
    values = {"dataset": "digits", "width": 0.05, "train_size": 20, "batch_size": 10, "epochs": 2}
    return TrainingConfig(**(values | changes))


def trained_model(**changes):
    settings = resolve(config(**changes))
    return build_models(settings, load_training_data(settings))[1]


def test_what_trains():
    tau = RegularizerSettings().clip_norm
    plain, clipped, fisher, sam = (
        trained_model(method=method) for method in ("plain", "clipped", "fisher", "sam")
    )
    assert not isinstance(plain, (FisherRegularizedModel, SharpnessAwareModel))
    assert plain.optimizer.global_clipnorm is None
    assert clipped.optimizer.global_clipnorm == tau
    assert isinstance(fisher, FisherRegularizedModel)
    assert (sam.rho, sam.adaptive) == (0.05, False)
    assert trained_model(method="sam", adaptive=True).rho == 0.5
    assert trained_model(method="sam", clip_norm=2.0).optimizer.global_clipnorm == 2.0


def test_names_for_what_there_was_define_the_same_runs():
    def definition(**changes):
        return training_settings(config(**changes))

    tau = RegularizerSettings().clip_norm
    assert definition(method="plain") == definition()
    assert definition(method="fisher") == definition(regularize=True)
    assert definition(method="clipped") == definition(clip_norm=tau)
    assert not {"method", "rho", "adaptive"} & definition().keys()
    sam = definition(method="sam")
    assert sam == {**definition(), "method": "sam", "rho": 0.05}
    assert definition(method="sam", adaptive=True) == {**sam, "rho": 0.5, "adaptive": True}


def test_a_table_of_settings_decides_how_the_baseline_is_clipped(tmp_path):
    path = str(tmp_path / "settings.json")
    write_regularizer_settings(path, "cnn", "digits", RegularizerSettings(clip_norm=3.0), {})
    settings = resolve(config(method="clipped", settings_file=path))
    assert settings == resolve(config(clip_norm=3.0))
    write_regularizer_settings(path, "cnn", "digits", RegularizerSettings(clip_norm=None), {})
    with pytest.raises(ValueError, match="no clip_norm for cnn: give --clip_norm"):
        resolve(config(method="clipped", settings_file=path))


def test_the_regularizers_options_are_recorded_if_they_are_given():
    fisher = training_settings(config(method="fisher"))
    given = {"step_length": 0.1, "direction": "ascent", "interval": 4}
    assert training_settings(config(method="fisher", **given)) == {**fisher, **given}
    relative = training_settings(config(method="fisher", strength=0.25))
    del fisher["beta"]
    assert relative == {**fisher, "strength": 0.25}
    model = trained_model(method="fisher", strength=0.25, **given)
    assert {name: getattr(model, name) for name in given} == given
    assert (model.beta, model.strength) == (None, 0.25)
    phases = trained_model(method="fisher", strength=0.25, beta_phases="0,1,1")
    assert phases.strength.values == [0.0, 0.25, 0.25]
    assert trained_model(method="sam", sub_batches=2).sub_batches == 2


def test_gradients_are_shared_where_that_is_the_same_step():
    """By default; a run of an experiment keeps the key that it has always had."""
    assert trained_model(method="fisher").share_gradients == "auto"
    for given in (False, True):
        assert trained_model(method="fisher", share_gradients=given).share_gradients is given
        settings = training_settings(config(method="fisher", share_gradients=given))
        assert settings["share_gradients"] is given
    assert training_settings(config(method="fisher"))["share_gradients"] is False


def test_ghost_batch_normalization_is_the_regularizers_step_without_it(tmp_path):
    ghost = config(method="ghost", num_sub_batches=2, output_dir=str(tmp_path))
    settings = training_settings(ghost)
    assert settings == {
        **training_settings(config(method="clipped")),
        "method": "ghost",
        "num_sub_batches": 2,
    }
    model = trained_model(method="ghost", num_sub_batches=2)
    assert (model.beta, model.share_gradients, model.num_sub_batches) == (0.0, True, 2)
    assert model.clip_norm == RegularizerSettings().clip_norm
    assert model.optimizer.global_clipnorm is None
    record = train(ghost, quiet=True)
    assert record["flags"]["method"] == "ghost"
    assert record["history"]["loss"][1] < record["history"]["loss"][0]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        *(({"method": name}, name) for name in ("plain", "clipped", "fisher", "sam")),
        ({}, "plain"),
        ({"clip_norm": 0.0}, "plain"),
        ({"clip_norm": 1.0}, "clipped"),
        ({"clip_norm": 1.0, "regularize": True}, "fisher"),
    ],
)
def test_a_method_has_a_folder_of_its_own(changes, name):
    assert resolve(config(**changes)).output_dir == f"runs/digits_cnn_{name}_seed0"


@pytest.mark.parametrize(
    ("dataset", "arch", "folder"),
    [
        ("tfds:imagenette/160px-v2", "resnet", "tfds_imagenette_160px-v2_resnet"),
        ("tfds:mnist:3.0.1", "a.b:net", "tfds_mnist_3.0.1_net"),
        ("folder", "keras.applications:ResNet50", "folder_ResNet50"),
    ],
)
def test_folders_have_names_that_any_system_takes(dataset, arch, folder):
    names = {"dataset": dataset, "arch": arch}
    assert resolve(config(**names, width=None)).output_dir == f"runs/{folder}_plain_seed0"
    assert ExperimentOptions(**names).protocol == f"laptop_{folder}"


def test_clipping_only_clips(tmp_path):
    """With a bound that no gradient reaches it is plain training; with another it is not."""
    plain, unreached, reached = (
        train(config(**TINY, output_dir=str(tmp_path / str(norm)), clip_norm=norm), quiet=True)
        for norm in (None, 1e6, 1e-6)
    )
    losses = plain["history"]["loss"]
    assert unreached["history"]["loss"] == pytest.approx(losses, rel=1e-4)
    assert reached["history"]["loss"] != pytest.approx(losses, rel=1e-4)


def test_sam_trains_is_recorded_and_resumed(tmp_path):
    settings = config(method="sam", rho=0.1, output_dir=str(tmp_path), **TINY)
    record = train(settings, quiet=True)
    assert all(value > 0 for value in record["history"]["sharpness"])
    assert record["flags"]["method"] == "sam"
    last = keras.saving.load_model(tmp_path / "last.keras")
    assert not isinstance(last, SharpnessAwareModel)
    assert train(dataclasses.replace(settings, resume=True), quiet=True) == record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "sgd"}, "--method must be one of plain, clipped, ghost, fisher, sam"),
        ({"sub_batches": 2}, "--sub_batches has no effect without --method=sam"),
        ({"interval": 2}, "--interval has no effect without --regularize"),
        ({"method": "ghost", "beta": 2.0}, "--beta is not for --method=ghost: leave it out"),
        ({"method": "fisher", "beta": 2.0, "strength": 1.0}, "--beta and --strength say the same"),
        (
            {"method": "fisher", "gradient": "hessian_vector_product", "step_length": 0.1},
            "--step_length and --direction are not for",
        ),
        ({"rho": 0.1}, "--rho has no effect without --method=sam"),
        ({"method": "fisher", "adaptive": True}, "--adaptive has no effect without --method=sam"),
        ({"method": "sam", "rho": 0.0}, "--rho must be"),
        ({"method": "sam", "beta": 1.0}, "--beta is not for --method=sam: leave it out"),
        ({"clip_norm": 1.0, "beta": 1.0}, "--beta has no effect without --regularize: add it"),
        ({"method": "sam", "regularize": True}, "--method=sam has no regularizer"),
        ({"method": "plain", "regularize": True}, "--method=plain has no regularizer"),
        ({"method": "plain", "clip_norm": 1.0}, "give --method=clipped"),
        ({"method": "clipped", "clip_norm": 0.0}, "give --method=plain"),
    ],
)
def test_what_does_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
