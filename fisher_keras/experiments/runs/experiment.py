"""Start of every experiment of trained networks."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from fisher_keras.datasets import ImageDataset, load_dataset
from fisher_keras.experiments.runs.presets import Preset
from fisher_keras.experiments.runs.run_options import ExperimentOptions
from fisher_keras.experiments.runs.runner import print_plan, run_experiment
from fisher_keras.experiments.runs.store import ExperimentStore, Record, Run
from fisher_keras.experiments.runs.trained_run import execute
from fisher_keras.experiments.training.arch import build_network
from fisher_keras.experiments.training.config import TrainingConfig
from fisher_keras.experiments.training.data import split_dataset
from fisher_keras.experiments.training.option_checks import NETWORK_OPTIONS
from fisher_keras.experiments.training.provenance import check_commit

# Options that are those of all trainings, too.
_OF_TRAINING = (
    *("arch", "dataset", "image_size", "train_size", "validation_size"),
    *("label_smoothing", "target_loss"),
)
_SIZES = ("train_size", "confusion_size", "validation_size")
_Loader = Callable[[str, int | None], ImageDataset]


def free_gpus() -> list[str]:
    """Returns the GPUs that runs may use, as `CUDA_VISIBLE_DEVICES` names them.

    This process leaves their memory to the runs, if it has not taken it yet.
    """
    number = len(tf.config.list_physical_devices("GPU"))
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    # CUDA ignores a name that it cannot find, and all after it: only the first ones are of GPUs.
    return named.split(",")[:number] if named else [str(index) for index in range(number)]


def absolute(path: str | None) -> str | None:
    """Returns a path as workers with another working directory find it; URLs stay as they are."""
    if path is None or "://" in path:
        return path
    return os.path.abspath(os.path.expanduser(path))


def execute_runs(
    runs: Sequence[Run], preset: Preset, options: ExperimentOptions, title: str | None = None
) -> None:
    """Prints the preset and executes the runs of an experiment.

    Args:
        runs: Of the experiment, made by `trained_run`.
        preset: Of the runs.
        options: Of the experiment.
        title: Of what is printed, by default the experiment's name.

    Raises:
        ValueError: If an option or a data set cannot be used, or a checkout has uncommitted
            changes and the preset is one for results.
        OSError: If a data set or the store cannot be read or written.
        FailedRunsError: If runs failed; all others are finished.
    """
    print(f"{title or runs[0].experiment}, preset {options.preset}: {preset}", flush=True)
    store = store_of(runs, options)
    gpus, data_dir = free_gpus(), absolute(options.data_dir)
    if options.dry_run:
        print_plan(runs, store, options, gpus, options.preset != "smoke", data_dir)
        return
    finished = store.records()
    keys = {record.key for record in finished}
    missing = [run for run in runs if run.key not in keys]
    loaded = cached_loader(options.data_dir, options.download)
    _check_datasets(missing, loaded)
    if missing:
        _check_same_images(missing, finished, loaded)
        # A table of finished runs may be made from any tree: it says what they are of.
        check_preset(options.preset)
    function = functools.partial(execute, data_dir=data_dir, download=options.download)
    run_experiment(runs, function, store, options, gpus)


def store_of(runs: Sequence[Run], options: ExperimentOptions) -> ExperimentStore:
    """Returns the store of an experiment's runs."""
    default = f"results/{runs[0].experiment}_{options.protocol}"
    return ExperimentStore(options.output_dir or default)


def check_preset(preset: str) -> None:
    """Checks that a commit has the code, unless the preset is "smoke": the others are for results.

    Raises:
        ValueError: If the checkout has uncommitted changes.
    """
    if preset != "smoke":
        check_commit(f"--preset={preset}", ", or try the changes with --preset=smoke")


def preset_of(presets: Mapping[str, Preset], options: ExperimentOptions) -> Preset:
    """Returns the preset that was asked for, with the options that its trainings share.

    Raises:
        ValueError: If there is none of that name.
    """
    if options.preset not in presets:
        raise ValueError(f"--preset must be one of {', '.join(presets)}, got {options.preset!r}")
    preset = presets[options.preset]
    usual = ExperimentOptions()
    shared = {
        name: getattr(options, name)
        for name in _OF_TRAINING
        if getattr(options, name) != getattr(usual, name)
    }
    if options.arch not in (None, preset.training.get("arch")):
        # They are the size of the preset's network.
        kept = {n: v for n, v in preset.training.items() if n not in NETWORK_OPTIONS}
        preset = dataclasses.replace(preset, training=kept)
    names = preset.metrics.names
    if options.label_smoothing:
        # The gradients do not vanish with the loss then: their trace is worth a look.
        names = tuple(dict.fromkeys((*names, "trace")))
    seeds = {"first_seed": options.first_seed, "num_seeds": options.num_seeds or preset.num_seeds}
    return preset.replaced(shared, {"names": names}, **seeds)


def _check_same_images(
    missing: Sequence[Run], finished: Sequence[Record], loaded: _Loader
) -> None:
    """Checks that finished runs are of the images that those which are missing will be of.

    Keys have the name of the data set alone, and other folders have other images by that name.
    """
    wanted = set(map(_images, missing))
    for record in finished:
        if record.experiment != missing[0].experiment or _images(record) not in wanted:
            continue
        name, image_size = _images(record)
        given, recorded = loaded(name, image_size).fingerprint, record.result.get("data")
        if recorded not in (None, given):  # Old records do not tell.
            raise ValueError(
                f"--dataset={name} has other images here (fingerprint {given}) than the finished "
                f"runs ({recorded}): give the --data_dir of their images, or another --output_dir"
            )


def _images(run: Run | Record) -> tuple[str, int | None]:
    """Returns the data set of a run, and the size that its images are resized to."""
    return run.config["training"]["dataset"], run.config["training"].get("image_size")


def cached_loader(data_dir: str | None, download: bool) -> _Loader:
    """Returns a function of a data set's name and `image_size` that loads each once."""
    return functools.cache(
        lambda name, image_size: load_dataset(name, data_dir, download, image_size)
    )


def _check_datasets(runs: Sequence[Run], loaded: _Loader) -> None:
    """Loads each data set once: an error comes before all runs, a download before workers race.

    Likewise, it splits them into parts of each size, and builds each network.
    """
    different = {}
    for run in runs:
        training = TrainingConfig(**run.config["training"])
        sizes = {name: getattr(training, name) for name in _SIZES}
        different[training.arch, training.dataset, *sizes.values()] = training, sizes
    for training, sizes in different.values():
        dataset = loaded(training.dataset, training.image_size)
        split_dataset(dataset, **sizes)
        if ":" in training.arch:
            network = build_network(training, dataset.num_classes, dataset.image_shape)
            _check_loads(training.arch, network)


def _check_loads(arch: str, network: keras.Model) -> None:
    """Checks that a network can be read from its file, as it is after its training."""
    try:
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(network))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"--arch={arch}: Keras could not read the network from its file after the training: "
            "decorate your own layers and functions with "
            "keras.saving.register_keras_serializable(), and write a layer class instead of a "
            "Lambda"
        ) from error
