"""Tests of the regularizer's hyper-parameters for each network and data set."""

import dataclasses
import inspect
import json
from importlib import resources

import pytest

from fisher_keras.models import (
    ARCHITECTURES,
    RegularizerSettings,
    regularizer_settings,
    write_regularizer_settings,
)
from fisher_keras.models.settings import SETTINGS_VARIABLE

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


@pytest.fixture
def own_table(tmp_path, monkeypatch):
    """A file in place of the package's table; it is not there yet."""
    path = tmp_path / "mine" / "settings.json"
    monkeypatch.setenv(SETTINGS_VARIABLE, str(path))
    return path


TUNED = RegularizerSettings(beta=40.0, num_sub_batches=16, clip_norm=None)


def test_tuned_settings_are_found_again_and_the_others_kept(own_table):
    package = settings_table()
    before = regularizer_settings("resnet", "cifar10")
    assert write_regularizer_settings("cnn", "digits", TUNED, {"trials": 3}) == own_table
    write_regularizer_settings("resnet", "cifar10", TUNED, {"trials": 12})
    assert regularizer_settings("cnn", "digits") == TUNED
    assert regularizer_settings("resnet", "cifar10") == TUNED != before
    table = json.loads(own_table.read_text())
    assert table["cifar10"].pop("resnet") == {
        "alpha": 1e-4,
        "beta": 40.0,
        "num_sub_batches": 16,
        "clip_norm": None,
        "tuned": True,
        "tuning": {"trials": 12},
    }
    del table["digits"], package["cifar10"]["resnet"]
    assert table == package
    assert "digits" not in settings_table()
    assert [path.name for path in own_table.parent.iterdir()] == ["settings.json"]


def test_an_entry_that_is_written_changes_its_line_alone(own_table):
    package = SETTINGS_FILE.read_text()
    write_regularizer_settings("densenet", "cifar100", TUNED, {})
    lines = zip(own_table.read_text().splitlines(), package.splitlines(), strict=True)
    ((now, before),) = [(now, before) for now, before in lines if now != before]
    assert now.startswith('    "densenet": {"alpha": 0.0001, "beta": 40.0, ')
    assert before.startswith('    "densenet": {"alpha": 0.0001, ')


@pytest.mark.parametrize("text", ["{", "[]", '{"cifar10": {"cnn": 3}}'])
def test_a_file_that_is_no_table_is_one_clear_error(own_table, text):
    own_table.parent.mkdir()
    own_table.write_text(text)
    with pytest.raises(ValueError, match="is no table of regularizer settings"):
        regularizer_settings("cnn", "cifar10")
    with pytest.raises(ValueError, match="is no table of regularizer settings"):
        write_regularizer_settings("cnn", "cifar10", TUNED, {})
    assert own_table.read_text() == text


def test_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match="Unknown architecture 'vgg': use one of cnn, resnet"):
        regularizer_settings("vgg", "cifar10")
    with pytest.raises(ValueError, match="Unknown architecture 'vgg': use one of cnn, resnet"):
        write_regularizer_settings("vgg", "cifar10", TUNED, {})


def test_defaults_are_the_regularizers():
    from fisher_keras.regularizer import FisherRegularizedModel

    parameters = inspect.signature(FisherRegularizedModel).parameters
    for name, default in dataclasses.asdict(RegularizerSettings()).items():
        assert parameters[name].default == default
