"""Tests of the regularizer's hyper-parameters for each network and data set."""

import dataclasses
import json
from importlib import resources

import pytest

from fisher_keras.models import (
    ARCHITECTURES,
    RegularizerSettings,
    regularizer_settings,
    write_regularizer_settings,
)

SETTINGS_FILE = resources.files("fisher_keras.models") / "regularizer_settings.json"


def settings_table():
    return json.loads(SETTINGS_FILE.read_text())


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_table_has_every_network_on_every_dataset(dataset, arch):
    entry = settings_table()[dataset][arch]
    settings = regularizer_settings(arch, dataset)
    assert dataclasses.asdict(settings).items() <= entry.items()
    assert settings.alpha == 1e-4  # Section 7.2: "We manually set alpha = 0.0001".
    assert entry["tuned"] in (True, False)
    assert ("tuning" in entry) == entry["tuned"]
    if not entry["tuned"]:
        assert settings == RegularizerSettings()


def test_table_has_nothing_else():
    assert set(settings_table()) == {"cifar10", "cifar100"}
    assert all(tuple(networks) == ARCHITECTURES for networks in settings_table().values())


def test_other_datasets_get_the_defaults():
    assert regularizer_settings("cnn", "digits") == RegularizerSettings()


TUNED = RegularizerSettings(beta=40.0, num_sub_batches=16, clip_norm=None)


def test_a_table_of_ones_own_has_the_tuned_rows_and_goes_before_the_packages(tmp_path):
    path = tmp_path / "mine" / "settings.json"
    before = SETTINGS_FILE.read_text()
    write_regularizer_settings(path, "cnn", "digits", TUNED, {"trials": 3})
    write_regularizer_settings(path, "resnet", "cifar10", TUNED, {"trials": 12})
    assert regularizer_settings("cnn", "digits", path) == TUNED
    assert regularizer_settings("resnet", "cifar10", path) == TUNED
    for arch, dataset in (("resnet", "cifar10"), ("cnn", "digits")):
        assert regularizer_settings(arch, dataset) != TUNED
    assert regularizer_settings("cnn", "cifar10", path) == regularizer_settings("cnn", "cifar10")
    row = {"alpha": 1e-4, "beta": 40.0, "num_sub_batches": 16, "clip_norm": None, "tuned": True}
    assert json.loads(path.read_text()) == {
        "digits": {"cnn": {**row, "tuning": {"trials": 3}}},
        "cifar10": {"resnet": {**row, "tuning": {"trials": 12}}},
    }
    assert SETTINGS_FILE.read_text() == before
    assert [path.name for path in path.parent.iterdir()] == ["settings.json"]


def test_a_row_that_is_written_changes_its_line_alone(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(SETTINGS_FILE.read_text())
    write_regularizer_settings(path, "densenet", "cifar100", TUNED, {})
    lines = zip(path.read_text().splitlines(), SETTINGS_FILE.read_text().splitlines(), strict=True)
    ((now, before),) = [(now, before) for now, before in lines if now != before]
    assert now.startswith('    "densenet": {"alpha": 0.0001, "beta": 40.0, ')
    assert before.startswith('    "densenet": {"alpha": 0.0001, ')


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", ""),
        ("[]", ""),
        ('{"cifar10": {"cnn": 3}}', ""),
        ('{"cifar10": {"cnn": {"beta": 3}}}', "the row of cnn has no alpha"),
    ],
)
def test_a_file_that_is_no_table_is_one_clear_error(tmp_path, text, reason):
    path = tmp_path / "settings.json"
    path.write_text(text)
    message = f"is no table of regularizer settings: .*{reason}"
    with pytest.raises(ValueError, match=message):
        regularizer_settings("cnn", "cifar10", path)
    with pytest.raises(ValueError, match=message):
        write_regularizer_settings(path, "cnn", "cifar10", TUNED, {})
    assert path.read_text() == text


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        regularizer_settings("cnn", "cifar10", tmp_path / "none.json")


def test_unknown_architecture_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"arch must be one of 'cnn', 'resnet', .*Given: 'vgg'"):
        regularizer_settings("vgg", "cifar10")
    with pytest.raises(ValueError, match=r"arch must be one of 'cnn', 'resnet', .*Given: 'vgg'"):
        write_regularizer_settings(tmp_path / "settings.json", "vgg", "cifar10", TUNED, {})


def test_defaults_are_the_regularizers():
    import keras

    from fisher_keras.regularizer import FisherRegularizedModel

    model = FisherRegularizedModel(
        keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]),
    )
    for name, default in dataclasses.asdict(RegularizerSettings()).items():
        assert getattr(model, name) == default
