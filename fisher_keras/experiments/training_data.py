"""The images of one training run: which are trained on, which validate, and their batches."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from fisher_keras.datasets import (
    ImageDataset,
    channel_statistics,
    check_images_and_labels,
    evaluation_pipeline,
    split_validation,
    subset,
    training_pipeline,
)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingData:
    """The split of a data set that a run uses.

    Attributes:
        dataset: what it was drawn from.
        train: images and labels that are trained on.
        validation: images and labels of the learning curves.
        test: images and labels of the final evaluation.
        mean: of each channel of the training images, in pixel units.
        std: likewise.
        batch_size: images a step.
        num_classes: K for one-hot labels, None for integer ones.
        seed: of the batches.
    """

    dataset: ImageDataset
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    mean: np.ndarray
    std: np.ndarray
    batch_size: int
    num_classes: int | None
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Training steps an epoch."""
        return math.ceil(len(self.train[0]) / self.batch_size)

    def training_batches(self, augmentation: str, first_epoch: int) -> tf.data.Dataset:
        """Returns the endless batches from `first_epoch` on, see `training_pipeline`."""
        return training_pipeline(
            *self.train,
            augmentation=augmentation,
            first_epoch=first_epoch,
            seed=self.seed,
            **self._batching(),
        )

    def evaluation_batches(self, part: str) -> tf.data.Dataset:
        """Returns the batches of "train", "validation" or "test", in order and as they are."""
        return evaluation_pipeline(*getattr(self, part), **self._batching())

    def describe(self) -> dict:
        """Returns the data's fingerprint and the numbers of images, as JSON has them."""
        return {
            "fingerprint": self.dataset.fingerprint,
            "train_images": len(self.train[0]),
            "validation_images": 0 if self.validation is self.test else len(self.validation[0]),
            "test_images": len(self.test[0]),
        }

    def _batching(self) -> dict:
        return {
            "batch_size": self.batch_size,
            "mean": self.mean,
            "std": self.std,
            "num_classes": self.num_classes,
        }


def split_dataset(
    dataset: ImageDataset,
    *,
    train_size: int | None,
    validation_size: int,
    batch_size: int,
    one_hot: bool,
    seed: int,
) -> TrainingData:
    """Draws training and validation images from a data set's train split.

    Args:
        dataset: to draw from.
        train_size: training images; None for all that are not held out.
        validation_size: images that are held out; 0 for none: the learning curves are then those
            of the test images.
        batch_size: images a step.
        one_hot: whether labels are one-hot.
        seed: of the draws and the batches.

    Returns:
        The data of the run.

    Raises:
        ValueError: if the images or labels cannot be used, or are too few.
    """
    parts = [
        (dataset.train_images, dataset.train_labels),
        (dataset.test_images, dataset.test_labels),
    ]
    for part in parts:
        check_images_and_labels(*part, dataset.num_classes, dataset.image_shape)
    (images, labels), test = parts
    available = len(images)
    if validation_size + (train_size or 1) > available:
        raise ValueError(
            f"--train_size={train_size} and --validation_size={validation_size} ask for more than "
            f"the {available} training images of {dataset.name}"
        )
    validation = test
    if validation_size:
        images, labels, *validation = split_validation(images, labels, validation_size, seed)
    images, labels, _, _ = subset(images, labels, train_size, seed)
    mean, std = channel_statistics(images)
    return TrainingData(
        dataset=dataset,
        train=(images, labels),
        validation=tuple(validation),
        test=test,
        mean=mean,
        std=std,
        batch_size=batch_size,
        num_classes=dataset.num_classes if one_hot else None,
        seed=seed,
    )
