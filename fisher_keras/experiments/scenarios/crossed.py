"""Scenarios I and III crossed: confusion sets of two sizes, each at two batch sizes.

A scenario varies one setting. Here two settings change the test error of one network and data set,
at the paper's own size: a metric of generalization has to rise with the error whichever does, and
by as much.
"""

import itertools
import statistics
from collections.abc import Sequence

from fisher_keras.experiments.comparisons.common import (
    TEST_ERROR,
    Group,
    Quantity,
    grouped,
    make_table,
    metric,
    result_of,
)
from fisher_keras.experiments.names import METRICS
from fisher_keras.experiments.runs.experiment import ExperimentOptions, preset_of
from fisher_keras.experiments.runs.presets import Preset
from fisher_keras.experiments.runs.store import Run
from fisher_keras.experiments.runs.trained_network import (
    TrainedNetwork,
    common_metrics,
    excess_losses,
)
from fisher_keras.experiments.runs.trained_run import trained_run
from fisher_keras.experiments.scenarios.runs import SCENARIOS
from fisher_keras.experiments.statistics.text_tables import mean_and_spread
from fisher_keras.experiments.training.config import TrainingConfig

EXPERIMENT = "crossed"
VARIED = ("confusion_size", "batch_size")
_METRICS = {"names": METRICS}
_SCENARIO_I = SCENARIOS["scenario_confusion"]
PRESETS = {
    "paper": _SCENARIO_I["paper"].replaced(
        {"validation_size": 500},
        _METRICS,
        about="the network, recipe and metrics of the paper's Section 7.1, on 10,000 images.",
        values=((0, 5000), (128, 512)),
        num_seeds=2,
    ),
    "laptop": _SCENARIO_I["laptop"].replaced(metrics=_METRICS, values=((0, 500), (32, 128))),
    "smoke": _SCENARIO_I["smoke"].replaced(metrics=_METRICS, values=((0, 20), (10, 20))),
}


def crossed_runs(preset: Preset) -> list[Run]:
    """Returns the runs, a seed of all combinations before the next seed.

    Args:
        preset: The size; its values are the sizes of the confusion set, and of the batches.

    Returns:
        A run for each combination and seed.
    """
    return [
        trained_run(
            EXPERIMENT,
            TrainingConfig(
                **{**preset.training, "confusion_size": confusion, "batch_size": batch}, seed=seed
            ),
            preset.metrics,
            label=f"confusion {confusion} batch {batch}",
        )
        for seed in preset.seeds
        for confusion, batch in itertools.product(*preset.values)
    ]


def run_crossed(options: ExperimentOptions) -> None:
    """Trains the networks that are not there yet, prints the table and writes it.

    Args:
        options: Of the experiment.

    Raises:
        ValueError: If an option or the data cannot be used.
        OSError: If the data or the store cannot be read or written.
        FailedRunsError: If runs failed; all others are finished.
    """
    preset = preset_of(PRESETS, options)
    make_table(crossed_runs(preset), crossed_table, EXPERIMENT, preset, options, EXPERIMENT)


def crossed_table(networks: Sequence[TrainedNetwork]) -> list[list[str]]:
    """Returns test error and metrics of each combination, and their changes by each setting.

    Args:
        networks: Of the finished runs of `crossed_runs`.

    Returns:
        Rows of cells, the header first; a row a quantity. A change is that from the smallest to
        the largest value of a setting, of pairs that have the other setting and the seed in
        common, mean ± standard deviation. Per point: the mean change over that of the test error,
        units of the quantity a percentage point, by each setting.
    """
    groups = grouped(networks, _combination)
    corners = sorted(groups)
    settings = [name.replace("_size", "").replace("_", " ") for name in VARIED]
    pairs = [_pairs(groups, place) for place in range(len(VARIED))]
    header = ["", *(f"{settings[0]} {c}, {settings[1]} {b}" for c, b in corners)]
    header += [f"change by {setting}" for setting in settings]
    header += [f"per point, by {setting}" for setting in settings]
    rows = [header]
    for title, quantity in _quantities(networks).items():
        means = [mean_and_spread(quantity(list(groups[key].values()))) for key in corners]
        changes = [_changes(quantity, of_setting) for of_setting in pairs]
        rates = [
            _rate(change, _changes(TEST_ERROR, of_setting))
            for change, of_setting in zip(changes, pairs, strict=True)
        ]
        rows.append([title, *means, *map(mean_and_spread, changes), *rates])
    return rows


def _combination(network: TrainedNetwork) -> tuple[int, int]:
    return network.training.confusion_size, network.training.batch_size


def _quantities(networks: Sequence[TrainedNetwork]) -> dict[str, Quantity]:
    return {
        "test error (%)": TEST_ERROR,
        "test cross-entropy": result_of("test", "loss"),
        "train error (%)": result_of("train", "error_percent"),
        "excess train loss": excess_losses,
        **{name: metric(name) for name in common_metrics(networks)},
    }


def _pairs(
    groups: dict[tuple[int, int], Group], place: int
) -> list[tuple[TrainedNetwork, TrainedNetwork]]:
    """Returns the networks with the largest value of a setting, each with its counterpart."""
    values = {key[place] for key in groups}
    # Where a setting has one value so far, nothing changes by it yet.
    largest = [key for key in sorted(groups) if key[place] == max(values) > min(values)]
    pairs = []
    for key in largest:
        other = groups.get((*key[:place], min(values), *key[place + 1 :]), {})
        pairs += [(groups[key][seed], other[seed]) for seed in groups[key].keys() & other.keys()]
    return pairs


def _changes(
    quantity: Quantity, pairs: Sequence[tuple[TrainedNetwork, TrainedNetwork]]
) -> list[float]:
    after, before = ([pair[side] for pair in pairs] for side in (0, 1))
    return [a - b for a, b in zip(quantity(after), quantity(before), strict=True)]


def _rate(changes: Sequence[float], errors: Sequence[float]) -> str:
    """Returns the mean change over the mean change of the test error, "–" where that is none."""
    if not changes or not statistics.fmean(errors):
        return "–"
    return f"{statistics.fmean(changes) / statistics.fmean(errors):.3g}"
