"""Options of the data that a user's networks are of, and the data."""

import dataclasses
import functools
from typing import Any

from fisher_keras.experiments.command_line.flags import check_options, option
from fisher_keras.experiments.names import DATASETS

_data = functools.partial(option, group="data")
_NOT_OF_FUNCTIONS = ("data_dir", "image_size", "train_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Options of the data, also as flags."""

    dataset: str = _data(
        "cifar10",
        f"The data: {', '.join(DATASETS)}; or package.module:function, a function that returns "
        "(train, test), each of them arrays (x, y), a tf.data.Dataset or a keras.utils.PyDataset.",
    )
    data_dir: str | None = _data(
        None,
        "Folder of the data. For CIFAR and tfds:NAME, it is a folder of TensorFlow Datasets "
        "(TFDS), by default the one that TFDS uses. For --dataset=folder, it contains "
        "train/<class>/ and test/<class>/.",
    )
    download: bool = _data(True, "Download data of TFDS if they are not in --data_dir.")
    image_size: int | None = _data(
        None,
        "Height and width that the images of --dataset=folder and tfds:NAME are resized to. "
        "Without it, all images must have the same size.",
        least=1,
    )
    train_size: int | None = _data(
        None,
        "Number of training images, drawn at random. The default is all. To evaluate networks, "
        "give the number of their trainings: the metrics are computed from these images.",
        least=1,
    )

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: If one cannot be used.
        """
        check_options(self)
        if not self.by_function:
            return
        given = [name for name in _NOT_OF_FUNCTIONS if getattr(self, name) is not None]
        if given:
            raise ValueError(f"--{given[0]} is not for --dataset={self.dataset}: leave it out")

    @property
    def by_function(self) -> bool:
        """True if a user's function returns the data."""
        return ":" in self.dataset and not self.dataset.startswith("tfds:")

    def load(self, validation_size: int = 0, seed: int = 0) -> tuple[Any, Any, Any]:
        """Returns the training data, the test data and the data set that they are of.

        Args:
            validation_size: Training images that are held out.
            seed: Draws the images.

        Returns:
            Data as `evaluate_local_minimum` takes them; of a data set, images as networks see them
            and their classes. The data set is None for those of a user's function.

        Raises:
            ValueError: If the data cannot be used.
            OSError: If they cannot be read.
        """
        # Here, as --help must not wait for TensorFlow.
        from fisher_keras.datasets import load_dataset
        from fisher_keras.experiments.training.data import split_dataset
        from fisher_keras.experiments.user_code import load_function

        if self.by_function:
            if validation_size:
                raise ValueError(
                    f"--validation_size is not for --dataset={self.dataset}: leave it out"
                )
            found = load_function(self.dataset, "--dataset")()
            if not isinstance(found, tuple) or len(found) != 2:
                raise ValueError(
                    f"--dataset={self.dataset} must return (train, test), as "
                    f"(x_train, y_train), (x_test, y_test). Given: {type(found).__name__}."
                )
            return *found, None
        data = split_dataset(
            load_dataset(self.dataset, self.data_dir, self.download, self.image_size),
            train_size=self.train_size,
            validation_size=validation_size,
            seed=seed,
        )
        return data.examples("train"), data.examples("test"), data.dataset
