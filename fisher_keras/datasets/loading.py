"""Data sets by name: TensorFlow Datasets, a folder of images, scikit-learn's digits."""

import contextlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from absl import logging

from fisher_keras.datasets.folders import load_folder
from fisher_keras.datasets.image_dataset import ImageDataset
from fisher_keras.datasets.tfds_data import load_tfds
from fisher_keras.extras import require

DATASETS = ("cifar10", "cifar100", "digits", "folder", "tfds:NAME")

_DIGITS_TEST_SIZE = 397
_DIGITS_IMAGE_SIZE = 16


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
    """Loads a data set, into memory if its pixels take no more than 256 MiB.

    The images of a larger one stay in their files, see `StoredImages`.

    Args:
        name: "cifar10" or "cifar100" (TensorFlow Datasets, always in memory), "digits" (embedded
            in scikit-learn: 1,797 handwritten digits, a fixed stratified split into 1,400 for
            training and 397 for testing, enlarged from 8x8 to 16x16 pixels), "folder" (your own
            images), or "tfds:NAME", any data set of images and classes of TensorFlow Datasets, as
            "tfds:svhn_cropped". Where it has no test split, or one without labels, the validation
            split takes its place.
        data_dir: For TensorFlow Datasets, the folder of prepared data sets, None for its own
            default. For "folder", the folder, laid out as `tfds.ImageFolder` has it:
            `train/CLASS/*.png` and `test/CLASS/*.png` (or .jpg), RGB or converted to it, all of
            one size unless image_size is given. "digits" reads no folder.
        download: Whether a data set of TensorFlow Datasets is downloaded and prepared in
            `data_dir` if it is not there. Data that are there are only read, and without
            `download` nothing touches the network.
        image_size: For "folder" and "tfds:NAME", the height and width that images are resized to;
            their shapes may then differ. None leaves them as they are.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: If a data set of TensorFlow Datasets is not there, or damaged, and
            cannot be, or should not be, downloaded.
        ImportError: If "digits" is asked for and scikit-learn is not installed.
        ValueError: If there is no such data set, or it is not as described, or only the test
            images of a folder have some class, or image_size is given for another data set.
    """
    of_tfds = name.startswith("tfds:")
    if image_size is not None and name != "folder" and not of_tfds:
        raise ValueError(
            "--image_size resizes the images of --dataset=folder and --dataset=tfds:NAME, not of "
            f"{name}: leave it out"
        )
    if name in ("cifar10", "cifar100") or of_tfds:
        return load_tfds(name, data_dir, download, image_size)
    if name == "digits":
        return _load_digits()
    if name == "folder":
        return load_folder(data_dir, image_size)
    raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {name!r}")


def _load_digits() -> ImageDataset:
    require("sklearn")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # Pixels are counts in 0..16; to 0..255 first, so that interpolation rounds only once.
    images = digits.images[..., np.newaxis] * (255 / 16)
    images = tf.image.resize(images, (_DIGITS_IMAGE_SIZE, _DIGITS_IMAGE_SIZE), method="bilinear")
    train, test, train_labels, test_labels = train_test_split(
        np.rint(images).astype(np.uint8),
        digits.target.astype(np.int32),
        test_size=_DIGITS_TEST_SIZE,
        stratify=digits.target,
        random_state=0,
    )
    splits, names = (train, train_labels, test, test_labels), map(str, digits.target_names)
    return ImageDataset("digits", *splits, num_classes=10, class_names=tuple(names))
