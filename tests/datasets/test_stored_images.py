"""Images that stay in their files: the same pixels, batches and weights as from memory."""

import json
import os
import pathlib
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import write_png

from fisher_keras import evaluate_local_minimum
from fisher_keras.classifier.labels import Examples, LabelledData
from fisher_keras.datasets import (
    AUGMENTATIONS,
    ImageExamples,
    StoredImages,
    channel_statistics,
    evaluation_pipeline,
    load_dataset,
    stored_images,
    training_pipeline,
)
from fisher_keras.experiments.training.data import split_dataset
from fisher_keras.experiments.training.train import TrainingConfig, train

MEAN, STD = np.array([100.0, 120, 140]), np.array([50.0, 0, 60])  # Of 0 means constant.


@pytest.fixture
def photos(tmp_path):
    """A folder of 13 + 5 images of mixed sizes in 3 classes, PNG and JPEG."""
    random, root = np.random.default_rng(0), tmp_path / "photos"
    for split, count in (("train", 13), ("test", 5)):
        for number in range(count):
            pixels = random.integers(0, 256, (*random.integers(5, 12, 2), 3)).astype(np.uint8)
            path = root / split / "abc"[number % 3] / f"{number}.png"
            write_png(path, pixels)
            if number % 2:
                path.with_suffix(".jpg").write_bytes(tf.io.encode_jpeg(pixels).numpy())
                path.unlink()
    return root


def load(folder, in_memory, monkeypatch, **options):
    monkeypatch.setattr(stored_images, "IN_MEMORY_BYTES", 2**28 if in_memory else 0)
    name = options.pop("name", "folder")
    return load_dataset(name, data_dir=str(folder), download=False, **options)


@pytest.fixture
def both(photos, monkeypatch):
    """The same images in memory and in their files."""
    return [load(photos, in_memory, monkeypatch, image_size=6) for in_memory in (True, False)]


def test_small_data_sets_are_read_into_memory_and_large_ones_stay_in_their_files(both):
    memory, stored = both
    assert isinstance(memory.train_images, np.ndarray)
    for images, truth in (
        (stored.train_images, memory.train_images),
        (stored.test_images, memory.test_images),
    ):
        assert isinstance(images, StoredImages)
        assert images.shape == truth.shape
        np.testing.assert_array_equal(images.read(), truth)
        np.testing.assert_array_equal(images[np.array([4, 1])].read(), truth[[4, 1]])
        np.testing.assert_array_equal(images[1:4].read(slice(0, 2)), truth[1:3])
    np.testing.assert_array_equal(stored.train_labels, memory.train_labels)
    assert stored.class_names == memory.class_names


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_training_batches_are_those_from_memory_in_any_epoch(both, augmentation):
    def batches(data, **arguments):
        arguments |= {"batch_size": 5, "augmentation": augmentation, "mean": MEAN, "std": STD}
        return training_pipeline(
            data.train_images, data.train_labels, seed=3, num_classes=3, **arguments
        )

    expected = list(batches(both[0]).take(9))
    given = list(batches(both[1], first_epoch=1).take(6))
    # 13 images: the batches of an epoch are of 5, 5 and 3.
    for (images, labels), (other_images, other_labels) in zip(expected[3:], given, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


def test_evaluation_batches_and_statistics_are_those_from_memory(both):
    pipelines = [
        evaluation_pipeline(data.train_images, data.train_labels, batch_size=4, mean=MEAN, std=STD)
        for data in both
    ]
    assert [int(batches.cardinality()) for batches in pipelines] == [4, 4]
    memory, stored = (list(batches.as_numpy_iterator()) for batches in pipelines)
    assert [len(labels) for _, labels in memory] == [4, 4, 4, 1]
    for expected, given in zip(memory, stored, strict=True):
        np.testing.assert_array_equal(expected[0], given[0])
        np.testing.assert_array_equal(expected[1], given[1])
    for expected, given in zip(*(channel_statistics(d.train_images) for d in both), strict=True):
        np.testing.assert_allclose(given, expected, rtol=1e-12)


def test_splits_draw_the_same_images(both):
    options = {"train_size": 6, "confusion_size": 3, "validation_size": 2}
    memory, stored = (
        split_dataset(data, **options, batch_size=4, one_hot=False, seed=1) for data in both
    )
    for part in ("train", "confusion", "validation", "test"):
        expected, given = memory.examples(part), stored.examples(part)
        assert isinstance(given, ImageExamples)
        np.testing.assert_array_equal(given.labels, expected.labels)
        np.testing.assert_allclose(given.take(slice(None)).x, expected.x, rtol=1e-6, atol=1e-6)
    joined = stored.examples("train", "confusion")
    np.testing.assert_array_equal(
        joined.take(np.array([7])).x, stored.examples("confusion").take(np.array([1])).x
    )
    assert joined.fingerprint != stored.examples("train").fingerprint


def test_a_constant_channel_is_normalized_as_in_training(both):
    data = split_dataset(
        both[0], train_size=None, validation_size=0, batch_size=13, one_hot=False, seed=1
    )
    data.std[:] = STD
    ((batch, _),) = data.evaluation_batches("train").as_numpy_iterator()
    np.testing.assert_array_equal(data.examples("train").x, batch)


def config(folder, output_dir, **changes):
    values = {
        **{"dataset": "folder", "data_dir": str(folder), "image_size": 8},
        "arch": "tiny_network:tiny",
        **{"epochs": 2, "batch_size": 5, "label_smoothing": 0.1, "seed": 2},
    }
    return TrainingConfig(**values | {"output_dir": str(output_dir)} | changes)


def weights(output_dir):
    return keras.saving.load_model(output_dir / "last.keras", compile=False).get_weights()


class Killed(Exception):
    """Ends a training in the middle of an epoch."""


def test_a_training_from_files_resumes_to_the_same_weights(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_images, "IN_MEMORY_BYTES", 0)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    record = train(config(photos, straight), quiet=True)

    def kill(epoch, logs):
        if epoch:  # The backup of the second epoch is not written then.
            raise Killed

    kills = keras.callbacks.LambdaCallback(on_epoch_end=kill)
    with pytest.raises(Killed):
        train(config(photos, resumed), [kills], quiet=True)
    again = train(config(photos, resumed, resume=True), quiet=True)
    for expected, given in zip(weights(straight), weights(resumed), strict=True):
        np.testing.assert_array_equal(expected, given)
    assert again["test"] == record["test"]
    assert record["data"]["train_images"] == 13
    # Nor is it resumed with other files.
    (resumed / "run.json").write_text(json.dumps(again | {"status": "running"}))
    (photos / "train" / "a" / "0.png").rename(photos / "train" / "a" / "other.png")
    with pytest.raises(ValueError, match=r"cannot resume .* with other data"):
        train(config(photos, resumed, resume=True), quiet=True)


def test_a_dry_run_tells_the_plan_and_writes_nothing(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stored_images, "IN_MEMORY_BYTES", 0)
    record = train(config(photos, tmp_path / "run", dry_run=True))
    assert set(record) == {"data", "parameters"}
    printed = capsys.readouterr().out
    assert "13 train, 5 test" in printed
    assert "3 steps an epoch, 6 in all, of batches (5, 8, 8, 3)" in printed
    step, total = re.search(r"A step takes (\S+) s on .*: (\S+) in all\.", printed).groups()
    assert total == f"0:00:{round(6 * float(step)):02}"
    assert not (tmp_path / "run").exists()


def test_fingerprints_follow_names_sizes_and_geometry_and_not_the_place(
    photos, tmp_path, monkeypatch
):
    def fingerprint(folder, **options):
        return load(folder, False, monkeypatch, **{"image_size": 6} | options).fingerprint

    first = fingerprint(photos)
    assert first == fingerprint(shutil.copytree(photos, tmp_path / "copy"))
    assert first != fingerprint(photos, image_size=7)
    longer = photos / "test" / "c" / "2.png"
    longer.write_bytes(longer.read_bytes() + b"\0")
    assert first != fingerprint(photos)


@pytest.mark.parametrize("in_memory", [True, False])
def test_an_unreadable_image_is_named(photos, tmp_path, monkeypatch, in_memory):
    broken = photos / "train" / "b" / "4.png"
    broken.write_bytes(broken.read_bytes()[:40])
    monkeypatch.setattr(stored_images, "IN_MEMORY_BYTES", 2**28 if in_memory else 0)
    with pytest.raises(ValueError, match=r"cannot read .*b.4\.png as a PNG or JPEG"):
        train(config(photos, tmp_path / "run"), quiet=True)


def test_an_image_that_vanishes_or_breaks_while_training_is_named(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_images, "IN_MEMORY_BYTES", 0)
    victim = photos / "train" / "b" / "4.png"
    lose = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: victim.unlink(missing_ok=True))
    with pytest.raises(ValueError, match=r"cannot read .*b.4\.png as a PNG or JPEG"):
        train(config(photos, tmp_path / "run", epochs=9), [lose], quiet=True)


def test_mixed_sizes_need_an_image_size(photos, monkeypatch):
    with pytest.raises(ValueError, match=r"all images must be of one shape: .*give --image_size"):
        load(photos, False, monkeypatch).train_images.read()


# --- TensorFlow Datasets


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Images of mixed sizes; the test split has no labels, as ImageNet's."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "picture": tfds.features.Image(shape=(None, None, 3)),
            "kind": tfds.features.ClassLabel(names=["round", "square"]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("picture", "kind"),
        )

    def _split_generators(self, dl_manager):
        sizes = {"train": 9, "validation": 4, "test": 2}
        return {split: self._generate_examples(split, n) for split, n in sizes.items()}

    def _generate_examples(self, split, count):
        for number in range(count):
            pixels = np.full((4 + number, 7, 3), 10 * number + len(split), np.uint8)
            yield number, {"picture": pixels, "kind": -1 if split == "test" else number % 2}


def prepare(folder, file_format, builder=Shapes):
    prepared = builder(data_dir=str(folder), file_format=file_format)
    prepared.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
    return pathlib.Path(prepared.data_dir)


@pytest.fixture
def shapes(tmp_path):
    prepare(tmp_path, "tfrecord")
    return tmp_path


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_any_tfds_data_set_is_read(tmp_path, monkeypatch, file_format, in_memory):
    data_dir = prepare(tmp_path, file_format)
    arguments = (tmp_path, in_memory, monkeypatch)
    data = load(*arguments, name="tfds:shapes", image_size=5)
    assert data.class_names == ("round", "square")
    for images, labels, split, count in (
        (data.train_images, data.train_labels, "train", 9),
        (data.test_images, data.test_labels, "validation", 4),
    ):
        pixels = images if in_memory else images.read()
        numbers = (pixels[:, 0, 0, 0].astype(int) - len(split)) // 10
        assert sorted(numbers) == list(range(count))
        np.testing.assert_array_equal(labels, numbers % 2)
        np.testing.assert_array_equal(pixels, np.ones((1, 5, 5, 3)) * pixels[:, :1, :1, :1])
    # The index beside the files gives the labels from now on.
    index = data_dir / f"shapes-train.{file_format}.index.npz"
    with np.load(index) as arrays:
        known = dict(arrays)
    np.testing.assert_array_equal(known["labels"], data.train_labels)
    np.savez(index, **known | {"labels": 1 - known["labels"]})
    again = load(*arguments, name="tfds:shapes", image_size=5)
    np.testing.assert_array_equal(again.train_labels, 1 - data.train_labels)
    assert again.fingerprint != data.fingerprint
    # But not those of other files.
    os.utime(next(data_dir.glob(f"*train.{file_format}-*")), (1, 1))
    again = load(*arguments, name="tfds:shapes", image_size=5)
    np.testing.assert_array_equal(again.train_labels, data.train_labels)
    assert again.fingerprint == data.fingerprint


def test_an_index_that_cannot_be_kept_or_read_is_made_again(shapes, monkeypatch):
    load(shapes, False, monkeypatch, name="tfds:shapes", image_size=5)
    for index in shapes.rglob("*.index.npz"):
        index.write_bytes(b"no index")

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    data = load(shapes, False, monkeypatch, name="tfds:shapes", image_size=5)
    assert data.train_images.read().shape == (9, 5, 5, 3)


def test_the_checksums_of_records_are_in_the_fingerprint(shapes, monkeypatch):
    def fingerprint():
        return load(shapes, False, monkeypatch, name="tfds:shapes", image_size=5).fingerprint

    before = fingerprint()
    (record,) = shapes.rglob("*train.tfrecord-00000*")
    content = bytearray(record.read_bytes())
    content[-1] ^= 1  # Of the last record's checksum.
    record.write_bytes(content)
    with pytest.raises(FileNotFoundError, match=r"cannot load shapes .*DataLossError"):
        fingerprint()
    content[-1] ^= 1
    record.write_bytes(content)
    assert fingerprint() == before
    record.write_bytes(content[:-9])
    with pytest.raises(FileNotFoundError, match="is damaged: it ends within a record"):
        fingerprint()


class OnlyTrain(Shapes):
    """A data set without a test split."""

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples("train", 3)}


class NoImages(Shapes):
    """A data set without images."""

    def _info(self):
        features = {
            "picture": tfds.features.Text(),
            "kind": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("picture", "kind"),
        )

    def _generate_examples(self, split, count):
        yield from ((number, {"picture": "none", "kind": 1}) for number in range(2))


@pytest.mark.parametrize(
    ("builder", "name", "size", "message"),
    [
        (Shapes, "shapes", None, "images of tfds:shapes are of several sizes: give --image_size"),
        (OnlyTrain, "only_train", 5, r"needs labelled splits train and test .*it has train"),
        (NoImages, "no_images", 5, "not a data set of images"),
        (Shapes, "no_such_name", 5, "TensorFlow Datasets has no data set 'no_such_name'"),
    ],
)
def test_other_tfds_data_sets_are_refused(tmp_path, monkeypatch, builder, name, size, message):
    prepare(tmp_path, "tfrecord", builder)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, False, monkeypatch, name=f"tfds:{name}", image_size=size)
    assert "\n" not in str(error.value)


def test_unprepared_tfds_data_name_the_ways_out(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"cannot load imagenette .*not prepared there"):
        load(tmp_path, False, monkeypatch, name="tfds:imagenette", image_size=5)


# --- metrics of examples that are read by their rows


@pytest.fixture
def classifier():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])


class ReadByRows(Examples):
    """Arrays that tell which rows were read."""

    def __init__(self, x, y):
        self.x, self.y, self.rows = x, y, set()

    @property
    def labels(self):
        return self.y

    def take(self, rows):
        self.rows |= set(np.arange(len(self))[rows].tolist())
        return LabelledData(self.x[rows], self.y[rows])

    @property
    def fingerprint(self):
        return "1"


def draw(count=1000):
    x = np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)
    return x, np.arange(count) % 3


def test_metrics_read_no_other_rows_than_trials_sample(classifier, tmp_path):
    x, y = draw(20_000)
    options = {"num_samples": 6, "num_trials": 4, "progress": False}
    expected = evaluate_local_minimum(classifier, (x, y), **options)
    data = ReadByRows(x, y)
    report = evaluate_local_minimum(
        classifier, data, **options, trials_path=tmp_path / "trials.jsonl", label_smoothing=0.1
    )
    assert report.metrics == expected.metrics
    assert report.train.num_examples <= 24
    # Beside the samples, the first rows and a few spread ones tell the kind of the model.
    assert len(data.rows) <= 24 + 256 + 4
    assert f"of the {report.train.num_examples} examples that the trials" in str(report.notes)
    # Also where the trials are read from the file.
    again = evaluate_local_minimum(
        classifier, data, **options, trials_path=tmp_path / "trials.jsonl", label_smoothing=0.1
    )
    assert again.train == report.train
    assert expected.train.num_examples == 20_000


def test_the_training_loss_is_that_of_the_sampled_rows(classifier):
    x, y = draw(300)
    options = {"num_trials": 5, "progress": False}
    sampled = evaluate_local_minimum(classifier, ReadByRows(x, y), 40, **options)
    log_p = np.log(np.exp(z := classifier.predict(x, verbose=0)) / np.exp(z).sum(1, keepdims=True))
    rows = np.unique(
        np.concatenate(
            [np.random.default_rng([0, t]).choice(300, 40, replace=False) for t in range(5)]
        )
    )
    np.testing.assert_allclose(sampled.train.loss, -log_p[rows, y[rows]].mean(), rtol=1e-5)
    assert sampled.train.num_examples == len(rows)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_mapped_arrays_are_read_by_their_rows(classifier, tmp_path, mode):
    x, y = draw()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode=mode)
    if mode == "c":
        mapped[7] = x[7] = 2.0  # Not in the file, and still there after rows were read.
    options = {"num_samples": 6, "num_trials": 4, "progress": False}
    report = evaluate_local_minimum(classifier, (mapped, y), **options)
    expected = evaluate_local_minimum(classifier, (x, y), **options)
    assert report.metrics == expected.metrics
    assert report.train.num_examples < 25
    np.testing.assert_array_equal(LabelledData(mapped, y).take(np.array([9, 7])).x, x[[9, 7]])
    # What is computed from a mapped array is in memory.
    assert LabelledData(mapped * 2, y).in_memory
    assert not LabelledData(mapped[::2], y[::2]).in_memory
    changed = x.copy()
    changed[0, 0] += 1
    np.save(tmp_path / "other.npy", changed)
    other = np.load(tmp_path / "other.npy", mmap_mode="r")
    assert LabelledData(other, y).fingerprint != LabelledData(mapped, y).fingerprint


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(9)[:, None] % 3, r"shape \(N,\).*Given: shape \(9, 1\)"),
        (np.arange(9.0) % 3, "classes, integers of shape .* Given: .* dtype float64"),
        (np.zeros(0, int), r"at least one example. Given: shape \(0,\)"),
        ([0, 1, 2], r"must be an array"),
        (np.arange(9), r"0\.\.2 of the model"),
        (-np.ones(9, int), "label -1 for example 0"),
    ],
)
def test_labels_of_examples_are_checked(classifier, labels, message):
    data = ReadByRows(np.ones((9, 5), np.float32), labels)
    with pytest.raises(ValueError, match=message):
        evaluate_local_minimum(classifier, data, 2, 1, progress=False)
