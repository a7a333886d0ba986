"""A labelled image data set, in memory or not."""

import dataclasses
import functools
import hashlib

import numpy as np

from fisher_keras.datasets.stored_images import StoredImages
from fisher_keras.datasets.validation import check_images_and_labels


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDataset:
    """A labelled image data set; images that do not fit into memory are `StoredImages`.

    Attributes:
        name: The name it was loaded by.
        train_images: Pixels, uint8 `(N, H, W, C)`.
        train_labels: Classes in `0..num_classes - 1`, int32 `(N,)`.
        test_images: Pixels, uint8 `(N_test, H, W, C)`.
        test_labels: Classes, int32 `(N_test,)`.
        num_classes: K.
        class_names: K names, in the order of the labels.
    """

    name: str
    train_images: np.ndarray | StoredImages
    train_labels: np.ndarray
    test_images: np.ndarray | StoredImages
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

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a SHA-256 over all arrays, their shapes and dtypes.

        Images that are not in memory are in it by their reader's fingerprint alone.
        """
        digest = hashlib.sha256()
        arrays = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        for array in arrays:
            if isinstance(array, StoredImages):
                digest.update(array.reader.fingerprint.encode() + array.rows.tobytes())
                continue
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()[:16]
