"""Options of experiments: where their runs are executed, and which ones."""

import dataclasses
import functools

from fisher_keras.experiments.command_line.flags import check_options, like, option
from fisher_keras.experiments.names import DATASETS, NUM_SEEDS, PRESETS, folder_name
from fisher_keras.experiments.training.config import TrainingConfig

_engine_option = functools.partial(option, group="runs")
_option = functools.partial(option, group="experiment")


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """Options of the engine, also as flags: where runs are executed, and how many at once."""

    num_workers: int | None = _engine_option(
        None,
        "Number of runs that are executed at the same time. The default is --runs_per_gpu "
        "for each GPU, or 1 without GPUs.",
        least=1,
    )
    runs_per_gpu: int = _engine_option(1, "Number of runs that share a GPU.", least=1)
    scheduler: str | None = _engine_option(
        None,
        "Address of a Dask scheduler, such as tcp://HOST:8786. Its workers then execute "
        "the runs. Without it, the runs are executed on this machine.",
    )
    dashboard: bool = _engine_option(False, "Show the web page of Dask, and print its address.")

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
            ValueError: If a value cannot be used.
        """
        check_options(self)
        for name, usual in (("num_workers", None), ("runs_per_gpu", 1)):
            if self.scheduler is not None and getattr(self, name) != usual:
                raise ValueError(
                    f"--{name} has no effect with --scheduler, whose workers decide: leave it out"
                )


@dataclasses.dataclass(frozen=True)
class ExperimentOptions(EngineOptions):
    """Options of an experiment, also as flags."""

    preset: str = _option(
        "laptop",
        "Size of the experiment. laptop: small networks and few images, hours on two "
        "cores. paper: as in the paper, days on GPUs. smoke: a minute, to see that "
        "everything runs. --dry_run shows the details.",
        choices=PRESETS,
    )
    output_dir: str | None = _option(
        None,
        "Folder of the runs. The default is results/<name>_<preset>; its name ends in "
        "_smoothed with --label_smoothing, in _to_<loss> with --target_loss, and in the names of "
        "other data and of another network.",
    )
    label_smoothing: float = like(TrainingConfig, "label_smoothing", "experiment")
    target_loss: float | None = like(TrainingConfig, "target_loss", "experiment")
    arch: str | None = _option(
        None,
        "Another network than that of the preset: a name that train_cifar takes, for the network "
        "in its full size, keras.applications:NAME or package.module:function.",
    )
    dataset: str | None = _option(None, "Other images than those of the preset.", choices=DATASETS)
    image_size: int | None = like(TrainingConfig, "image_size", "experiment")
    train_size: int | None = _option(
        None, "Number of training images, instead of the preset's.", least=1
    )
    validation_size: int | None = _option(
        None, "Number of images held out, instead of the preset's.", least=0
    )
    first_seed: int = _option(
        0, "The first seed of the networks of each kind.", least=0, below=NUM_SEEDS
    )
    num_seeds: int | None = _option(
        None, "Number of networks of each kind, instead of the preset's.", least=1
    )
    data_dir: str | None = like(TrainingConfig, "data_dir", "experiment")
    download: bool = like(TrainingConfig, "download", "experiment")
    dry_run: bool = _option(
        False,
        "Only list the runs, and estimate their times. A few steps of each kind of "
        "network are measured for this.",
    )

    @property
    def protocol(self) -> str:
        """The preset, and how training is made to end in minima that can be compared."""
        smoothed = "_smoothed" if self.label_smoothing else ""
        target = "" if self.target_loss is None else f"_to_{self.target_loss:g}"
        names = [folder_name(name) for name in (self.dataset, self.arch) if name]
        sizes = (self.train_size, "images"), (self.image_size, "pixels")
        names += [f"{size}_{unit}" for size, unit in sizes if size]
        names += [] if self.validation_size is None else [f"{self.validation_size}_held_out"]
        return "_".join([f"{self.preset}{smoothed}{target}", *filter(None, names)])
