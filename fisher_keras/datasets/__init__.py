"""Image data sets of any size, and the `tf.data` pipelines from them to training batches."""

from fisher_keras.classifier.labels import Examples, LabelledData
from fisher_keras.datasets.image_dataset import ImageDataset
from fisher_keras.datasets.loading import DATASETS, load_dataset
from fisher_keras.datasets.pipelines import (
    AUGMENTATIONS,
    channel_statistics,
    evaluation_pipeline,
    training_pipeline,
)
from fisher_keras.datasets.splits import confusion_set, split_validation, subset
from fisher_keras.datasets.stored_images import ImageExamples, ImageReader, StoredImages
from fisher_keras.datasets.validation import check_images_and_labels

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Examples",
    "ImageDataset",
    "ImageExamples",
    "ImageReader",
    "LabelledData",
    "StoredImages",
    "channel_statistics",
    "check_images_and_labels",
    "confusion_set",
    "evaluation_pipeline",
    "load_dataset",
    "split_validation",
    "subset",
    "training_pipeline",
]
