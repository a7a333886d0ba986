"""Metrics that the records of finished runs lack, from their networks: `bin/complete_metrics`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf
import tqdm.auto

from fisher_keras.classifier.labels import Examples
from fisher_keras.experiments.runs.completion_options import CompletionOptions
from fisher_keras.experiments.runs.experiment import cached_loader
from fisher_keras.experiments.runs.presets import MetricSettings
from fisher_keras.experiments.runs.store import ExperimentStore, Record
from fisher_keras.experiments.runs.trained_network import TrainedNetwork
from fisher_keras.experiments.runs.trained_run import network_file, summaries
from fisher_keras.experiments.saved_models import SavedClassifiers
from fisher_keras.experiments.training.arch import network_settings
from fisher_keras.experiments.training.config import TrainingConfig, resolve
from fisher_keras.experiments.training.data import split_dataset
from fisher_keras.experiments.training.provenance import check_commit, provenance
from fisher_keras.metrics.evaluation import evaluate_local_minimum
from fisher_keras.metrics.metric import DEFAULT_METRICS
from fisher_keras.metrics.report import LocalMinimumReport

# Of a metric's standard deviation over the trials. Another sample moves the mean of 20 trials by
# 30 % of it, and the rounding of another machine by less than 0.01 %.
_ROUNDING = 1e-3
# Settings of a training that determine its images.
_OF_THE_EXAMPLES = ("dataset", "image_size", "train_size", "validation_size", "seed")
# From a training to its images with their classes, and the fingerprint of the data set.
_Examples: TypeAlias = Callable[[TrainingConfig], tuple[Examples, str]]


def complete_metrics(options: CompletionOptions) -> None:
    """Adds to the records of finished runs the metrics that they lack, all of one backward pass.

    The networks are evaluated as the runs have evaluated them, on the same samples: the metrics
    that a record has must come out again, or nothing is added to it. The result of a completed
    run has `added_metrics`, a list of the metrics' `names` with the provenance of each addition.
    Each record is written as soon as it is complete.

    Args:
        options: The stores, and where the data are.

    Raises:
        ValueError: If the checkout has uncommitted changes, a store has no runs of networks, or
            some records could not be completed; all others are.
        OSError: If a file cannot be read or written.
    """
    check_commit("complete_metrics")
    tf.config.experimental.enable_tensor_float_32_execution(False)  # It has 10 bits, on a GPU.
    examples = _examples(options)
    # Before the first record is written: that is a change, too.
    source = provenance()
    stores = {folder: ExperimentStore(folder) for folder in options.stores}
    for folder, store in stores.items():
        if not store.records():
            raise ValueError(f"--store={folder} holds no finished runs: expected runs.jsonl")
    failures = []
    for store in stores.values():
        with store.locked():
            failures += _complete_store(store, examples, source)
    if failures:
        more = f" ({len(failures) - 1} more are above)" if len(failures) > 1 else ""
        raise ValueError(f"{len(failures)} records were not completed: {failures[0]}{more}")


def _examples(options: CompletionOptions) -> _Examples:
    """Returns a function that loads each data set, and draws each set of training images, once."""
    loaded = cached_loader(options.data_dir, options.download)

    # One at a time: the next networks mostly have the same.
    @functools.lru_cache(maxsize=1)
    def drawn(
        name: str, image_size: int | None, train_size: int | None, validation_size: int, seed: int
    ) -> tuple[Examples, str]:
        data = split_dataset(
            loaded(name, image_size),
            train_size=train_size,
            validation_size=validation_size,
            seed=seed,
        )
        return data.examples("train"), data.dataset.fingerprint

    return lambda training: drawn(*_of_the_examples(training))


def _of_the_examples(training: TrainingConfig) -> list[Any]:
    return [getattr(training, name) for name in _OF_THE_EXAMPLES]


def _complete_store(
    store: ExperimentStore, examples: _Examples, source: Mapping[str, Any]
) -> list[ValueError]:
    """Completes the records of a store; prints and returns why some could not be."""
    networks = [TrainedNetwork.of(record) for record in store.records()]
    incomplete = [network for network in networks if _lacking(network.record)]
    # One after the other those of the same images.
    incomplete.sort(key=lambda network: repr(_of_the_examples(network.training)))
    print(f"{store.directory}: {len(incomplete)} of {len(networks)} records lack metrics")
    failures, classifiers = [], SavedClassifiers()
    for network in tqdm.auto.tqdm(incomplete, desc=store.directory.name, unit="network"):
        try:
            reports = _evaluate(store, network, examples, classifiers)
            store.replace(_completed(network.record, reports, source))
        except ValueError as error:
            failures.append(error)
            tqdm.auto.tqdm.write(f"not completed: {error}")
    return failures


def _lacking(record: Record) -> dict[str, list[str]]:
    """Returns the metrics that a record lacks, in each of its evaluations that lacks some."""
    scales = MetricSettings(**record.config["metrics"]).scales
    lacking = {
        key: [name for name in DEFAULT_METRICS if name not in record.result[key]] for key in scales
    }
    return {key: names for key, names in lacking.items() if names}


def _evaluate(
    store: ExperimentStore,
    network: TrainedNetwork,
    examples: _Examples,
    classifiers: SavedClassifiers,
) -> dict[str, LocalMinimumReport]:
    """Evaluates the network of a run as the run has evaluated it.

    Raises:
        ValueError: If the network was not kept, or does not give the metrics of the record.
    """
    record, training = network.record, resolve(network.training)
    file = network_file(store, record.key)
    if file is None:
        raise ValueError(
            f"the network of run {record.key} was not kept: to train it again, remove its line "
            "from runs.jsonl and run the experiment"
        )
    network_settings(training.arch)  # It imports the module that defines a user's layers.
    data, given = examples(training)
    recorded = record.result.get("data")
    if given != recorded:
        raise ValueError(
            f"run {record.key} is of the data {recorded}, and those in --data_dir are {given}: "
            "give the folder of the run's data"
        )
    settings = MetricSettings(**record.config["metrics"])
    reports = {
        key: evaluate_local_minimum(
            classifiers.load(file, scale),
            data,
            settings.num_samples,
            settings.num_trials,
            record.seed,
            DEFAULT_METRICS,
            label_smoothing=training.label_smoothing,
            progress=False,
        )
        for key, scale in settings.scales.items()
    }
    for key, report in reports.items():
        _check_reproduced(record, key, report)
    return reports


def _check_reproduced(record: Record, key: str, report: LocalMinimumReport) -> None:
    """Raises a ValueError if metrics that a record has do not come out again, up to rounding."""
    for name, recorded in record.result[key].items():
        if name not in report.metrics:
            continue
        # Text where JSON has no number.
        mean, spread = float(recorded["mean"]), float(recorded["std"])
        tolerance = _ROUNDING * np.nan_to_num(spread, posinf=0.0)
        found = report.metrics[name].mean
        if not np.isclose(found, mean, rtol=1e-5, atol=tolerance, equal_nan=True):
            raise ValueError(
                f"run {record.key} has {mean:.8g} for the {name} in its {key}, and its network "
                f"gives {found:.8g}: the file is of another network, or its weights were rounded, "
                "as to float16, or this version computes or samples otherwise"
            )


def _completed(
    record: Record, reports: Mapping[str, LocalMinimumReport], source: Mapping[str, Any]
) -> Record:
    """Returns a record with the metrics that it lacks; those that it has stay as they are."""
    lacking = _lacking(record)
    result = dict(record.result)
    for key, names in lacking.items():
        found = summaries(reports[key])
        result[key] = {**result[key], **{name: found[name] for name in names}}
    names = dict.fromkeys(name for names in lacking.values() for name in names)
    added = {"names": list(names), **source}
    result["added_metrics"] = [*result.get("added_metrics", ()), added]
    return dataclasses.replace(record, result=result)
