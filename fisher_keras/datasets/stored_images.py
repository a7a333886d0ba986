"""Images in files or records, of which only those are in memory that are being read."""

import abc
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from fisher_keras.classifier.labels import Examples, LabelledData, fingerprint

# Data sets of fewer bytes of pixels are read into memory at once.
IN_MEMORY_BYTES = 2**28
_BATCH_SIZE = 256  # Images read at a time where all of them are.


class ImageReader(abc.ABC):
    """Encoded images of which each can be read by its row; a subclass says where they are.

    Attributes:
        image_shape: `(H, W, C)` of the decoded images.
    """

    def __init__(self, channels: int, image_size: int | None) -> None:
        """Finds the shape of the images.

        Args:
            channels: C, which decoding gives whatever a file has.
            image_size: Height and width that images are resized to; None leaves them as they are:
                all of them then have the shape of the first one.

        Raises:
            ValueError: If the first image cannot be read.
        """
        self._channels, self._size = channels, image_size
        self.image_shape = (image_size, image_size, channels)
        if image_size is None:
            self.image_shape = self._read_one(0).shape

    @property
    def _geometry(self) -> np.ndarray:
        """Shape and resizing of the decoded images, for the fingerprint."""
        return np.array([*self.image_shape, self._size or 0])

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A text that is another one for other images, without reading them."""

    @abc.abstractmethod
    def encoded(self, row: tf.Tensor) -> tf.Tensor:
        """Returns the bytes of an image, a string; in the graph that is being traced."""

    @abc.abstractmethod
    def name(self, row: int) -> str:
        """Returns the name of an image, for errors."""

    def decode(self, row: tf.Tensor) -> tf.Tensor:
        """Reads an image in the graph that is being traced.

        Args:
            row: Row of the image, int64, shape ().

        Returns:
            Pixels, uint8, shape (H, W, C).
        """
        image = tf.io.decode_image(self.encoded(row), self._channels, expand_animations=False)
        image.set_shape([None, None, self._channels])
        if self._size is not None:
            image = tf.image.resize(image, self.image_shape[:2], antialias=True)
            image = tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
        return tf.ensure_shape(image, self.image_shape)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Reads images.

        Args:
            rows: Their rows, shape (n,), integers.

        Returns:
            Pixels, uint8, shape (n, H, W, C).

        Raises:
            ValueError: If one cannot be read, or is of another shape.
        """
        try:
            return self._read_batch(tf.constant(rows, tf.int64)).numpy()
        except tf.errors.OpError:
            self.check(rows)
            raise

    def check(self, rows: np.ndarray) -> None:
        """Raises a ValueError at the first of some images that cannot be read.

        TensorFlow's own errors, in the middle of a training, do not name the image.
        """
        for row in rows:
            shape = self._read_one(row).shape
            if self._size is None and shape != self.image_shape:
                raise ValueError(
                    f"all images must be of one shape: {self.name(row)} is {shape}, those before "
                    f"it {self.image_shape} (H, W, C); give --image_size"
                )

    @functools.cached_property
    def _read_batch(self) -> tf.types.experimental.PolymorphicFunction:
        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)])
        def read_batch(rows: tf.Tensor) -> tf.Tensor:
            with tf.device("CPU:0"):
                return tf.map_fn(self.decode, rows, fn_output_signature=tf.uint8)

        return read_batch

    def _read_one(self, row: int) -> np.ndarray:
        try:
            encoded = self.encoded(tf.constant(row, tf.int64))
            return tf.io.decode_image(encoded, self._channels, expand_animations=False).numpy()
        except (tf.errors.OpError, OSError, IndexError) as error:
            raise ValueError(f"cannot read {self.name(row)} as a PNG or JPEG image") from error


@dataclasses.dataclass(frozen=True, eq=False)
class StoredImages:
    """N images that are not in memory; `images[rows]` are some of them, still not read.

    Attributes:
        reader: Reads them.
        rows: Row of each in the reader, shape (N,), int64.
    """

    reader: ImageReader
    rows: np.ndarray

    def __len__(self) -> int:
        """Returns N."""
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray | slice) -> "StoredImages":
        """Returns some of the images."""
        return StoredImages(self.reader, self.rows[rows])

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, H, W, C)`."""
        return (len(self), *self.reader.image_shape)

    def read(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Reads images; see `ImageReader.read`."""
        return self.reader.read(self.rows[rows])

    def batches(self) -> Iterator[np.ndarray]:
        """Reads all images, a few at a time."""
        for begin in range(0, len(self), _BATCH_SIZE):
            yield self.read(slice(begin, begin + _BATCH_SIZE))

    def dataset(self, batches_of_rows: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
        """Reads and decodes images in parallel, ahead of their use.

        Args:
            batches_of_rows: Rows of the images of each batch, integers, shape (B,).
            batch_size: The largest B.

        Returns:
            The images of each batch, uint8, shape (B, H, W, C).
        """
        with tf.device("CPU:0"):
            of_reader = tf.constant(self.rows)

        def decode(row: tf.Tensor) -> tf.Tensor:
            # An image without pixels fills up a short batch, so that all are of one size below.
            return tf.cond(
                row < 0,
                lambda: tf.zeros(self.shape[1:], tf.uint8),
                lambda: self.reader.decode(tf.gather(of_reader, row)),
            )

        # Single images are the work that is shared out: a batch in each thread would be much.
        images = (
            batches_of_rows.map(
                lambda rows: tf.pad(rows, [[0, batch_size - tf.size(rows)]], constant_values=-1)
            )
            .unbatch()
            .map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(batch_size, drop_remainder=True)
        )
        batches = tf.data.Dataset.zip(batches_of_rows, images).map(
            lambda rows, images: images[: tf.size(rows)]
        )
        # Which `unbatch` has lost: without it, Keras warns that the data have run out.
        count = int(batches_of_rows.cardinality())
        return (
            batches if count < 0 else batches.apply(tf.data.experimental.assert_cardinality(count))
        )


@dataclasses.dataclass(frozen=True, eq=False)
class ImageExamples(Examples):
    """Stored images as a network sees them, with their classes.

    Attributes:
        images: The images.
        classes: Shape (N,), integers.
        mean: `(C,)`, float32, in pixel units.
        std: `(C,)`, likewise, none of them 0.
    """

    images: StoredImages
    classes: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """The classes."""
        return self.classes

    def take(self, rows: np.ndarray | slice) -> LabelledData:
        """Reads some of the examples, normalized: float32."""
        return LabelledData((self.images.read(rows) - self.mean) / self.std, self.classes[rows])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the reader's fingerprint, the rows, the classes and the normalization."""
        reader = np.array(self.images.reader.fingerprint)
        return fingerprint([reader, self.images.rows, self.classes, self.mean, self.std])


def concatenate(parts: Sequence[np.ndarray | StoredImages]) -> np.ndarray | StoredImages:
    """Joins images, arrays or stored ones of one reader."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return StoredImages(parts[0].reader, np.concatenate([part.rows for part in parts]))


def in_memory_if_small(*parts: StoredImages) -> list[np.ndarray | StoredImages]:
    """Reads the images of a small data set into memory, and leaves others where they are."""
    if sum(math.prod(part.shape) for part in parts) > IN_MEMORY_BYTES:
        return list(parts)
    return [np.concatenate(list(part.batches())) for part in parts]
