"""Options of experiments: where their runs are executed, and which ones."""

import dataclasses
import functools

from fisher_keras.experiments.command_line.flags import check_options, option
from fisher_keras.experiments.names import DATASETS, PRESETS

_engine_option = functools.partial(option, group="runs")
_option = functools.partial(option, group="experiment")


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """Options of the engine, also as flags: where runs are executed, and how many at once."""

    num_workers: int | None = _engine_option(
        None, "Runs at once; by default --runs_per_gpu on each GPU, or 1 without GPUs.", least=1
    )
    runs_per_gpu: int = _engine_option(1, "Runs that share a GPU.", least=1)
    scheduler: str | None = _engine_option(
        None,
        "Address of a Dask scheduler, such as tcp://HOST:8786, whose workers execute the runs; "
        "by default they are executed on this machine.",
    )
    dashboard: bool = _engine_option(False, "Show Dask's page, and print its address.")

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
            ValueError: If a value cannot be used.
        """
        check_options(self)
        if self.scheduler is not None and self.num_workers is not None:
            raise ValueError(
                "--num_workers has no effect with --scheduler, whose workers decide: leave it out"
            )


@dataclasses.dataclass(frozen=True)
class ExperimentOptions(EngineOptions):
    """Options of an experiment, also as flags."""

    preset: str = _option(
        "laptop",
        "How large the experiment is. laptop, the default: small networks of few images, hours on "
        "two cores; paper: as in the paper, days on GPUs; smoke: a minute, to see that everything "
        "runs. --dry_run tells the details.",
        choices=PRESETS,
    )
    output_dir: str | None = _option(
        None,
        "Folder of the runs; by default results/<name>_<preset>, with _smoothed or _to_<loss> for "
        "--label_smoothing or --target_loss, and the names of other data and another network.",
    )
    label_smoothing: float = _option(
        0.0,
        "Part of a label that is spread over all classes: above 0 the loss has a minimum, and the "
        "metrics of the networks can be compared.",
        least=0,
    )
    target_loss: float | None = _option(
        None,
        "End each training when the mean loss of its training images is at most this many nats "
        "above the least that their labels allow.",
        above=0,
    )
    arch: str | None = _option(
        None,
        "Another network than the preset's, as for train_cifar: one of the package's in its full "
        "size, keras.applications:NAME or package.module:function.",
    )
    dataset: str | None = _option(
        None, "Other images than the preset's, as for train_cifar.", choices=DATASETS
    )
    image_size: int | None = _option(
        None, "Height and width that the images of --dataset=folder are resized to.", least=1
    )
    train_size: int | None = _option(
        None, "Number of training images, instead of the preset's.", least=1
    )
    validation_size: int | None = _option(
        None, "Number of images held out, instead of the preset's.", least=0
    )
    data_dir: str | None = _option(
        None,
        "TensorFlow Datasets (TFDS) folder that CIFAR is in, by default TFDS's own; for "
        "--dataset=folder the folder with train/<class>/ and test/<class>/.",
    )
    download: bool = _option(True, "Download CIFAR if it is not in --data_dir.")
    dry_run: bool = _option(False, "Only list the runs and estimate their time.")

    @property
    def protocol(self) -> str:
        """The preset, and how training is made to end in minima that can be compared."""
        smoothed = "_smoothed" if self.label_smoothing else ""
        target = "" if self.target_loss is None else f"_to_{self.target_loss:g}"
        names = [self.dataset, self.arch and self.arch.rpartition(":")[2]]
        names += [f"{size}_images" for size in (self.train_size,) if size]
        return "_".join([f"{self.preset}{smoothed}{target}", *filter(None, names)])
