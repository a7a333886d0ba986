"""What all experiments of trained networks share: their flags, and how their runs are started."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence

import tensorflow as tf
from absl import flags

from fisher_keras.datasets import load_dataset
from fisher_keras.experiments.runs.engine import EngineOptions
from fisher_keras.experiments.runs.presets import PRESETS, Preset
from fisher_keras.experiments.runs.runner import run_experiment
from fisher_keras.experiments.runs.store import ExperimentStore, Run
from fisher_keras.experiments.runs.trained_run import carry_out

FLAGS_GROUP = "experiment"


@dataclasses.dataclass(frozen=True)
class ExperimentOptions(EngineOptions):
    """How and where an experiment is done.

    Attributes:
        preset: one of `PRESETS`.
        output_dir: the folder of its store; None for `results/<experiment>_<preset>`.
        data_dir: where the data sets are, see `load_dataset`.
        download: whether they may be downloaded.
        dry_run: whether to only list the runs with an estimate of their time.
    """

    preset: str = "paper"
    output_dir: str | None = None
    data_dir: str | None = None
    download: bool = False
    dry_run: bool = False


def define_experiment_flags() -> None:
    """Defines a flag for each field of `ExperimentOptions`."""
    group, usual = {"module_name": FLAGS_GROUP}, ExperimentOptions()
    flags.DEFINE_enum("preset", usual.preset, PRESETS, "How large the experiment is.", **group)
    flags.DEFINE_string(
        "output_dir", None, "Folder of the runs; by default results/<name>_<preset>.", **group
    )
    flags.DEFINE_string("data_dir", None, "As for train_cifar.", **group)
    flags.DEFINE_boolean("download", usual.download, "Download data that are not there.", **group)
    define_engine_flags(FLAGS_GROUP)
    flags.DEFINE_boolean(
        "dry_run", usual.dry_run, "Only list the runs and estimate their time.", **group
    )


def define_engine_flags(group: str) -> None:
    """Defines a flag for each field of `EngineOptions`.

    Args:
        group: that --help lists them under.
    """
    usual = EngineOptions()
    flags.DEFINE_integer(
        "num_workers",
        None,
        "Runs at once; by default --runs_per_gpu on each GPU, or 1 without GPUs.",
        module_name=group,
    )
    flags.DEFINE_integer(
        "runs_per_gpu", usual.runs_per_gpu, "Runs that share a GPU.", module_name=group
    )
    flags.DEFINE_string(
        "scheduler",
        None,
        "Address of a Dask scheduler, such as tcp://HOST:8786, whose workers carry out the runs.",
        module_name=group,
    )
    flags.DEFINE_boolean(
        "dashboard", usual.dashboard, "Show Dask's page, and its address.", module_name=group
    )


def experiment_options() -> ExperimentOptions:
    """Returns the options that the parsed flags ask for.

    Raises:
        ValueError: if a value cannot be used.
    """
    return options_of(ExperimentOptions)


def options_of(kind: type[EngineOptions]) -> EngineOptions:
    """Returns options, each field with the value of the parsed flag of its name."""
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: flags.FLAGS[name].value for name in names})


def free_gpus() -> list[str]:
    """Returns the GPUs that runs may use, as `CUDA_VISIBLE_DEVICES` names them.

    This process leaves their memory to the runs.
    """
    number = len(tf.config.list_physical_devices("GPU"))
    tf.config.set_visible_devices([], "GPU")
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:number] if named else [str(index) for index in range(number)]


def absolute(path: str | None) -> str | None:
    """Returns a path as workers with another working directory find it; URLs stay as they are."""
    if path is None or "://" in path:
        return path
    return os.path.abspath(os.path.expanduser(path))


def carry_out_runs(
    name: str,
    runs: Sequence[Run],
    preset: Preset,
    options: ExperimentOptions,
) -> ExperimentStore:
    """Prints the preset and carries out the runs of an experiment.

    Args:
        name: of the experiment.
        runs: made by `trained_run`.
        preset: that they follow.
        options: how and where.

    Returns:
        The store.

    Raises:
        ValueError: if an option or a data set cannot be used.
        OSError: if a data set or the store cannot be read or written.
        FailedRunsError: if runs failed; all others are finished.
    """
    print(f"{name}, preset {options.preset}: {preset}", flush=True)
    store = ExperimentStore(options.output_dir or f"results/{name}_{options.preset}")
    gpus = free_gpus()
    if not options.dry_run:
        finished = {record["key"] for record in store.records()}
        _check_datasets([run for run in runs if run.key not in finished], options)
    run_experiment(
        runs,
        functools.partial(
            carry_out, data_dir=absolute(options.data_dir), download=options.download
        ),
        store,
        options,
        gpus=gpus,
        dry_run=options.dry_run,
        run_estimate_s=preset.run_estimate_s,
    )
    return store


def preset_of(presets: Mapping[str, Preset], options: ExperimentOptions) -> Preset:
    """Returns the preset that was asked for.

    Raises:
        ValueError: if there is none of that name.
    """
    if options.preset not in presets:
        raise ValueError(f"--preset must be one of {', '.join(presets)}, got {options.preset!r}")
    return presets[options.preset]


def _check_datasets(runs: Sequence[Run], options: ExperimentOptions) -> None:
    """Loads each data set once: an error comes before all runs, a download before workers race."""
    for dataset in sorted({run.config["training"]["dataset"] for run in runs}):
        load_dataset(dataset, options.data_dir, options.download)
