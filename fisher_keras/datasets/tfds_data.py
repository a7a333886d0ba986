"""Data sets of TensorFlow Datasets (TFDS): CIFAR, and any other of images and classes."""

import os
import pathlib
import ssl
import types
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from fisher_keras.datasets.image_dataset import ImageDataset
from fisher_keras.datasets.records import ImageRecords
from fisher_keras.datasets.stored_images import StoredImages, in_memory_if_small
from fisher_keras.extras import require

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_TIMEOUT_S = 10
_FORMATS = ("tfrecord", "array_record")


def _tensorflow_datasets() -> types.ModuleType:
    """Returns TFDS, which takes seconds to import, and which only some data sets need."""
    require("tensorflow_datasets")
    import tensorflow_datasets

    return tensorflow_datasets


def load_tfds(
    name: str, data_dir: str | None, download: bool, image_size: int | None
) -> ImageDataset:
    """Loads "cifar10", "cifar100" or "tfds:NAME"; see `load_dataset`."""
    tfds = _tensorflow_datasets()
    tfds_name = name.removeprefix("tfds:")
    try:
        builder = tfds.builder(tfds_name, data_dir=data_dir)
        if download and not builder.is_prepared():
            _download(builder)
        if tfds_name != name and builder.is_prepared():
            return _load_images(builder, name, image_size)
        parts = [*_read_split(builder, "train"), *_read_split(builder, "test")]
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"TensorFlow Datasets has no data set {tfds_name!r}: its catalog lists the names"
        ) from error
    except AssertionError as error:  # What TFDS raises for data that are not prepared.
        raise _not_available(tfds_name, data_dir, "it is not prepared there") from error
    except (OSError, tf.errors.OpError, tfds.download.DownloadError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise _not_available(tfds_name, data_dir, " ".join(reason.split())) from error
    return _image_dataset(builder, name, parts)


def _image_dataset(
    builder: "tfds.core.DatasetBuilder",
    name: str,
    parts: list[np.ndarray | StoredImages],
    label: str = "label",
) -> ImageDataset:
    classes = builder.info.features[label]
    return ImageDataset(
        name, *parts, num_classes=classes.num_classes, class_names=tuple(classes.names)
    )


def _not_available(name: str, data_dir: str | None, reason: str) -> FileNotFoundError:
    where = data_dir or "TensorFlow Datasets' default folder"
    return FileNotFoundError(
        f"cannot load {name} from {where} ({reason}). Ways out: --download where there is "
        f"network; --data_dir=PATH to a prepared TensorFlow Datasets folder (that holds {name}/); "
        "--dataset=folder, your own images in --data_dir; --dataset=digits, embedded data that "
        "need no download"
    )


def _download(builder: "tfds.core.DatasetBuilder") -> None:
    # TFDS itself retries for minutes before it gives up on a host it cannot reach.
    for url in builder.url_infos:
        _check_reachable(url)
    # And announces a download before it sees that the folder cannot be written.
    tf.io.gfile.makedirs(os.path.dirname(builder.data_dir))
    try:
        builder.download_and_prepare()
    except AssertionError as error:  # Of data that a user has to download by hand.
        raise OSError(error) from error


def _check_reachable(url: str) -> None:
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
            pass
    except urllib.error.HTTPError:
        pass  # An answer, too: TFDS says better what it means.
    except urllib.error.URLError as error:
        # TFDS knows certificates that Python may not know.
        if not isinstance(error.reason, ssl.SSLError):
            host = urllib.parse.urlsplit(url).hostname
            raise ConnectionError(f"no connection to {host}: {error.reason}") from error


def _read_split(builder: "tfds.core.DatasetBuilder", split: str) -> tuple[np.ndarray, np.ndarray]:
    batches = builder.as_dataset(split=split, as_supervised=True).batch(1000)
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels).astype(np.int32)


def _load_images(
    builder: "tfds.core.DatasetBuilder", name: str, image_size: int | None
) -> ImageDataset:
    """Loads a data set of any size, whose images may be of several sizes."""
    info = builder.info
    image, label = _features(builder, name)
    if image_size is None and None in info.features[image].shape:
        raise ValueError(f"the images of {name} are of several sizes: give --image_size")
    readers = {}
    for split in ("train", "test", "validation"):
        if split in info.splits and "test" not in readers:
            files = [pathlib.Path(path) for path in info.splits[split].filepaths]
            reader = ImageRecords(
                files, (image, label), info.features[image].shape[-1], image_size
            )
            # The test split of ImageNet has no labels: the validation split takes its place.
            if reader.labels.min() >= 0:
                readers["train" if split == "train" else "test"] = reader
    if len(readers) < 2:
        raise ValueError(
            f"{name} needs labelled splits train and test (or validation), it has "
            f"{', '.join(info.splits)}: save its images as files for --dataset=folder"
        )
    train, test = readers["train"], readers["test"]
    images = in_memory_if_small(
        *(StoredImages(reader, np.arange(len(reader.labels))) for reader in (train, test))
    )
    return _image_dataset(builder, name, [images[0], train.labels, images[1], test.labels], label)


def _features(builder: "tfds.core.DatasetBuilder", name: str) -> tuple[str, str]:
    """Returns the names of the images and of the classes, if the data set has both."""
    info, features = builder.info, _tensorflow_datasets().features
    keys = info.supervised_keys or ()
    kinds = [type(info.features[key]) for key in keys if isinstance(key, str)]
    if kinds != [features.Image, features.ClassLabel] or info.features[keys[0]].dtype != np.uint8:
        raise ValueError(
            f"{name} is not a data set of images (uint8) and classes: it has {list(info.features)}"
        )
    if info.file_format.value not in _FORMATS:
        raise ValueError(
            f"{name} is prepared as {info.file_format.value}, and {' and '.join(_FORMATS)} can be "
            "read: prepare it again, in another --data_dir"
        )
    return keys
