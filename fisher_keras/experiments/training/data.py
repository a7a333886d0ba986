"""The training, confusion, validation and test images of a run, and their batches."""

import dataclasses
import math
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from fisher_keras.classifier.labels import Examples, LabelledData
from fisher_keras.datasets import (
    ImageDataset,
    ImageExamples,
    StoredImages,
    channel_statistics,
    confusion_set,
    evaluation_pipeline,
    load_dataset,
    split_validation,
    subset,
    training_pipeline,
)
from fisher_keras.datasets.pipelines import normalization
from fisher_keras.datasets.stored_images import concatenate
from fisher_keras.experiments.training.config import TrainingConfig

_Part: TypeAlias = tuple[np.ndarray | StoredImages, np.ndarray]  # Images and labels.


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingData:
    """The split of a data set that a run uses.

    Attributes:
        dataset: The data set that the images were drawn from.
        train: Images and labels that are trained on, without the confusion set.
        confusion: Images with random labels that are trained on, too (Section 7.1).
        validation: Images and labels of the learning curves.
        test: Images and labels of the final evaluation.
        mean: The mean of each channel of the training images, in pixel units.
        std: The standard deviation of each channel, likewise.
        batch_size: Images a step.
        num_classes: K for one-hot labels, None for integer ones.
        seed: The seed of the batches.
    """

    dataset: ImageDataset
    train: _Part
    confusion: _Part
    validation: _Part
    test: _Part
    mean: np.ndarray
    std: np.ndarray
    batch_size: int
    num_classes: int | None
    seed: int

    @property
    def in_memory(self) -> bool:
        """True if the images are arrays."""
        return not isinstance(self.train[0], StoredImages)

    @property
    def steps_per_epoch(self) -> int:
        """Training steps an epoch."""
        num_images = len(self.train[0]) + len(self.confusion[0])
        return math.ceil(num_images / self.batch_size)

    def training_batches(self, augmentation: str, first_epoch: int) -> tf.data.Dataset:
        """Returns the endless batches from `first_epoch` on, see `training_pipeline`."""
        return training_pipeline(
            *self._joined("train", "confusion"),
            augmentation=augmentation,
            first_epoch=first_epoch,
            seed=self.seed,
            **self._batching(),
        )

    def evaluation_batches(self, part: str) -> tf.data.Dataset:
        """Returns the batches of "train", "confusion", "validation" or "test", in order."""
        return evaluation_pipeline(*getattr(self, part), **self._batching())

    def examples(self, *parts: str) -> Examples:
        """Returns all images of parts as the network sees them, float32, with their classes.

        Args:
            *parts: Out of "train", "confusion", "validation" and "test".
        """
        images, labels = self._joined(*parts)
        mean, std = normalization(self.mean, self.std)
        if isinstance(images, StoredImages):
            return ImageExamples(images, labels, mean, std)
        return LabelledData((images - mean) / std, labels)

    def check_files(self) -> None:
        """Raises a ValueError if an image that is not in memory cannot be read."""
        for images, _ in () if self.in_memory else (self.train, self.confusion, self.validation):
            for _ in images.batches():
                pass

    def describe(self) -> dict:
        """Returns the data's fingerprint and the numbers of images, as JSON has them."""
        return {
            "fingerprint": self.dataset.fingerprint,
            "train_images": len(self.train[0]),
            "confusion_images": len(self.confusion[0]),
            "validation_images": 0 if self.validation is self.test else len(self.validation[0]),
            "test_images": len(self.test[0]),
        }

    def _joined(self, *parts: str) -> _Part:
        images, labels = zip(*(getattr(self, part) for part in parts), strict=True)
        return concatenate(images), np.concatenate(labels)

    def _batching(self) -> dict:
        return {
            "batch_size": self.batch_size,
            "mean": self.mean,
            "std": self.std,
            "num_classes": self.num_classes,
        }


def load_training_data(config: TrainingConfig) -> TrainingData:
    """Returns the data of a run.

    Args:
        config: The run's configuration, as `resolve` returns it.

    Returns:
        The data.

    Raises:
        ValueError: If the images or labels cannot be used, or are too few.
        OSError: If they cannot be read.
    """
    return split_dataset(
        load_dataset(config.dataset, config.data_dir, config.download, config.image_size),
        train_size=config.train_size,
        confusion_size=config.confusion_size,
        validation_size=config.validation_size,
        batch_size=config.batch_size,
        one_hot=config.label_smoothing > 0,
        seed=config.seed,
    )


def split_dataset(
    dataset: ImageDataset,
    *,
    train_size: int | None,
    confusion_size: int = 0,
    validation_size: int,
    batch_size: int,
    one_hot: bool,
    seed: int,
) -> TrainingData:
    """Draws training, confusion and validation images from a data set's train split.

    Args:
        dataset: The data set to draw from.
        train_size: Training images; None for all that are not held out.
        confusion_size: Images that get random labels, of those that are then left over.
        validation_size: Images that are held out; 0 for none: the learning curves are then those
            of the test images.
        batch_size: Images a step.
        one_hot: Whether labels are one-hot.
        seed: The seed of the draws and the batches.

    Returns:
        The data of the run.

    Raises:
        ValueError: If the images or labels cannot be used, or are too few.
    """
    images, labels = dataset.train_images, dataset.train_labels
    test = dataset.test_images, dataset.test_labels
    available = len(images)
    if validation_size + (train_size or 1) > available:
        raise ValueError(
            f"--train_size={train_size} and --validation_size={validation_size} ask for more than "
            f"the {available} training images of {dataset.name}"
        )
    validation = test
    # Before the others are drawn: so the same images are held out whatever --train_size is.
    if validation_size:
        images, labels, *validation = split_validation(images, labels, validation_size, seed)
    images, labels, left_over, _ = subset(images, labels, train_size, seed)
    # Of these images alone: neither what is held out nor a confusion set may shift the inputs.
    mean, std = channel_statistics(images)
    return TrainingData(
        dataset=dataset,
        train=(images, labels),
        confusion=confusion_set(left_over, confusion_size, dataset.num_classes, seed),
        # Of a tuple it is that tuple itself: by this `describe` sees that nothing is held out.
        validation=tuple(validation),
        test=test,
        mean=mean,
        std=std,
        batch_size=batch_size,
        num_classes=dataset.num_classes if one_hot else None,
        seed=seed,
    )
