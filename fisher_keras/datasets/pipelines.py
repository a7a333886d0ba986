"""From arrays to batches: normalization, augmentation and the order of the examples.

Everything random about an epoch is a pure function of `(seed, epoch)`. The shuffle order, and each
image's crop and flip, come out of stateless random operations, never out of a generator that
remembers how often it was asked; so a run that is killed and resumed sees the same batches.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from fisher_keras.arguments import one_of, whole_number
from fisher_keras.datasets.stored_images import StoredImages
from fisher_keras.datasets.validation import check_images_and_labels

# Of images that are not in memory, the statistics are those of so many.
_STATISTICS_IMAGES = 2048


class _Scheme(NamedTuple):
    padding: int  # pixels of zeros on each side, to crop from
    mirror: bool  # flip left to right with probability 1/2


# Section 7.1, Scenario II.
_SCHEMES = {
    "no-aug": _Scheme(padding=0, mirror=False),
    "flip-only": _Scheme(padding=0, mirror=True),
    "1-crop-f": _Scheme(padding=1, mirror=True),
    "4-crop-f": _Scheme(padding=4, mirror=True),
}
AUGMENTATIONS = tuple(_SCHEMES)


def channel_statistics(images: np.ndarray | StoredImages) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel.

    Args:
        images: `(N, H, W, C)`, pixels in 0..255. Of images that are not in memory, 2,048 are read,
            evenly spread.

    Returns:
        `(mean, std)`: float64 of shape `(C,)`, in pixel units. A constant channel has std 0.
    """
    if isinstance(images, StoredImages):
        count = min(len(images), _STATISTICS_IMAGES)
        some = images[np.linspace(0, len(images) - 1, count).astype(int)]
        moments = [
            [np.mean(np.float64(batch) ** power, axis=(1, 2)) for power in (1, 2)]
            for batch in some.batches()
        ]
        mean, mean_square = (
            np.concatenate(parts).mean(axis=0) for parts in zip(*moments, strict=True)
        )
        # Rounding must not make the variance of a constant channel negative.
        return mean, np.sqrt(np.maximum(mean_square - mean**2, 0))
    mean = images.mean(axis=(0, 1, 2), dtype=np.float64)
    # Image by image: the whole training set in float64 would take over a gigabyte.
    variances = [np.mean((image - mean) ** 2, axis=(0, 1)) for image in images]
    return mean, np.sqrt(np.mean(variances, axis=0))


def normalization(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and std as images are normalized with them, float32: a std of 0 counts as 1."""
    return np.asarray(mean, np.float32), np.asarray(np.where(np.equal(std, 0), 1, std), np.float32)


def training_pipeline(
    images: np.ndarray | StoredImages,
    labels: np.ndarray,
    *,
    batch_size: int,
    augmentation: str,
    mean: np.ndarray,
    std: np.ndarray,
    seed: int,
    num_classes: int | None = None,
    first_epoch: int = 0,
) -> tf.data.Dataset:
    """Endless shuffled, augmented, normalized batches; use `steps_per_epoch=ceil(N / batch_size)`.

    An epoch visits every image once, and its last batch is short where `batch_size` does not
    divide N. Epoch e is a pure function of `(seed, e)`: with `first_epoch=e` the pipeline yields,
    bit for bit, what one started at epoch 0 yields from epoch e on.

    Args:
        images: `(N, H, W, C)`, integers or floats. Those that are not in memory are read and
            decoded in parallel, ahead of their use.
        labels: `(N,)`, integers.
        batch_size: Images a batch.
        augmentation: One of `AUGMENTATIONS`, drawn for each image on its own.
        mean: `(C,)`, of the training split (`channel_statistics`).
        std: `(C,)`, likewise; a constant channel's 0 counts as 1.
        seed: Any integer.
        num_classes: K, for one-hot labels; None for integer labels.
        first_epoch: Epoch to start from.

    Returns:
        Dataset of `(batch, labels)`: float32 `(B, H, W, C)`, and float32 `(B, K)` one-hot or
        int32 `(B,)`.

    Raises:
        ValueError: If an argument is not as described.
    """
    check_images_and_labels(images, labels, num_classes)
    batch_size = whole_number("batch_size", batch_size, 1)
    first_epoch = whole_number("first_epoch", first_epoch, 0)
    scheme = _SCHEMES[one_of("augmentation", augmentation, AUGMENTATIONS)]

    def epoch_plan(epoch: tf.Tensor) -> tf.data.Dataset:
        shuffle_seed, augmentation_seed = tf.unstack(tf.random.split([seed, epoch]))
        order = tf.random.experimental.stateless_shuffle(tf.range(len(images)), shuffle_seed)
        offsets, flips = _draw(scheme, len(images), augmentation_seed)
        # Batched here, inside the epoch, so that no batch mixes two of them.
        return tf.data.Dataset.from_tensor_slices((order, offsets, flips)).batch(batch_size)

    # The plan of an epoch holds only numbers; the work on images is mapped over the plans of all
    # epochs, so that it runs ahead across the end of an epoch.
    plans = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max).flat_map(epoch_plan)
    # In the ResNet paper's order: normalized first, so that the zeros of the padding are mean
    # pixels and not black ones.
    augment = functools.partial(_crop_and_flip, scheme)
    return _fetched(plans, images, labels, batch_size, mean, std, num_classes, augment)


def evaluation_pipeline(
    images: np.ndarray | StoredImages,
    labels: np.ndarray,
    *,
    batch_size: int,
    mean: np.ndarray,
    std: np.ndarray,
    num_classes: int | None = None,
) -> tf.data.Dataset:
    """Normalized batches of all images, once and in order.

    Args:
        images: `(N, H, W, C)`, integers or floats.
        labels: `(N,)`, integers.
        batch_size: Images a batch; the last one may be short.
        mean: `(C,)`, of the training split (`channel_statistics`).
        std: `(C,)`, likewise; a constant channel's 0 counts as 1.
        num_classes: K, for one-hot labels; None for integer labels.

    Returns:
        Dataset of `(batch, labels)`, as from `training_pipeline`.

    Raises:
        ValueError: If an argument is not as described.
    """
    check_images_and_labels(images, labels, num_classes)
    batch_size = whole_number("batch_size", batch_size, 1)
    plans = tf.data.Dataset.zip((tf.data.Dataset.range(len(images)).batch(batch_size),))
    return _fetched(plans, images, labels, batch_size, mean, std, num_classes)


def _fetched(
    plans: tf.data.Dataset,
    images: np.ndarray | StoredImages,
    labels: np.ndarray,
    batch_size: int,
    mean: np.ndarray,
    std: np.ndarray,
    num_classes: int | None,
    augment: Callable[..., tf.Tensor] | None = None,
) -> tf.data.Dataset:
    """Returns normalized images and (one-hot) labels of plans.

    A plan is a tuple of the indices of a batch, shape `(B,)`, and of what `augment`, if there is
    one, gets after the images.
    """
    channels = images.shape[-1:]
    if np.shape(mean) != channels or np.shape(std) != channels:
        raise ValueError(
            f"mean and std must be of shape {channels}, one number a channel, "
            f"got {np.shape(mean)} and {np.shape(std)}"
        )
    mean, std = normalization(mean, std)
    stored = isinstance(images, StoredImages)
    # Eager tensors are captured by reference: as NumPy arrays they would be copied into the graph
    # as constants, which may not pass 2 GB. On the CPU, where tf.data runs.
    with tf.device("CPU:0"):
        if not stored:
            images = tf.convert_to_tensor(images)
        labels = tf.convert_to_tensor(labels, tf.int32)

    def prepare(plan: tuple[tf.Tensor, ...], *pixels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        indices, *changes = plan
        (batch,) = pixels or (tf.gather(images, indices),)
        batch = (tf.cast(batch, tf.float32) - mean) / std
        batch = augment(batch, *changes) if augment else batch
        classes = tf.gather(labels, indices)
        # Of a batch alone: those of all images could take more memory than the images.
        return batch, classes if num_classes is None else tf.one_hot(classes, num_classes)

    parts = (plans,)
    if stored:
        rows = plans.map(lambda indices, *_: tf.cast(indices, tf.int64))
        parts = plans, images.dataset(rows, batch_size)
    return (
        tf.data.Dataset.zip(parts)
        .map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def _draw(scheme: _Scheme, count: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws crop offsets, int32 `(count, 2)` in `0..2 * padding`, and flips, bool `(count,)`."""
    offset_seed, flip_seed = tf.unstack(tf.random.split(seed))
    offsets = tf.random.stateless_uniform(
        (count, 2), offset_seed, maxval=2 * scheme.padding + 1, dtype=tf.int32
    )
    flips = tf.random.stateless_uniform((count,), flip_seed, maxval=2, dtype=tf.int32) == 1
    return offsets, flips if scheme.mirror else tf.zeros_like(flips)


def _crop_and_flip(
    scheme: _Scheme, images: tf.Tensor, offsets: tf.Tensor, flips: tf.Tensor
) -> tf.Tensor:
    """Cuts each of `(B, H, W, C)` images at its own offset out of its padded self."""
    height, width = images.shape[1:3]
    sides = 2 * [scheme.padding]
    padded = tf.pad(images, [[0, 0], sides, sides, [0, 0]])
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    # A flipped image is one whose columns are read from the right.
    columns = tf.where(flips[:, tf.newaxis], columns[:, ::-1], columns)
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(cropped, columns, axis=2, batch_dims=1)
