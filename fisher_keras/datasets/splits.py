"""Random parts of a data set: training subsets, the 45k/5k validation split, confusion sets."""

from typing import TypeAlias

import numpy as np

from fisher_keras.datasets.stored_images import StoredImages

Images: TypeAlias = np.ndarray | StoredImages


def subset(
    images: Images, labels: np.ndarray, size: int | None, seed: int
) -> tuple[Images, np.ndarray, Images, np.ndarray]:
    """Draws `size` examples at random, without replacement.

    Args:
        images: `(N, ...)`.
        labels: `(N,)`.
        size: Number of examples, in `1..N`. None takes all of them in their own order.
        seed: The same seed draws the same examples.

    Returns:
        `(images, labels, rest_images, rest_labels)`: the drawn examples, and all others.

    Raises:
        ValueError: If there are not `size` examples.
    """
    if size is None:
        return images, labels, images[:0], labels[:0]
    if not 1 <= size <= len(images):
        raise ValueError(f"cannot take a subset of {size} examples out of {len(images)}")
    order = np.random.default_rng(seed).permutation(len(images))
    chosen, rest = order[:size], order[size:]
    return images[chosen], labels[chosen], images[rest], labels[rest]


def split_validation(
    images: Images, labels: np.ndarray, validation_size: int, seed: int
) -> tuple[Images, np.ndarray, Images, np.ndarray]:
    """Holds out `validation_size` random training examples (Section 7.2: 5k of CIFAR's 50k).

    Args:
        images: `(N, ...)`, of the training split.
        labels: `(N,)`.
        validation_size: Number of examples held out, in `1..N - 1`.
        seed: The same seed holds out the same examples.

    Returns:
        `(train_images, train_labels, validation_images, validation_labels)`.

    Raises:
        ValueError: If nothing would be left on either side.
    """
    if not 1 <= validation_size < len(images):
        raise ValueError(
            f"cannot hold out {validation_size} of {len(images)} examples for validation: "
            f"expected 1 to {len(images) - 1}"
        )
    return subset(images, labels, len(images) - validation_size, seed)


def confusion_set(
    images: Images, size: int, num_classes: int, seed: int
) -> tuple[Images, np.ndarray]:
    """Draws images and gives them random labels (Section 7.1, Scenario I).

    Args:
        images: `(N, ...)`, that are not trained on with their own labels.
        size: Number of examples, in `0..N`. A smaller set of the same seed is part of a larger.
        num_classes: K. Every class is as probable as the others, the right one included.
        seed: The same seed draws the same examples and labels.

    Returns:
        `(images, labels)`; labels are int32.

    Raises:
        ValueError: If there are not `size` images.
    """
    if not 0 <= size <= len(images):
        raise ValueError(
            f"cannot draw a confusion set of {size} images: {len(images)} are neither trained on "
            "nor held out"
        )
    random = np.random.default_rng([seed, 1])  # Not the numbers that `subset` draws.
    chosen = random.permutation(len(images))[:size]
    labels = random.integers(num_classes, size=len(images), dtype=np.int32)[:size]
    return images[chosen], labels
