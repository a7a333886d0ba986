"""Records of a prepared TensorFlow data set by their index, without reading the others."""

import functools
import pathlib
import re
import struct
import zipfile
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import tensorflow as tf

from fisher_keras.classifier.labels import fingerprint
from fisher_keras.datasets.stored_images import ImageReader
from fisher_keras.extras import require
from fisher_keras.files import replacing

_BATCH_SIZE = 1_000  # Records parsed at a time.


class TFRecords:
    """The records of TFRecord files, which have no index of their own: it is made here.

    Attributes:
        files: The paths.
        index: Of each record the number of its file, where it begins, its length, and the
            checksum that the file holds of it, shape (N, 4), int64.
    """

    def __init__(self, files: Sequence[pathlib.Path], index: np.ndarray | None = None) -> None:
        """Opens the files.

        Args:
            files: The paths.
            index: The index, if it was made before.

        Raises:
            OSError: If a file cannot be read, or is damaged.
        """
        self.files = files
        if index is None:
            index = np.concatenate([self._walk(number) for number in range(len(files))])
        self.index = index

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self.index)

    def __getitem__(self, record: int) -> bytes:
        """Reads a record."""
        number, begin, length, _ = self.index[record].tolist()
        # Opened each time: a data set can have more files than a process may have open.
        with open(self.files[number], "rb", buffering=0) as file:
            return _read(file, begin, length)

    def _walk(self, number: int) -> np.ndarray:
        """Makes the index of a file: before each stands its length, behind it its checksum."""
        rows, begin, path = [], 0, self.files[number]
        size = path.stat().st_size
        with open(path, "rb", buffering=0) as file:
            while begin < size:
                head = _read(file, begin, 8)
                length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
                begin += 12  # The length has a checksum of its own.
                if begin + length + 4 > size:
                    raise OSError(f"{path} is damaged: it ends within a record")
                (checksum,) = struct.unpack("<I", _read(file, begin + length, 4))
                rows.append((number, begin, length, checksum))
                begin += length + 4
        return np.array(rows, np.int64).reshape(-1, 4)


def _read(file: BinaryIO, begin: int, length: int) -> bytes:
    file.seek(begin)
    return file.read(length)


class ImageRecords(ImageReader):
    """The images of one split of a prepared TensorFlow data set.

    Attributes:
        labels: The class of each, shape (N,), int32.
    """

    def __init__(
        self,
        files: Sequence[pathlib.Path],
        keys: tuple[str, str],
        channels: int,
        image_size: int | None,
    ) -> None:
        """Opens the files; reads all of them where their index is not beside them.

        Args:
            files: Paths, TFRecord or ArrayRecord files.
            keys: Names of the image and of the label in a record.
            channels: See `ImageReader`.
            image_size: See `ImageReader`.

        Raises:
            ValueError: If the first image cannot be read.
            OSError: If a file cannot be read, or is damaged.
        """
        self._image_key, label_key = keys
        self._name = f"{files[0]} (and {len(files) - 1} more)" if len(files) > 1 else str(files[0])
        self._records, self.labels = _opened(files, label_key)
        super().__init__(channels, image_size)
        self._files = [(file.name, file.stat().st_size) for file in files]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the names and sizes of all files, the labels and, of TFRecords, their checksums."""
        index = getattr(self._records, "index", np.empty(0))
        return fingerprint([np.array(self._files), self.labels, index, self._geometry])

    def encoded(self, row: tf.Tensor) -> tf.Tensor:
        """Returns the image of a record."""
        # Declared as a pure function: TensorFlow would call it for one image after the other.
        record = tf.numpy_function(self._record, [row], tf.string, stateful=False)
        return _parse(tf.reshape(record, [1]), self._image_key, tf.string)[0]

    def _record(self, row: int) -> bytes:
        return self._records[int(row)]

    def name(self, row: int) -> str:
        """Returns the number of a record, and where it is."""
        return f"record {row} of {self._name}"


def _opened(
    files: Sequence[pathlib.Path], label_key: str
) -> tuple["TFRecords | Sequence[bytes]", np.ndarray]:
    """Returns the records and the labels, from the index beside the files where there is one."""
    stamps = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    # Named after the first file, so that each split and each format has one of its own.
    path = files[0].with_name(re.sub(r"-\d+-of-\d+$", "", files[0].name) + ".index.npz")
    known = _read_index(path, stamps)
    if ".array_record" in files[0].name:
        require("array_record")
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        records = ArrayRecordDataSource([str(file) for file in files])
    else:
        records = TFRecords(files, known.get("index"))
    if "labels" in known:
        return records, known["labels"]
    labels = _read_labels(records, label_key)
    index = {"index": records.index} if isinstance(records, TFRecords) else {}
    try:
        with replacing(path, shared=True) as part, open(part, "wb") as file:
            np.savez(file, stamps=stamps, labels=labels, **index)
    except OSError:
        pass  # A folder that cannot be written: the files are read again at each start.
    return records, labels


def _read_index(path: pathlib.Path, stamps: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Returns the arrays of an index, nothing if it is not there or of other files."""
    try:
        with np.load(path) as arrays:
            known = dict(arrays)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        return {}
    return known if np.array_equal(known.get("stamps"), stamps) else {}


def _read_labels(records: "TFRecords | Sequence[bytes]", key: str) -> np.ndarray:
    """Reads the label of each record, int32; of TFRecords it compares the checksums, too."""
    if isinstance(records, TFRecords):
        files = [str(file) for file in records.files]
        batches = tf.data.TFRecordDataset(files).batch(_BATCH_SIZE)
    else:
        rows = range(len(records))
        parts = (rows[begin : begin + _BATCH_SIZE] for begin in rows[::_BATCH_SIZE])
        batches = ([records[row] for row in part] for part in parts)
    labels = [_parse(batch, key, tf.int64).numpy() for batch in batches]
    return np.concatenate(labels).astype(np.int32)


def _parse(records: tf.Tensor | list[bytes], key: str, dtype: tf.DType) -> tf.Tensor:
    """Returns one value of each of the records."""
    return tf.io.parse_example(records, {key: tf.io.FixedLenFeature([], dtype)})[key]
