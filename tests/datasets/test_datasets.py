"""Loading, splitting, augmenting and batching, against slow NumPy and published numbers."""

import pathlib
import shutil
import socket
import ssl
import urllib.error
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from conftest import write_png

from fisher_keras import extras
from fisher_keras.datasets import (
    AUGMENTATIONS,
    ImageDataset,
    channel_statistics,
    check_images_and_labels,
    confusion_set,
    evaluation_pipeline,
    load_dataset,
    split_validation,
    subset,
    training_pipeline,
)

SIZE = 12
MEAN, STD = np.array([7.0]), np.array([2.0])


def coded_images(count):
    """Images whose pixels each tell their own place: 1 + 12 * row + column."""
    codes = 1 + np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE, 1)
    return np.tile(codes, (count, 1, 1, 1))


def coded_pipeline(count, **arguments):
    """A pipeline of coded images whose labels are their numbers."""
    defaults = {"batch_size": count, "augmentation": "4-crop-f", "seed": 3}
    defaults |= {"mean": MEAN, "std": STD}
    return training_pipeline(coded_images(count), np.arange(count), **(defaults | arguments))


def take(dataset, batches):
    return [(images.numpy(), labels.numpy()) for images, labels in dataset.take(batches)]


def crop_and_flip_slowly(image, padding, row, column, flip):
    height, width, channels = image.shape
    padded = np.zeros((height + 2 * padding, width + 2 * padding, channels), image.dtype)
    padded[padding : padding + height, padding : padding + width] = image
    cropped = padded[row : row + height, column : column + width]
    return cropped[:, ::-1] if flip else cropped


def recover_transform(image, padding):
    """Reads offset and flip off two neighbours at the middle of a normalized coded image."""
    middle = SIZE // 2
    left, right = image[middle, middle - 1 : middle + 1, 0] * STD[0] + MEAN[0] - 1
    flip = left > right
    row, column = divmod(int(max(left, right)), SIZE)
    # The larger one is the pixel at `middle`, or under a flip at the place `middle - 1`, which
    # is `middle` from the right.
    return row - middle + padding, column - middle + padding, bool(flip)


# --- augmentation


@pytest.mark.parametrize(
    ("scheme", "padding", "chi_square_limit"),
    # 99.9 % quantiles of chi-square at 81 * 2 - 1 and 9 * 2 - 1 degrees of freedom.
    [("4-crop-f", 4, 222.2), ("1-crop-f", 1, 40.8)],
)
def test_offsets_and_flips_are_uniform_and_right(scheme, padding, chi_square_limit):
    count = 4000
    ((batch, _),) = take(coded_pipeline(count, augmentation=scheme), 1)
    original = ((coded_images(1)[0] - MEAN) / STD).astype(np.float32)
    counts = np.zeros((2 * padding + 1, 2 * padding + 1, 2))
    for image in batch:
        row, column, flip = recover_transform(image, padding)
        # The zeros of the padding are zeros after normalization: the slow one pads the same.
        expected = crop_and_flip_slowly(original, padding, row, column, flip)
        np.testing.assert_array_equal(image, expected)
        counts[row, column, int(flip)] += 1
    assert counts.sum() == count
    expected_count = count / counts.size
    assert np.sum((counts - expected_count) ** 2 / expected_count) < chi_square_limit


def test_one_batch_is_not_cropped_at_one_offset():
    ((batch, _),) = take(coded_pipeline(32), 1)
    assert len({recover_transform(image, 4) for image in batch}) > 20


def test_an_image_is_augmented_differently_in_the_next_epoch():
    first, second = (images[np.argsort(labels)] for images, labels in take(coded_pipeline(32), 2))
    differ = [
        recover_transform(a, 4) != recover_transform(b, 4)
        for a, b in zip(first, second, strict=True)
    ]
    assert sum(differ) > 25


def test_flip_only_flips_about_half_and_does_not_crop():
    ((batch, _),) = take(coded_pipeline(1000, augmentation="flip-only"), 1)
    transforms = [recover_transform(image, 0) for image in batch]
    assert {(row, column) for row, column, _ in transforms} == {(0, 0)}
    flips = sum(flip for _, _, flip in transforms)
    assert abs(flips - 500) < 3.3 * np.sqrt(1000 / 4)


def test_no_augmentation_is_plain_normalization():
    images = np.random.default_rng(0).integers(0, 256, (10, 5, 7, 3)).astype(np.uint8)
    mean, std = channel_statistics(images)
    ((batch, labels),) = take(
        training_pipeline(
            images,
            np.arange(10),
            batch_size=10,
            augmentation="no-aug",
            mean=mean,
            std=std,
            seed=0,
        ),
        1,
    )
    assert batch.dtype == np.float32
    assert labels.dtype == np.int32
    np.testing.assert_allclose(batch, ((images - mean) / std)[labels], rtol=1e-5, atol=1e-6)


# --- the training pipeline


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_resuming_at_an_epoch_repeats_the_uninterrupted_run(augmentation):
    arguments = {"batch_size": 4, "augmentation": augmentation, "num_classes": 10}
    uninterrupted = take(coded_pipeline(10, **arguments), 4 * 3)
    resumed = take(coded_pipeline(10, first_epoch=2, **arguments), 2 * 3)
    for (images, labels), (resumed_images, resumed_labels) in zip(
        uninterrupted[2 * 3 :], resumed, strict=True
    ):
        np.testing.assert_array_equal(resumed_images, images)
        np.testing.assert_array_equal(resumed_labels, labels)


def test_each_epoch_visits_each_image_once_in_a_new_order_with_a_short_last_batch():
    batches = [labels for _, labels in take(coded_pipeline(10, batch_size=4), 3 * 3)]
    assert [len(labels) for labels in batches] == [4, 4, 2] * 3
    epochs = [tuple(np.concatenate(batches[3 * epoch : 3 * epoch + 3])) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(epochs)) == 3


def test_seeds_order_differently_and_batch_size_changes_nothing_else():
    def first_epoch(**arguments):
        batches = take(coded_pipeline(10, **arguments), -(-10 // arguments["batch_size"]))
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]

    images, labels = first_epoch(batch_size=10)
    for other in (first_epoch(batch_size=3), first_epoch(batch_size=64)):
        np.testing.assert_array_equal(other[0], images)
        np.testing.assert_array_equal(other[1], labels)
    assert not np.array_equal(first_epoch(batch_size=10, seed=4)[1], labels)


def test_shuffling_is_uniform():
    # 600 epochs of 6 images: how often image i comes at place j. For permutations it is 5/6 of the
    # sum that is chi-square, with (6 - 1) ** 2 degrees of freedom; its 99.9 % quantile.
    labels = np.stack([labels for _, labels in take(coded_pipeline(6), 600)])
    counts = np.stack([np.bincount(place, minlength=6) for place in labels.T])
    assert 5 / 6 * np.sum((counts - 100) ** 2 / 100) < 52.6


def test_fit_sees_whole_epochs():
    seen = []

    class Recorder(keras.Model):
        def call(self, images):
            return images

        def train_step(self, data):
            seen.append(data[1].numpy())
            return {"loss": tf.constant(0.0)}

    model = Recorder()
    model.compile(run_eagerly=True)
    pipeline = coded_pipeline(10, batch_size=4)
    model.fit(pipeline, steps_per_epoch=3, epochs=2, verbose=0, shuffle=False)
    expected = [labels for _, labels in take(coded_pipeline(10, batch_size=4), 6)]
    np.testing.assert_array_equal(np.concatenate(seen), np.concatenate(expected))


def test_labels_one_hot_or_integer():
    images, labels = take(coded_pipeline(5, num_classes=6), 1)[0]
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels.sum(axis=0), [1, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(labels.sum(axis=1), 1)
    assert images.shape == (5, SIZE, SIZE, 1)


def test_evaluation_is_in_order_and_ends():
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3)).astype(np.uint8)
    images[..., 2] = 9  # a constant channel: its std of 0 counts as 1
    mean, std = channel_statistics(images)
    pipeline = evaluation_pipeline(
        images, np.arange(10), batch_size=4, mean=mean, std=std, num_classes=10
    )
    batches = list(pipeline.as_numpy_iterator())
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    result = np.concatenate([batch for batch, _ in batches])
    expected = (images - mean) / np.where(std == 0, 1, std)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result[..., 2], 0)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), np.eye(10))


def test_channel_statistics_are_numpys():
    images = np.random.default_rng(0).integers(0, 256, (50, 6, 5, 3)).astype(np.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, images.astype(float).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, images.astype(float).std(axis=(0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"augmentation": "8-crop"},
            "'no-aug', 'flip-only', '1-crop-f', '4-crop-f'. Given: '8-crop'",
        ),
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or greater"),
        ({"first_epoch": -1}, "first_epoch must be a whole number, 0 or greater"),
        ({"mean": np.zeros(3)}, r"mean and std must be of shape \(1,\)"),
        ({"num_classes": 5}, r"labels must be in 0\.\.4, got 5 for image 5"),
    ],
)
def test_bad_pipeline_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        coded_pipeline(10, **arguments)


# --- checks and splits


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4)), [0, 1], r"shape \(N, H, W, C\), got an array of shape \(2, 4, 4\)"),
        ([[1, 2]], [0], r"shape \(N, H, W, C\), got a list"),
        (np.zeros((2, 4, 4, 3), bool), [0, 1], "integers or floats, got dtype bool"),
        (np.zeros((0, 4, 4, 3)), [], "at least one image"),
        (np.zeros((2, 4, 5, 3)), [0, 1], r"\(4, 5, 3\), expected \(4, 4, 3\)"),
        (np.full((2, 4, 4, 3), np.nan), [0, 1], "2 of 2 images hold NaN .* is image 0"),
        (np.pad([np.inf], (95, 0)).reshape(2, 4, 4, 3), [0, 1], "1 of 2 .* is image 1"),
        (np.zeros((2, 4, 4, 3)), [0, 10], r"labels must be in 0\.\.9, got 10 for image 1"),
        (np.zeros((2, 4, 4, 3)), [-1, 0], r"labels must be in 0\.\.9, got -1 for image 0"),
        (np.zeros((2, 4, 4, 3)), [0.0, 1.0], "array of integers .* dtype float64"),
        (np.zeros((2, 4, 4, 3)), [[0], [1]], r"of shape \(N,\), got an array of shape \(2, 1\)"),
        (np.zeros((2, 4, 4, 3)), [0], "2 images but 1 labels"),
    ],
)
def test_check_images_and_labels(images, labels, message):
    labels = np.array(labels, int if not labels else None)
    with pytest.raises(ValueError, match=message):
        check_images_and_labels(images, labels, num_classes=10, image_shape=(4, 4, 3))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_good_images_and_labels_pass(dtype):
    check_images_and_labels(np.ones((2, 4, 4, 3), dtype), np.array([0, 9]), 10, (4, 4, 3))


def test_subset_is_random_without_replacement():
    images, labels = coded_images(100), np.arange(100)
    images[:, 0, 0, 0] = labels
    parts = subset(images, labels, 30, seed=1)
    assert [len(part) for part in parts] == [30, 30, 70, 70]
    np.testing.assert_array_equal(parts[0][:, 0, 0, 0], parts[1])
    np.testing.assert_array_equal(parts[2][:, 0, 0, 0], parts[3])
    assert sorted([*parts[1], *parts[3]]) == list(range(100))
    np.testing.assert_array_equal(subset(images, labels, 30, seed=1)[1], parts[1])
    assert set(subset(images, labels, 30, seed=2)[1]) != set(parts[1])


def test_subset_of_none_is_all():
    images, labels = coded_images(5), np.arange(5)
    parts = subset(images, labels, None, seed=1)
    np.testing.assert_array_equal(parts[0], images)
    np.testing.assert_array_equal(parts[1], labels)
    assert [len(part) for part in parts[2:]] == [0, 0]


@pytest.mark.parametrize("size", [0, 6])
def test_subset_of_impossible_size(size):
    with pytest.raises(ValueError, match=f"subset of {size} examples out of 5"):
        subset(coded_images(5), np.arange(5), size, seed=1)


def test_split_validation():
    parts = split_validation(coded_images(50), np.arange(50), 5, seed=1)
    assert [len(part) for part in parts] == [45, 45, 5, 5]
    assert sorted([*parts[1], *parts[3]]) == list(range(50))
    with pytest.raises(ValueError, match="cannot hold out 50 of 50"):
        split_validation(coded_images(50), np.arange(50), 50, seed=1)


# --- loading


def test_cifar100_is_loaded_with_its_fine_labels(tmp_path):
    with tfds.testing.mock_data(num_examples=7):
        dataset = load_dataset("cifar100", data_dir=str(tmp_path), download=False)
        truth = list(tfds.as_numpy(tfds.load("cifar100", split="train", data_dir=str(tmp_path))))
    assert dataset.num_classes == len(dataset.class_names) == 100
    assert dataset.train_images.dtype == dataset.test_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    assert dataset.image_shape == (32, 32, 3)
    np.testing.assert_array_equal(dataset.train_images, [each["image"] for each in truth])
    np.testing.assert_array_equal(dataset.train_labels, [each["label"] for each in truth])


WAYS_OUT = ("--download", "--data_dir=PATH", "--dataset=folder", "--dataset=digits")


def test_unprepared_data_name_the_ways_out_and_touch_no_network(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        pytest.fail("the network was touched")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    with pytest.raises(FileNotFoundError, match=r"cifar10 .*not prepared there") as error:
        load_dataset("cifar10", data_dir=str(tmp_path), download=False)
    assert all(way in str(error.value) for way in WAYS_OUT)
    assert str(tmp_path) in str(error.value)


@pytest.fixture
def answer(monkeypatch):
    """Has every host answer with an error; TFDS must not be asked to download unless told so."""

    def host_answers(error, download=lambda _: pytest.fail("TFDS was asked to download")):
        def urlopen(*_, **__):
            raise error

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download)

    return host_answers


def test_without_network_one_error_names_the_ways_out_and_nothing_is_written(tmp_path, answer):
    answer(urllib.error.URLError("no route to host"))
    folder = tmp_path / "tfds"
    with pytest.raises(FileNotFoundError, match=r"no connection to \S+: no route") as error:
        load_dataset("cifar100", data_dir=str(folder))
    assert all(way in str(error.value) for way in WAYS_OUT)
    assert "\n" not in str(error.value)
    assert not folder.exists()


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.HTTPError("https://x", 403, "no HEAD", None, None),
        urllib.error.URLError(ssl.SSLError("unable to get local issuer certificate")),
    ],
)
def test_a_host_that_answers_is_left_to_tfds(tmp_path, answer, error):
    def download(_):
        raise tfds.download.DownloadError("Failed to get url. HTTP code: 404.")

    answer(error, download)
    with pytest.raises(FileNotFoundError, match="HTTP code: 404") as error:
        load_dataset("cifar10", data_dir=str(tmp_path))
    assert all(way in str(error.value) for way in WAYS_OUT)


def test_a_folder_that_cannot_be_written_is_named_before_the_download(tmp_path, answer):
    answer(urllib.error.HTTPError("https://x", 403, "no HEAD", None, None))
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="file") as error:
        load_dataset("cifar10", data_dir=str(tmp_path / "file" / "tfds"))
    assert all(way in str(error.value) for way in WAYS_OUT)


def test_damaged_data_name_the_ways_out(tmp_path, cifar10_dir):
    (source,) = pathlib.Path(cifar10_dir, "cifar10").iterdir()
    damaged = tmp_path / "cifar10" / source.name
    shutil.copytree(source, damaged, ignore=shutil.ignore_patterns("*tfrecord*"))
    for record in source.glob("*tfrecord*"):
        (damaged / record.name).write_bytes(b"these are not records")
    with pytest.raises(FileNotFoundError, match="DataLossError") as error:
        load_dataset("cifar10", data_dir=str(tmp_path))
    assert all(way in str(error.value) for way in WAYS_OUT)
    assert "\n" not in str(error.value)


def test_real_cifar10_is_read_and_not_downloaded(cifar10_dir, answer):
    answer(AssertionError("the network was touched"))
    dataset = load_dataset("cifar10", data_dir=cifar10_dir)
    assert dataset.train_images.shape == (50000, 32, 32, 3)
    assert dataset.test_images.shape == (10000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), 10 * [5000])
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), 10 * [1000])
    assert dataset.class_names[:2] == ("airplane", "automobile")
    mean, std = channel_statistics(dataset.train_images)
    np.testing.assert_allclose(mean, [124.1, 123.0, 112.6], atol=0.1)
    np.testing.assert_allclose(std, [62.5, 61.8, 66.4], atol=0.1)


def test_digits_are_all_there_enlarged_and_stratified():
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    assert dataset.train_images.shape == (1400, 16, 16, 1)
    assert dataset.test_images.shape == (397, 16, 16, 1)
    assert dataset.num_classes == 10
    # Bilinear by hand: the centre of enlarged pixel i lies at (i + 1/2) / 2 - 1/2.
    places = (np.arange(16) + 0.5) / 2 - 0.5
    enlarge = np.stack([np.interp(places, np.arange(8), column) for column in np.eye(8)], axis=1)
    digits = load_digits()
    expected = np.rint(enlarge @ digits.images @ enlarge.T * (255 / 16)).astype(np.uint8)

    def as_set(images, labels):
        return sorted(
            (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
        )

    images = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    assert as_set(images, labels) == as_set(expected, digits.target)
    share = np.bincount(dataset.test_labels) / np.bincount(digits.target)
    np.testing.assert_allclose(share, 397 / 1797, atol=0.005)


@pytest.mark.parametrize(
    ("name", "package"), [("digits", "sklearn"), ("cifar10", "tensorflow_datasets")]
)
def test_a_missing_package_is_named(monkeypatch, name, package):
    real = extras.importlib.util.find_spec
    monkeypatch.setattr(
        extras.importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )
    with pytest.raises(ImportError, match=rf"no package {package}: run pip install 'fisher_ker"):
        load_dataset(name)


def test_fingerprint_follows_the_content():
    def digits(**changes):
        arrays = {
            "train_images": np.ones((2, 3, 3, 1), np.uint8),
            "train_labels": np.array([0, 1], np.int32),
            "test_images": np.ones((1, 3, 3, 1), np.uint8),
            "test_labels": np.array([0], np.int32),
        }
        return ImageDataset("x", **(arrays | changes), num_classes=2, class_names=("a", "b"))

    assert digits().fingerprint == digits().fingerprint
    assert len(digits().fingerprint) == 16
    assert digits(test_labels=np.array([1], np.int32)).fingerprint != digits().fingerprint
    reshaped = digits(
        train_images=np.ones((2, 9, 1, 1), np.uint8), test_images=np.ones((1, 9, 1, 1), np.uint8)
    )
    assert reshaped.fingerprint != digits().fingerprint


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"train_images": np.full((4, 16, 16, 1), np.nan, np.float32)}, "NaN"),
        ({"train_labels": np.array([0, 1, 10, 2], np.int32)}, "10"),
        ({"test_labels": np.array([0, -1, 1, 2], np.int32)}, "-1"),
        ({"test_images": np.zeros((4, 8, 8, 1), np.uint8)}, r"\(8, 8, 1\)"),
    ],
)
def test_arrays_that_cannot_be_trained_on_make_no_data_set(part, message):
    images, labels = np.zeros((4, 16, 16, 1), np.uint8), np.arange(4, dtype=np.int32)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    good = dict(zip(names, (images, labels) * 2, strict=True))
    with pytest.raises(ValueError, match=message):
        ImageDataset("x", **(good | part), num_classes=10, class_names=tuple("0123456789"))


def test_folder_round_trip(image_folder):
    dataset = load_dataset("folder", data_dir=str(image_folder))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.num_classes == 2
    assert dataset.image_shape == (8, 6, 3)
    for images, labels, first, count in (
        (dataset.train_images, dataset.train_labels, 0, 6),
        (dataset.test_images, dataset.test_labels, 6, 4),
    ):
        numbers = images[:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(images, np.ones((1, 8, 6, 3)) * numbers.reshape(-1, 1, 1, 1))
        assert sorted(numbers) == list(range(first, first + count))
        np.testing.assert_array_equal(labels, numbers - first >= count // 2)


def test_folder_reads_jpeg_and_makes_gray_rgb(image_folder):
    gray = tf.io.encode_jpeg(np.full((8, 6, 1), 200, np.uint8)).numpy()
    (image_folder / "test" / "cat" / "gray.jpg").write_bytes(gray)
    dataset = load_dataset("folder", data_dir=str(image_folder))
    assert dataset.test_images.shape == (5, 8, 6, 3)
    np.testing.assert_array_equal(dataset.test_images[dataset.test_images > 9], 200)


@pytest.mark.parametrize(
    ("split", "offender"),
    [
        ("test", r"odd\.png is \(8, 7, 3\), those before it \(8, 6, 3\)"),
        # Within a split TFDS shuffles: either shape may come first.
        ("train", r"\.png is \(8, [67], 3\), those before it \(8, [67], 3\)"),
    ],
)
def test_folder_with_an_image_of_another_shape(image_folder, split, offender):
    write_png(image_folder / split / "dog" / "odd.png", np.zeros((8, 7, 3)))
    with pytest.raises(ValueError, match=f"all images must be of one shape: .*{offender}"):
        load_dataset("folder", data_dir=str(image_folder))


def test_folder_of_images_of_any_shape(image_folder):
    write_png(image_folder / "train" / "dog" / "large.png", np.full((31, 17, 3), 200))
    dataset = load_dataset("folder", data_dir=str(image_folder), image_size=5)
    assert dataset.train_images.shape == (7, 5, 5, 3)
    assert dataset.train_images.dtype == np.uint8
    assert sorted(dataset.train_images.max(axis=(1, 2, 3))) == [0, 1, 2, 3, 4, 5, 200]
    # Of one colour each, as before.
    np.testing.assert_array_equal(dataset.train_images.std(axis=(1, 2, 3)), 0)


def test_only_a_folder_is_resized():
    with pytest.raises(ValueError, match=r"--image_size .* not of digits"):
        load_dataset("digits", image_size=8)


def test_folder_with_a_class_to_test_that_is_not_trained(image_folder):
    write_png(image_folder / "test" / "bird" / "0.png", np.zeros((8, 6, 3)))
    with pytest.raises(ValueError, match="no training images of the class 'bird'"):
        load_dataset("folder", data_dir=str(image_folder))
    write_png(image_folder / "train" / "bird" / "0.png", np.zeros((8, 6, 3)))
    assert load_dataset("folder", data_dir=str(image_folder)).num_classes == 3
    # A class that is trained need not be tested.
    write_png(image_folder / "train" / "fish" / "0.png", np.zeros((8, 6, 3)))
    assert load_dataset("folder", data_dir=str(image_folder)).num_classes == 4


def test_folders_of_the_system_are_no_classes(image_folder):
    for hidden in ("__MACOSX/train/dog", "train/.ipynb_checkpoints", "test/__pycache__"):
        write_png(image_folder / hidden / "0.png", np.zeros((8, 6, 3)))
    assert load_dataset("folder", data_dir=str(image_folder)).class_names == ("cat", "dog")


def test_loading_logs_nothing_and_leaves_logging_as_it_was(image_folder, caplog):
    """TFDS tells of each data set that it constructs, and absl's programs show that."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    try:
        load_dataset("folder", data_dir=str(image_folder))
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity(before)
    assert not caplog.records


def test_folder_with_an_unreadable_image(image_folder):
    (image_folder / "train" / "dog" / "broken.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"cannot read .*broken\.png as a PNG or JPEG"):
        load_dataset("folder", data_dir=str(image_folder))


def test_folder_without_images(image_folder):
    for path in (image_folder / "test").rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="no images found for the split 'test'"):
        load_dataset("folder", data_dir=str(image_folder))


def test_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="no images found for the split 'train'"):
        load_dataset("folder", data_dir=str(tmp_path))


@pytest.mark.parametrize("data_dir", [None, "/no/such/folder"])
def test_folder_that_is_not_there(data_dir):
    with pytest.raises(ValueError, match=f"to an existing folder, got {data_dir}"):
        load_dataset("folder", data_dir=data_dir)


def test_unknown_dataset():
    with pytest.raises(ValueError, match="cifar100, digits, folder, tfds:NAME, got 'mnist'"):
        load_dataset("mnist")


def test_confusion_set_has_random_labels_and_grows_with_its_size():
    images = np.arange(4000, dtype=np.uint8).reshape(4000, 1, 1, 1)
    drawn, labels = confusion_set(np.arange(4000).reshape(4000, 1), 3000, 10, seed=5)
    assert len(np.unique(drawn)) == 3000
    assert labels.dtype == np.int32
    counts = np.bincount(labels, minlength=10)
    # A chi-squared variable of 9 degrees of freedom is above 33.7 once in 10,000.
    assert np.sum((counts - 300) ** 2 / 300) < 33.7
    smaller, smaller_labels = confusion_set(np.arange(4000).reshape(4000, 1), 100, 10, seed=5)
    np.testing.assert_array_equal(smaller, drawn[:100])
    np.testing.assert_array_equal(smaller_labels, labels[:100])
    other, _ = confusion_set(np.arange(4000).reshape(4000, 1), 100, 10, seed=6)
    assert not np.array_equal(other, smaller)
    assert len(confusion_set(images, 0, 10, seed=0)[0]) == 0
    with pytest.raises(ValueError, match="confusion set of 4001 images: 4000"):
        confusion_set(images, 4001, 10, seed=0)
