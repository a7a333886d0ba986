"""The finished runs of the scenarios, as they are drawn and compared."""

import dataclasses
import itertools
import json
import pathlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fisher_keras.datasets import AUGMENTATIONS
from fisher_keras.experiments.runs.provenance_notes import provenance_notes
from fisher_keras.experiments.runs.store import ExperimentStore, Record, distinct
from fisher_keras.experiments.runs.trained_network import (
    TrainedNetwork,
    common_metrics,
    excess_losses,
    network_flags,
)
from fisher_keras.experiments.scenarios import crossed, pool
from fisher_keras.experiments.scenarios.runs import VARIABLES
from fisher_keras.experiments.training.arch import recipe_of
from fisher_keras.experiments.training.config import TrainingConfig

# In the order of the paper's scenarios.
TITLES = {
    "scenario_confusion": "Scenario I: size of the confusion set",
    "scenario_augmentation": "Scenario II: data augmentation",
    "scenario_batch_size": "Scenario III: batch size",
    pool.EXPERIMENT: "Pool: networks that differ in everything",
    crossed.EXPERIMENT: "Crossed: size of the confusion set and batch size",
}
# The first of them is the setting that tables and colors show.
_VARIED = {
    **{experiment: (variable,) for experiment, variable in VARIABLES.items()},
    pool.EXPERIMENT: pool.VARIED,
    crossed.EXPERIMENT: crossed.VARIED,
}
# Names a field of `ScenarioRun` that tables compare metrics with.
NOISE = "batch_size_over_learning_rate"
# What all scenarios share: metrics of other data, labels or sizes of samples are other quantities.
_SHARED = (
    *("data", "recipe_version", "network.source", "metrics.num_samples"),
    *("training.dataset", "training.label_smoothing", "training.target_loss"),
)


@dataclasses.dataclass(frozen=True)
class ScenarioRun:
    """One network.

    Attributes:
        key: The run's key in its store.
        training: The definition of the training, as text: the same for the same network.
        unit: What a bootstrap draws and a permutation moves: the network itself or, in a pool that
            repeats its settings with other seeds, these settings.
        value: The value of the scenario's variable.
        seed: The run's seed.
        test_error: The test error in percent.
        test_loss: The mean cross-entropy of the test images in nats.
        calibration_error: The test images' expected calibration error; NaN if it is not known.
        num_test_images: How many these are.
        train_loss: The mean cross-entropy of the images trained on, over the least that their
            labels allow, in nats; NaN where labels are smoothed and the record does not have it.
        train_error: The training error in percent.
        metrics: The mean over the trials of each metric, by its name; may be infinite or NaN.
        flags: Why the run is not at a minimum such as the others', see `convergence_flags`.
    """

    key: str
    training: str
    unit: str
    value: int | str
    seed: int
    test_error: float
    test_loss: float
    calibration_error: float
    num_test_images: int
    train_loss: float
    train_error: float
    metrics: Mapping[str, float]
    flags: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the training by name; the record leaves out usual ones."""
        return dataclasses.asdict(TrainingConfig()) | json.loads(self.training)[0]

    @property
    def generalization_gap(self) -> float:
        """The test error less the training error, in percent."""
        return self.test_error - self.train_error

    @property
    def batch_size_over_learning_rate(self) -> float:
        """The batch size over the first learning rate: the inverse of the noise of SGD.

        As of metrics, lower values are to go with lower test errors.
        """
        settings = self.settings
        rate = settings["learning_rate"] or recipe_of(settings["arch"]).learning_rate
        return settings["batch_size"] / rate

    @property
    def random(self) -> float:
        """A number from 0 to 1 that knows nothing: the same for the same network."""
        # Text as a seed gives the same numbers in each process, which its `hash` would not.
        return random.Random(self.training).random()


@dataclasses.dataclass(frozen=True)
class Scenario:
    """The runs of a scenario.

    Attributes:
        experiment: The scenario's name, one of `TITLES`.
        runs: Its runs, by value of the variable in the paper's order, then by seed.
        notes: On their provenance, see `provenance_notes`.
    """

    experiment: str
    runs: tuple[ScenarioRun, ...]
    notes: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """The setting that the scenario varies; of several, the one that it is shown by."""
        return _VARIED[self.experiment][0]

    @property
    def title(self) -> str:
        """The scenario's title in the paper."""
        return TITLES[self.experiment]

    @property
    def values(self) -> list[int | str]:
        """The values of the variable, in the paper's order."""
        return list(dict.fromkeys(run.value for run in self.runs))

    @property
    def converged(self) -> tuple[ScenarioRun, ...]:
        """The runs without a flag."""
        return tuple(run for run in self.runs if not run.flags)

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics that all runs have."""
        return common_metrics(self.runs)


def hyperparameters(runs: Sequence[ScenarioRun]) -> dict[str, list[str]]:
    """Returns the settings in which some networks' trainings differ, but for the seed, as text."""
    # As text: numbers and None, side by side in one setting, have no common order.
    settings = [run.settings for run in runs]
    columns = {
        name: [json.dumps(found[name]) for found in settings]
        for name in sorted(set().union(*settings))
    }
    return {name: values for name, values in columns.items() if len(set(values)) > 1}


def column(runs: Iterable[ScenarioRun], name: str) -> np.ndarray:
    """Returns a metric, or a field of `ScenarioRun`, of each run, shape (n,), float64."""
    return np.array([run.metrics.get(name, getattr(run, name, np.nan)) for run in runs], float)


def noise(runs: Sequence[ScenarioRun]) -> list[str]:
    """Returns `NOISE` if networks differ in it, else nothing."""
    return [NOISE] if len(set(column(runs, NOISE))) > 1 else []


def read_scenarios(stores: Sequence[str | pathlib.Path]) -> list[Scenario]:
    """Reads the scenarios whose runs are in some stores.

    Args:
        stores: Folders of runs; a scenario may be spread over several.

    Returns:
        The scenarios, in the paper's order.

    Raises:
        ValueError: If a store has no runs, or runs of something else, or those of a scenario
            differ in more than its variable and the seed, or scenarios in what all must share.
        OSError: If a file cannot be read.
    """
    found = [_records(pathlib.Path(store).expanduser()) for store in stores]
    # A run that is in two of the stores is still one network.
    records = distinct(itertools.chain(*found))
    groups = {name: [r for r in records if r.experiment == name] for name in TITLES}
    scenarios = [_scenario(name, group) for name, group in groups.items() if group]
    if different := _differences(records, _SHARED.__contains__):
        raise ValueError(
            f"the scenarios do not compare with each other: {different} (null: not set). Give the "
            "stores of one protocol"
        )
    return scenarios


def _records(store: pathlib.Path) -> list[Record]:
    if not store.is_dir():
        raise ValueError(f"--store={store}: there is no such folder; expected that of a scenario")
    records = ExperimentStore(store).records()
    if not records:
        raise ValueError(f"--store={store} has no finished runs: start its experiment first")
    others = sorted({record.experiment for record in records} - TITLES.keys())
    if others:
        raise ValueError(
            f"--store={store} has runs of {', '.join(others)}; expected those of "
            f"{', '.join(TITLES)}"
        )
    return records


def _scenario(experiment: str, records: Sequence[Record]) -> Scenario:
    varied = _VARIED[experiment]
    _check_recipe(experiment, varied, records)
    networks = list(map(TrainedNetwork.of, records))
    compared = zip(networks, excess_losses(networks), network_flags(networks), strict=True)
    # In a pool of one network a seed, the settings are drawn with the seed, and a chance repeat is
    # a draw of its own.
    repeated = experiment == pool.EXPERIMENT and len({r.seed for r in records}) < len(records)
    runs = [_run(network, varied, repeated, loss, flags) for network, loss, flags in compared]
    runs.sort(key=lambda run: (place(varied[0], run.value), run.seed))
    return Scenario(experiment, tuple(runs), tuple(provenance_notes(records)))


def _check_recipe(experiment: str, varied: Sequence[str], records: Sequence[Record]) -> None:
    """Checks that runs differ in nothing but the settings that their scenario varies, and seed."""
    of_scenario = {f"training.{name}" for name in varied}
    if different := _differences(records, lambda name: name not in of_scenario):
        raise ValueError(
            f"the runs of {experiment} differ in more than {', '.join(varied)} and the seed: "
            f"{different} (null: not set). Give the stores of one recipe"
        )


def _differences(records: Sequence[Record], counts: Callable[[str], bool]) -> str:
    """Describes the settings in which runs differ, of those whose name counts; "" without any."""
    settings = [_settings(record) for record in records]
    different = []
    for name in sorted(filter(counts, set().union(*settings))):
        # Records leave out the settings of a training that have their defaults: null stands for
        # them, so that one that was set is still told from one that was not.
        values = sorted({json.dumps(found.get(name)) for found in settings})
        if len(values) > 1:
            different.append(f"{name} is {' or '.join(values)}")
    return "; ".join(different)


def _settings(record: Record) -> dict[str, Any]:
    groups = record.config.items()
    settings = {
        f"{group}.{name}": value for group, inner in groups for name, value in inner.items()
    }
    return settings | {"recipe_version": record.recipe_version, "data": record.result.get("data")}


def _run(
    network: TrainedNetwork,
    varied: Sequence[str],
    repeated: bool,
    train_loss: float,
    flags: tuple[str, ...],
) -> ScenarioRun:
    record = network.record
    settings = [getattr(network.training, name) for name in varied]
    # The settings come first: they are read back from that place.
    training = [record.config["training"], record.seed, record.recipe_version]
    return ScenarioRun(
        key=record.key,
        training=json.dumps(training, sort_keys=True),
        unit=json.dumps(settings) if repeated else record.key,
        value=settings[0],
        seed=record.seed,
        test_error=network.test.error_percent,
        test_loss=network.test.loss,
        calibration_error=network.test.calibration_error,
        num_test_images=network.test.num_images,
        train_loss=train_loss,
        train_error=network.train.error_percent,
        metrics=network.metrics,
        flags=flags,
    )


def place(variable: str, value: float | str) -> float:
    """Returns a number in the order of the values of a setting."""
    return AUGMENTATIONS.index(value) if variable == "augmentation" else value
