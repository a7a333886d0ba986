"""Images in a folder of your own: `train/CLASS/*.png` and `test/CLASS/*.jpg`."""

import functools
import os
import random

import numpy as np
import tensorflow as tf

from fisher_keras.classifier.labels import fingerprint
from fisher_keras.datasets.image_dataset import ImageDataset
from fisher_keras.datasets.stored_images import ImageReader, StoredImages, in_memory_if_small

_ENDINGS = (".jpg", ".jpeg", ".png")


class ImageFiles(ImageReader):
    """Images in files below a folder; decoding makes them RGB."""

    def __init__(self, folder: str, paths: np.ndarray, image_size: int | None) -> None:
        """Looks at the first one.

        Args:
            folder: The folder.
            paths: Path of each file below it, bytes.
            image_size: See `ImageReader`.

        Raises:
            ValueError: If the first image cannot be read.
        """
        self._folder = folder
        with tf.device("CPU:0"):
            self._paths = tf.constant(paths)
        super().__init__(3, image_size)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the names and sizes of all files, in their order, and the shape of the images."""
        sizes = [os.path.getsize(self.name(row)) for row in range(len(self._paths))]
        return fingerprint([self._paths.numpy(), np.array(sizes), self._geometry])

    def encoded(self, row: tf.Tensor) -> tf.Tensor:
        """Returns the content of a file."""
        path = tf.strings.join([self._folder, tf.gather(self._paths, row)], separator=os.sep)
        return tf.io.read_file(path)

    def name(self, row: int) -> str:
        """Returns the path of a file."""
        return os.path.join(self._folder, os.fsdecode(self._paths[row].numpy()))


def load_folder(folder: str | None, image_size: int | None) -> ImageDataset:
    """Loads a folder of images; see `load_dataset`."""
    if folder is None or not os.path.isdir(os.path.expanduser(folder)):
        raise ValueError(
            f"--dataset=folder needs --data_dir=PATH to an existing folder, got {folder}"
        )
    folder = os.path.expanduser(folder)
    # Also those of splits that are not used: they number the classes.
    class_names = sorted({name for split in _folders(folder) for name in _folders(folder, split)})
    (train_paths, train_labels), (test_paths, test_labels) = (
        _list_split(folder, split, class_names) for split in ("train", "test")
    )
    untrained = np.setdiff1d(range(len(class_names)), train_labels)
    if len(untrained):
        name = class_names[untrained[0]]
        raise ValueError(
            f"there are no training images of the class {name!r} in {folder}: add images to "
            f"{folder}/train/{name}, or remove each folder {name}"
        )
    # One reader for both: so the test images have to be of the shape of the training images.
    reader = ImageFiles(folder, np.concatenate([train_paths, test_paths]), image_size)
    train, test = np.split(np.arange(len(train_paths) + len(test_paths)), [len(train_paths)])
    train, test = in_memory_if_small(StoredImages(reader, train), StoredImages(reader, test))
    splits = train, train_labels, test, test_labels
    names = tuple(class_names)
    return ImageDataset("folder", *splits, num_classes=len(names), class_names=names)


def _folders(*parts: str) -> list[str]:
    path = os.path.join(*parts)
    names = [name for name in os.listdir(path) if os.path.isdir(os.path.join(path, name))]
    # What systems and notebooks put into any folder is no class: __MACOSX, .ipynb_checkpoints.
    return [name for name in names if not name.startswith((".", "__"))]


def _list_split(folder: str, split: str, class_names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the paths of a split below the folder, bytes, and their classes, int32."""
    paths, labels = [], []
    for label, class_name in enumerate(class_names):
        path = os.path.join(folder, split, class_name)
        names = sorted(os.listdir(path)) if os.path.isdir(path) else []
        names = [name for name in names if name.lower().endswith(_ENDINGS)]
        paths += [os.fsencode(os.path.join(split, class_name, name)) for name in names]
        labels += [label] * len(names)
    if not paths:
        raise ValueError(
            f"no images found for the split {split!r} in {folder}: "
            f"expected {split}/CLASS/*.png or *.jpg"
        )
    # The order that `tfds.ImageFolder` gives: rows in results of other versions stay the same.
    order = list(range(len(paths)))
    random.Random(split).shuffle(order)
    return np.array(paths)[order], np.array(labels, np.int32)[order]
