"""Shared parts of the tables of Section 7.2: groups of networks, and the cells made of them."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from fisher_keras.experiments.runs.engine import FailedRunsError
from fisher_keras.experiments.runs.experiment import ExperimentOptions, execute_runs, store_of
from fisher_keras.experiments.runs.presets import Preset
from fisher_keras.experiments.runs.provenance_notes import provenance_notes
from fisher_keras.experiments.runs.store import Run, kind
from fisher_keras.experiments.runs.trained_network import TrainedNetwork, network_flags
from fisher_keras.experiments.statistics.paired import paired_cell
from fisher_keras.experiments.statistics.text_tables import Rows, mean_and_spread, publish_table

# The networks of one method by seed.
Group = Mapping[int, TrainedNetwork]
# Values of some networks that are compared with each other, one a network.
Quantity = Callable[[Sequence[TrainedNetwork]], Sequence[float]]

_Key = TypeVar("_Key", bound=Hashable)


def make_table(
    runs: Sequence[Run],
    table: Callable[[Sequence[TrainedNetwork]], Rows],
    name: str,
    preset: Preset,
    options: ExperimentOptions,
    command: str,
    num_names: int = 1,
    others: Sequence[Run] = (),
) -> None:
    """Executes the runs of an experiment that are missing, prints a table and writes it.

    The table has all networks of the store that are finished, of any seed, whichever are trained
    now, and also if some have failed or the command is stopped.

    Args:
        runs: Of the experiment, made by `trained_run`.
        table: Makes the table from the networks that are finished.
        name: Of the table's files, without suffix.
        preset: Of the runs.
        options: Of the experiment.
        command: Name of the command that makes the table.
        num_names: Columns of names, see `markdown_table`.
        others: Further runs whose settings the table shows.

    Raises:
        ValueError: If an option or the data cannot be used.
        OSError: If the data or the store cannot be read or written.
        FailedRunsError: If runs failed; all others are finished.
    """
    store = store_of(runs, options)
    # Not all records: two tables, or two presets, may have one store.
    kinds = set(map(kind, (*runs, *others)))

    def publish() -> None:
        records = [record for record in store.records() if kind(record) in kinds]
        if records and not options.dry_run:
            rows = table(list(map(TrainedNetwork.of, records)))
            publish_table(store.directory, name, rows, num_names, provenance_notes(records))

    try:
        execute_runs(runs, preset, options, title=command)
    except (FailedRunsError, KeyboardInterrupt):
        publish()
        raise
    publish()


def grouped(
    networks: Sequence[TrainedNetwork], key: Callable[[TrainedNetwork], _Key]
) -> dict[_Key, Group]:
    """Returns the networks by key and, within a key, by seed in ascending order."""
    groups: dict[_Key, dict[int, TrainedNetwork]] = {}
    for network in sorted(networks, key=lambda network: network.seed):
        groups.setdefault(key(network), {})[network.seed] = network
    return groups


def result_of(part: str, name: str) -> Quantity:
    """Returns the quantity that is a field of `PartResult`, of "train" or "test"."""
    return lambda networks: [getattr(getattr(network, part), name) for network in networks]


TEST_ERROR = result_of("test", "error_percent")


def metric(name: str, normalized: bool = False) -> Quantity:
    """Returns the quantity that is the mean of a metric, with or without normalized logits."""
    field = "normalized_metrics" if normalized else "metrics"
    return lambda networks: [getattr(network, field)[name] for network in networks]


class Column(NamedTuple):
    """A quantity of networks in a table.

    Attributes:
        title: The heading.
        digits: The number of digits after the decimal point.
        quantity: The quantity.
    """

    title: str
    digits: int
    quantity: Quantity

    def mean(self, group: Group) -> str:
        """Formats mean ± standard deviation over a group, see `mean_and_spread`."""
        form = f"{{:.{self.digits}f}}"
        return mean_and_spread(self.quantity(list(group.values())), form, form)

    def difference(self, group: Group, other: Group) -> str:
        """Formats the mean difference, over the seeds that both groups have.

        Args:
            group: Networks of one method.
            other: Networks of the method that is subtracted.

        Returns:
            See `paired_cell`.
        """
        # A seed gives both the same images and first weights: only such pairs are subtracted.
        seeds = sorted(group.keys() & other.keys())
        first, second = (self.quantity([side[seed] for seed in seeds]) for side in (group, other))
        return paired_cell(first, second, self.digits)


ERROR = Column("test error (%)", 2, TEST_ERROR)
CROSS_ENTROPY = Column("test cross-entropy", 3, result_of("test", "loss"))
CALIBRATION_ERROR = Column("calibration error", 3, result_of("test", "calibration_error"))
TRAIN_ERROR = Column("train error (%)", 2, result_of("train", "error_percent"))
GAMMA_HAT = Column("gamma-hat", 1, metric("log_determinant"))
LOG_DET_MARGINS = Column("ln det Xi", 1, metric("log_determinant_margins"))


def num_flagged(group: Group, control: Group) -> int:
    """Returns how many networks of a group are at no minimum such as those of the control."""
    networks, usual = list(group.values()), list(control.values())
    return sum(map(bool, network_flags(networks, usual))) if networks else 0
