import dataclasses
import importlib.metadata
import json
import os
import shutil
import subprocess

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
from marks import nightly
from tiny_network import TINY

from fisher_keras.datasets import load_dataset, subset
from fisher_keras.experiments.folder_lock import folder_lock
from fisher_keras.experiments.training import data as training_data
from fisher_keras.experiments.training import train as training
from fisher_keras.experiments.training.config import resolve
from fisher_keras.experiments.training.provenance import git_revision, provenance
from fisher_keras.experiments.training.train import TrainingConfig, TrainingDivergedError, train
from fisher_keras.models import (
    RegularizerSettings,
    regularizer_settings,
    write_regularizer_settings,
)
from fisher_keras.regularizer.fisher import FisherRegularizedModel

BIG_ENOUGH_TO_DIVERGE = 1e8


def tiny_config(output_dir, **changes):
    """A run of a second: a very narrow CNN on a few digits."""
    values = {
        "dataset": "digits",
        "width": 0.125,
        "train_size": 60,
        "epochs": 4,
        "batch_size": 20,
        "output_dir": str(output_dir),
    }
    return TrainingConfig(**(values | changes))


def weights(path):
    return keras.saving.load_model(path, compile=False).get_weights()


def assert_same_weights(path, other):
    for value, other_value in zip(weights(path), weights(other), strict=True):
        np.testing.assert_array_equal(value, other_value)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("plain") / "run"
    train(tiny_config(output_dir))
    return output_dir


def csv_rows(output_dir):
    lines = (output_dir / "history.csv").read_text().splitlines()
    names = lines[0].split(",")
    return [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]


def cross_entropy_and_error(logits, labels):
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wrong = logits.argmax(axis=1) != labels
    return -log_p[np.arange(len(labels)), labels].mean(), 100 * wrong.mean()


def calibration_error(logits, labels):
    """Bin by bin, how far the images' confidence is from their accuracy."""
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    total = 0.0
    for m in range(1, 16):
        inside = ((m - 1) / 15 < confidence) & (confidence <= m / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


# ---------------------------------------------------------------------------- what a run leaves


def test_the_record_says_what_made_the_run(plain_run):
    record = json.loads((plain_run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["flags"]["learning_rate"] == 0.01  # Appendix E
    assert record["flags"]["augmentation"] == "4-crop-f"
    assert record["flags"].keys() == {field.name for field in dataclasses.fields(TrainingConfig)}
    assert record["seed"] == 0
    assert record["versions"].keys() == {
        "python",
        "fisher_keras",
        "tensorflow",
        "keras",
        "numpy",
        "tensorflow_datasets",
    }
    assert "git_revision" in record
    assert record["device"]
    assert record["data"] == {
        "fingerprint": load_dataset("digits").fingerprint,
        "train_images": 60,
        "confusion_images": 0,
        "validation_images": 0,
        "test_images": 397,
    }
    assert record["resumed"] == []
    assert record["wall_time_s"] > sum(record["history"]["seconds"]) > 0
    assert len(record["history"]["val_loss"]) == 4


def test_final_numbers_are_those_of_the_saved_model_on_images_as_they_are(plain_run):
    record = json.loads((plain_run / "run.json").read_text())
    digits = load_dataset("digits")
    images, labels, _, _ = subset(digits.train_images, digits.train_labels, 60, seed=0)
    mean, std = images.mean(axis=(0, 1, 2)), images.std(axis=(0, 1, 2))
    model = keras.saving.load_model(plain_run / "last.keras", compile=False)
    penalty = float(sum(model.losses))
    for part, x, y in (
        ("train", images, labels),
        ("test", digits.test_images, digits.test_labels),
    ):
        logits = model.predict((x - mean) / std, verbose=0)
        loss, error = cross_entropy_and_error(logits, y)
        assert record[part]["cross_entropy"] == pytest.approx(loss, rel=1e-5)
        assert record[part]["loss"] == pytest.approx(loss + penalty, rel=1e-5)
        assert record[part]["error_percent"] == pytest.approx(error, abs=1e-3)
        expected = calibration_error(logits, y)
        assert record[part]["calibration_error"] == pytest.approx(expected, rel=1e-4)


def test_the_csv_has_each_epoch_once_with_the_recipes_learning_rate(plain_run):
    rows = csv_rows(plain_run)
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    # Divided by 10 at a half and at three quarters of the training (Appendix E).
    rates = [float(row["learning_rate"]) for row in rows]
    np.testing.assert_allclose(rates, [0.01, 0.01, 0.001, 0.0001], rtol=1e-6)
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= rows[0].keys()


def test_tensorboard_logs_are_written(plain_run):
    for part in ("train", "validation"):
        assert list((plain_run / "tensorboard" / part).glob("events.*"))


def test_a_label_smoothed_loss_is_recorded_beside_the_cross_entropy(tmp_path):
    record = train(tiny_config(tmp_path, label_smoothing=0.2, epochs=1))
    model = keras.saving.load_model(tmp_path / "last.keras", compile=False)
    digits = load_dataset("digits")
    images, _, _, _ = subset(digits.train_images, digits.train_labels, 60, seed=0)
    mean, std = images.mean(axis=(0, 1, 2)), images.std(axis=(0, 1, 2))
    logits = model.predict((digits.test_images - mean) / std, verbose=0)
    each_class = [
        cross_entropy_and_error(logits, np.full(len(logits), label))[0] for label in range(10)
    ]
    hard, _ = cross_entropy_and_error(logits, digits.test_labels)
    smoothed = 0.8 * hard + 0.2 * np.mean(each_class)
    assert record["test"]["cross_entropy"] == pytest.approx(hard, rel=1e-5)
    assert record["test"]["loss"] == pytest.approx(smoothed + float(sum(model.losses)), rel=1e-5)


def test_without_validation_images_the_test_images_do_not_choose_the_best(
    tmp_path, plain_run, monkeypatch
):
    digits = load_dataset("digits")
    other_labels = np.roll(digits.test_labels, 1)
    other_test = dataclasses.replace(digits, test_labels=other_labels)
    monkeypatch.setattr(training_data, "load_dataset", lambda *_: other_test)
    train(tiny_config(tmp_path))
    assert_same_weights(tmp_path / "best.keras", plain_run / "best.keras")


def test_validation_images_are_held_out_and_choose_the_best(tmp_path):
    sizes = {"train_size": None, "validation_size": 1300}
    record = train(tiny_config(tmp_path, **sizes, epochs=5, **TINY))
    assert record["data"]["train_images"] == 100
    assert record["data"]["validation_images"] == 1300
    digits = load_dataset("digits")
    images, _, held_out, held_out_labels = subset(
        digits.train_images, digits.train_labels, 100, seed=0
    )
    mean, std = images.mean(axis=(0, 1, 2)), images.std(axis=(0, 1, 2))
    best = keras.saving.load_model(tmp_path / "best.keras", compile=False)
    logits = best.predict((held_out - mean) / std, verbose=0)
    _, error = cross_entropy_and_error(logits, held_out_labels)
    errors = 100 * (1 - np.array(record["history"]["val_accuracy"]))
    assert error == pytest.approx(errors.min(), abs=1e-3)


def test_the_last_model_is_plain_and_beta_zero_trains_as_without_the_regularizer(
    tmp_path, plain_run
):
    record = train(tiny_config(tmp_path, regularize=True, beta=0.0, clip_norm=0.0))
    last = keras.saving.load_model(tmp_path / "last.keras")
    assert not isinstance(last, FisherRegularizedModel)
    assert_same_weights(tmp_path / "last.keras", plain_run / "last.keras")
    assert record["history"]["fisher_trace"] == [None] * 4  # No NaN in JSON.


def test_half_precision_trains_and_the_policy_is_put_back(tmp_path):
    before = keras.config.dtype_policy()
    record = train(
        tiny_config(
            tmp_path,
            epochs=1,
            regularize=True,
            gradient="hessian_vector_product",
            mixed_precision="mixed_bfloat16",
            **TINY,
        )
    )
    assert record["history"]["fisher_trace"][0] > 0
    assert keras.config.dtype_policy() == before


def test_cifar100(tmp_path):
    with tfds.testing.mock_data(num_examples=30):
        record = train(
            TrainingConfig(
                dataset="cifar100",
                download=False,
                width=0.0625,
                epochs=1,
                batch_size=15,
                regularize=True,
                output_dir=str(tmp_path),
            )
        )
    assert record["data"]["train_images"] == 30
    chosen = dataclasses.asdict(regularizer_settings("cnn", "cifar100"))
    assert chosen.items() <= record["flags"].items()
    assert keras.saving.load_model(tmp_path / "last.keras").output_shape == (None, 100)


def test_the_regularizers_values_come_from_the_table_that_is_given(tmp_path):
    path = tmp_path / "settings.json"
    tuned = RegularizerSettings(beta=40.0, num_sub_batches=4, clip_norm=None)
    write_regularizer_settings(path, "cnn", "digits", tuned, {})
    config = TrainingConfig(dataset="digits", regularize=True, settings_file=str(path), alpha=0.5)
    resolved = resolve(config)
    assert (resolved.beta, resolved.num_sub_batches, resolved.clip_norm) == (40.0, 4, 0.0)
    assert (resolved.alpha, resolved.settings_file) == (0.5, None)
    with pytest.raises(ValueError, match="--settings_file has no effect without --regularize"):
        TrainingConfig(settings_file=str(path))
    write_regularizer_settings(path, "cnn", "digits", RegularizerSettings(beta=-1.0), {})
    with pytest.raises(ValueError, match="--beta must be a number, 0 or greater"):
        resolve(config)


# ------------------------------------------------------------------------------------ resuming


class Killed(BaseException):
    """Stands for the end of the process."""


def killed(*_):
    raise Killed


@pytest.fixture(scope="module")
def validated_run(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("validated") / "run"
    train(tiny_config(output_dir, validation_size=40, **TINY))
    return output_dir


@pytest.mark.parametrize(
    ("module", "function", "once_there_is", "epochs_kept"),
    [
        (np, "savez", "draft", 0),
        nightly(os, "rename", "draft", 0),
        nightly(np, "savez", "epoch_1", 1),
        (os, "rename", "epoch_1", 1),
        (shutil, "rmtree", "epoch_2", 2),
    ],
)
def test_a_kill_while_the_backup_is_written_loses_nothing(
    tmp_path, validated_run, monkeypatch, module, function, once_there_is, epochs_kept
):
    original = getattr(module, function)

    def maybe_killed(*args, **kwargs):
        if (tmp_path / "backup" / once_there_is).exists():
            raise Killed
        return original(*args, **kwargs)

    config = tiny_config(tmp_path, validation_size=40, resume=True, **TINY)
    with monkeypatch.context() as patch:
        patch.setattr(module, function, maybe_killed)
        with pytest.raises(Killed):
            train(config)
    record = train(config)
    assert [entry["after_epochs"] for entry in record["resumed"]] == [epochs_kept]
    for name in ("last.keras", "best.keras"):
        assert_same_weights(tmp_path / name, validated_run / name)
    rows, expected = csv_rows(tmp_path), csv_rows(validated_run)
    for row in [*rows, *expected]:
        del row["seconds"]
    assert rows == expected


def test_a_run_killed_after_its_last_epoch_is_only_evaluated(tmp_path, plain_run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training, "_evaluate", killed)
        with pytest.raises(Killed):
            train(tiny_config(tmp_path))
    record = train(tiny_config(tmp_path, resume=True))
    straight = json.loads((plain_run / "run.json").read_text())
    assert record["test"] == straight["test"]
    assert record["train"] == straight["train"]


def test_a_finished_run_is_not_trained_again(plain_run, monkeypatch):
    monkeypatch.setattr(training_data, "load_dataset", killed)
    record = train(tiny_config(plain_run, resume=True))
    assert record == json.loads((plain_run / "run.json").read_text())


def test_a_finished_run_is_trained_further_with_its_last_learning_rate(tmp_path, plain_run):
    shutil.copytree(plain_run, tmp_path / "further")
    before = json.loads((plain_run / "run.json").read_text())
    epochs = before["flags"]["epochs"]
    record = train(tiny_config(tmp_path / "further", resume=True, epochs=epochs + 1))
    assert (record["status"], record["flags"]["epochs"]) == ("finished", epochs + 1)
    assert record["flags"]["schedule_epochs"] == epochs
    assert record["resumed"][-1]["after_epochs"] == epochs
    assert record["history"]["loss"][:-1] == before["history"]["loss"]
    rates = record["history"]["learning_rate"]
    assert rates[-1] == rates[-2]
    # With the same flags, it is finished. With fewer epochs, it is another run.
    assert train(tiny_config(tmp_path / "further", resume=True, epochs=epochs + 1)) == record
    with pytest.raises(ValueError, match=r"cannot resume .* with other flags: --epochs"):
        train(tiny_config(tmp_path / "further", resume=True))
    twice = train(tiny_config(tmp_path / "further", resume=True, epochs=epochs + 2))
    assert twice["flags"]["schedule_epochs"] == epochs
    assert twice["history"]["learning_rate"][-1] == rates[-1]


def test_a_finished_run_that_cannot_be_trained_further_stays_finished(tmp_path, plain_run):
    shutil.copytree(plain_run, tmp_path / "further")
    before = (plain_run / "run.json").read_bytes()
    epochs = json.loads(before)["flags"]["epochs"]
    config = tiny_config(tmp_path / "further", resume=True, epochs=epochs + 1)
    other = training_data.load_training_data(resolve(dataclasses.replace(config, train_size=30)))
    with pytest.raises(ValueError, match="other data"):
        train(config, data=other)
    shutil.rmtree(tmp_path / "further" / "backup")
    with pytest.raises(ValueError, match="backup is gone"):
        train(config)
    assert (tmp_path / "further" / "run.json").read_bytes() == before


# -------------------------------------------------------------------------------------- errors


def test_a_run_is_never_overwritten(plain_run):
    before = (plain_run / "run.json").read_bytes()
    with pytest.raises(ValueError, match="already holds a run"):
        train(tiny_config(plain_run))
    assert (plain_run / "run.json").read_bytes() == before


def test_two_trainings_do_not_write_into_one_directory(tmp_path):
    with folder_lock(tmp_path / "run"), pytest.raises(ValueError, match="is in use by process"):
        train(tiny_config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()  # Nothing was trained.


def test_a_directory_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(ValueError, match=r"holds no run \(thesis.tex is in it\)"):
        train(tiny_config(tmp_path, resume=True))
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_resuming_with_other_flags_names_them(plain_run):
    with pytest.raises(ValueError, match=r"--epochs was 4, is 3; --seed was 0, is 1\. Give"):
        train(tiny_config(plain_run, epochs=3, seed=1, resume=True))


def test_resuming_with_other_data_is_an_error(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training, "_evaluate", killed)
        with pytest.raises(Killed):
            train(tiny_config(tmp_path, epochs=1, **TINY))
    digits = load_dataset("digits")
    other = dataclasses.replace(digits, train_images=255 - digits.train_images)
    monkeypatch.setattr(training_data, "load_dataset", lambda *_: other)
    with pytest.raises(ValueError, match="with other data"):
        train(tiny_config(tmp_path, epochs=1, resume=True, **TINY))


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is not the record of a run"):
        train(tiny_config(tmp_path, resume=True))


def test_a_diverged_training_is_an_error(tmp_path):
    config = tiny_config(tmp_path, learning_rate=BIG_ENOUGH_TO_DIVERGE)
    with pytest.raises(TrainingDivergedError, match=r"epoch \d, step \d.*--learning_rate"):
        train(config)


def test_more_images_than_there_are(tmp_path):
    with pytest.raises(ValueError, match="more than the 1400 training images of digits"):
        train(tiny_config(tmp_path, train_size=1000, validation_size=401))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"arch": "vgg"},
            "--arch must be one of cnn, resnet, wide_resnet, densenet, keras.applications:NAME or "
            "package.module:function, got 'vgg'",
        ),
        ({"dataset": "mnist"}, "--dataset must be one of"),
        ({"augmentation": "cutout"}, "--augmentation must be one of no-aug"),
        ({"mixed_precision": "float16"}, "--mixed_precision must be one of none"),
        ({"regularize": True, "gradient": "exact"}, "--gradient must be one of"),
        ({"epochs": 0}, r"--epochs must be a whole number, 1 or greater\. Given: 0"),
        ({"seed": 2**32}, r"--seed must be .*, less than 4294967296\. Given: 4294967296"),
        ({"batch_size": 2.5}, "--batch_size must be a whole number"),
        ({"train_size": 0}, "--train_size"),
        ({"validation_size": -1}, "--validation_size"),
        ({"seed": -1}, "--seed"),
        ({"learning_rate": 0.0}, r"--learning_rate must be a number greater than 0\. Given: 0\.0"),
        ({"learning_rate": float("nan")}, "--learning_rate"),
        ({"label_smoothing": 1.0}, "--label_smoothing must be a number, 0 or greater, less"),
        ({"regularize": True, "alpha": 0.0}, "--alpha must be a number greater than 0"),
        ({"regularize": True, "beta": -1.0}, "--beta must be a number, 0 or greater"),
        ({"regularize": True, "clip_norm": float("inf")}, "--clip_norm"),
        ({"regularize": True, "num_sub_batches": 0}, "--num_sub_batches"),
        ({"beta": 3.0}, "--beta has no effect without --regularize"),
    ],
)
def test_a_bad_setting_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**changes)


# ---------------------------------------------------------------------------------- provenance


def git(directory, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_revision(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    assert git_revision(package) is None
    git(tmp_path, "init")
    assert git_revision(package) is None  # not tracked: an environment inside of a checkout
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    assert git_revision(package) == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "runs.jsonl").write_text("records are no code")
    assert git_revision(package) == git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "other.txt").write_text("new")
    assert git_revision(package) == git(tmp_path, "rev-parse", "HEAD") + "-dirty"


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    """As TensorFlow Datasets, which `compare` does not need."""

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    versions = provenance()["versions"]
    assert versions["tensorflow_datasets"] is None
    assert (versions["keras"], versions["numpy"]) == (keras.__version__, np.__version__)


def test_a_training_with_plateaus_that_was_cut_goes_on_in_the_same_way(tmp_path):
    def config(name):
        return TrainingConfig(
            dataset="digits",
            arch=TINY["arch"],
            train_size=40,
            confusion_size=20,
            epochs=16,
            batch_size=20,
            augmentation="no-aug",
            learning_rate=1e-8,  # Too low, so that there is a plateau.
            schedule="plateau",
            output_dir=str(tmp_path / name),
            resume=True,
        )

    class Cut(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 13:
                raise KeyboardInterrupt

    whole = train(config("whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config("cut"), [Cut()])
    resumed = train(config("cut"))
    assert resumed["resumed"][0]["after_epochs"] == 13  # What the callback cut was trained again.
    assert resumed["history"]["learning_rate"] == whole["history"]["learning_rate"]
    assert len(set(whole["history"]["learning_rate"])) > 1
    assert resumed["train"] == whole["train"]
    assert resumed["confusion"] == whole["confusion"]


def test_resume_knows_flags_newer_than_the_run(tmp_path, plain_run):
    directory = tmp_path / "run"
    shutil.copytree(plain_run, directory)
    record = json.loads((directory / "run.json").read_text())
    assert not record["flags"].pop("adaptive")
    (directory / "run.json").write_text(json.dumps(record))
    assert train(tiny_config(directory, resume=True)) == record
    with pytest.raises(ValueError, match="--adaptive was False, is True"):
        train(tiny_config(directory, resume=True, method="sam", adaptive=True))


def test_resume_knows_the_methods_by_their_options_as_older_runs_have_them(tmp_path):
    config = tiny_config(tmp_path, epochs=1, clip_norm=3.0, **TINY)
    record = train(config)
    assert record["flags"]["method"] == "clipped"
    record["flags"]["method"] = None
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert train(dataclasses.replace(config, resume=True)) == record
    with pytest.raises(ValueError, match="--method was clipped, is plain"):
        train(tiny_config(tmp_path, epochs=1, resume=True, **TINY))
    record["flags"]["beyond"] = 1
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"has other flags than there are now .*'beyond'"):
        train(dataclasses.replace(config, resume=True))
