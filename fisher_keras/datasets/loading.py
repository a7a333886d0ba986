"""Data sets as arrays in memory: CIFAR, a folder of images, scikit-learn's digits."""

import contextlib
import dataclasses
import hashlib
import os
import ssl
import types
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf
from absl import logging

from fisher_keras.datasets.validation import check_images_and_labels
from fisher_keras.extras import require

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

DATASETS = ("cifar10", "cifar100", "digits", "folder")

_DIGITS_TEST_SIZE = 397
_DIGITS_IMAGE_SIZE = 16
_TIMEOUT_S = 10


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDataset:
    """A labelled image data set in memory.

    Attributes:
        name: The name it was loaded by.
        train_images: Pixels, uint8 `(N, H, W, C)`.
        train_labels: Classes in `0..num_classes - 1`, int32 `(N,)`.
        test_images: Pixels, uint8 `(N_test, H, W, C)`.
        test_labels: Classes, int32 `(N_test,)`.
        num_classes: Number of classes K.
        class_names: K names, in the order of the labels.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Checks the arrays.

        Raises:
            ValueError: If one is not as described.
        """
        check_images_and_labels(self.train_images, self.train_labels, self.num_classes)
        check_images_and_labels(
            self.test_images, self.test_labels, self.num_classes, self.image_shape
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(H, W, C)`."""
        return self.train_images.shape[1:]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a SHA-256 over all arrays, their shapes and dtypes."""
        digest = hashlib.sha256()
        arrays = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        for array in arrays:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()[:16]


@contextlib.contextmanager
def _only_errors_logged() -> Iterator[None]:
    """Keeps TFDS from logging, and from redundant warnings beside an error."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@_only_errors_logged()
def load_dataset(
    name: str, data_dir: str | None = None, download: bool = True, image_size: int | None = None
) -> ImageDataset:
    """Loads a data set into memory.

    Args:
        name: "cifar10" or "cifar100" (TensorFlow Datasets), "digits" (embedded in scikit-learn:
            1,797 handwritten digits, a fixed stratified split into 1,400 for training and 397
            for testing, enlarged from 8x8 to 16x16 pixels), or "folder" (your own images).
        data_dir: For CIFAR, the folder of prepared data sets, None for TensorFlow Datasets' own
            default. For "folder", the folder, laid out as `tfds.ImageFolder` has it:
            `train/CLASS/*.png` and `test/CLASS/*.png` (or .jpg), RGB or converted to it, all of
            one size unless image_size is given. "digits" reads no folder.
        download: Whether CIFAR is downloaded and prepared in `data_dir` if it is not there. Data
            that are there are only read, and without `download` nothing touches the network.
        image_size: For "folder", the height and width that images are resized to; their shapes may
            then differ. None leaves them as they are.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: If CIFAR is not there and cannot be, or should not be, downloaded.
        ImportError: If "digits" is asked for and scikit-learn is not installed.
        ValueError: If there is no such data set, or the folder is not as described, or only the
            test images have some class, or image_size is given for another data set.
    """
    if image_size is not None and name != "folder":
        raise ValueError(
            f"--image_size resizes the images of --dataset=folder, not of {name}: leave it out"
        )
    if name in ("cifar10", "cifar100"):
        return _load_tfds(name, data_dir, download)
    if name == "digits":
        return _load_digits()
    if name == "folder":
        return _load_folder(data_dir, image_size)
    raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {name!r}")


def _tensorflow_datasets() -> types.ModuleType:
    """Returns TFDS, which takes seconds to import, and which only some data sets need."""
    require("tensorflow_datasets")
    import tensorflow_datasets

    return tensorflow_datasets


def _load_tfds(name: str, data_dir: str | None, download: bool) -> ImageDataset:
    tfds = _tensorflow_datasets()
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if download and not builder.is_prepared():
            _download(builder)
        train_images, train_labels = _read_split(builder, "train")
        test_images, test_labels = _read_split(builder, "test")
    except AssertionError as error:  # What TFDS raises for data that are not prepared.
        raise _not_available(name, data_dir, "it is not prepared there") from error
    except (OSError, tf.errors.OpError, tfds.download.DownloadError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise _not_available(name, data_dir, " ".join(reason.split())) from error
    return _with_classes_of(builder, name, train_images, train_labels, test_images, test_labels)


def _with_classes_of(
    builder: "tfds.core.DatasetBuilder", name: str, *arrays: np.ndarray
) -> ImageDataset:
    """Returns the data set of the arrays of both splits, with the builder's classes."""
    label = builder.info.features["label"]
    return ImageDataset(
        name, *arrays, num_classes=label.num_classes, class_names=tuple(label.names)
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
    builder.download_and_prepare()


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


def _load_digits() -> ImageDataset:
    require("sklearn")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # Pixels are counts in 0..16; to 0..255 first, so that interpolation rounds only once.
    images = digits.images[..., np.newaxis] * (255 / 16)
    images = tf.image.resize(images, (_DIGITS_IMAGE_SIZE, _DIGITS_IMAGE_SIZE), method="bilinear")
    train_images, test_images, train_labels, test_labels = train_test_split(
        np.rint(images).astype(np.uint8),
        digits.target.astype(np.int32),
        test_size=_DIGITS_TEST_SIZE,
        stratify=digits.target,
        random_state=0,
    )
    return ImageDataset(
        "digits",
        train_images,
        train_labels,
        test_images,
        test_labels,
        num_classes=10,
        class_names=tuple(str(digit) for digit in digits.target_names),
    )


def _load_folder(folder: str | None, image_size: int | None) -> ImageDataset:
    if folder is None or not os.path.isdir(os.path.expanduser(folder)):
        raise ValueError(
            f"--dataset=folder needs --data_dir=PATH to an existing folder, got {folder}"
        )
    builder = _tensorflow_datasets().ImageFolder(folder)
    for split in ("train", "test"):
        if split not in builder.info.splits or not builder.info.splits[split].num_examples:
            raise ValueError(
                f"no images found for the split {split!r} in {folder}: "
                f"expected {split}/CLASS/*.png or *.jpg"
            )
    train_images, train_labels = _read_folder_split(builder, "train", image_size, None)
    test_images, test_labels = _read_folder_split(
        builder, "test", image_size, train_images.shape[1:]
    )
    dataset = _with_classes_of(
        builder, "folder", train_images, train_labels, test_images, test_labels
    )
    untrained = [dataset.class_names[c] for c in np.setdiff1d(test_labels, train_labels)]
    if untrained:
        raise ValueError(
            f"there are test images but no training images of the class {untrained[0]!r} in "
            f"{folder}: add {folder}/train/{untrained[0]}, or remove {folder}/test/{untrained[0]}"
        )
    return dataset


def _read_folder_split(
    builder: "tfds.core.DatasetBuilder",
    split: str,
    image_size: int | None,
    image_shape: tuple[int, ...] | None,
) -> tuple[np.ndarray, np.ndarray]:
    # Decoded here and not by TFDS, whose error does not name the file.
    skip = _tensorflow_datasets().decode.SkipDecoding()
    examples = builder.as_dataset(split=split, decoders={"image": skip})
    images, labels = [], []
    for example in examples.as_numpy_iterator():
        path = example["image/filename"].decode()
        image = _decode_image(example["image"], path)
        if image_size is not None:
            image = _resized(image, image_size)
        image_shape = image_shape or image.shape
        if image.shape != image_shape:
            raise ValueError(
                f"all images must be of one shape: {path} is {image.shape}, "
                f"those before it {image_shape} (H, W, C); give --image_size"
            )
        images.append(image)
        labels.append(example["label"])
    return np.stack(images), np.array(labels, np.int32)


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    resized = tf.image.resize(image, (size, size), antialias=True)
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


def _decode_image(encoded: bytes, path: str) -> np.ndarray:
    try:
        return tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"cannot read {path} as a PNG or JPEG image") from error
