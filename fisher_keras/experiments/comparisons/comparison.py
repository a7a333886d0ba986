"""Result of a comparison on a user's own model: differences, table and figure."""

import collections
import dataclasses
import pathlib
import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from fisher_keras.experiments.comparisons.common import (
    CROSS_ENTROPY,
    ERROR,
    GAMMA_HAT,
    LOG_DET_MARGINS,
    TRAIN_ERROR,
    Column,
    Group,
    grouped,
    result_of,
)
from fisher_keras.experiments.runs.provenance_notes import mixture_notes
from fisher_keras.experiments.runs.store import ExperimentStore, Record, Run
from fisher_keras.experiments.runs.trained_network import PartResult
from fisher_keras.experiments.statistics.paired import PairedDifference, paired_difference
from fisher_keras.experiments.statistics.text_tables import publish_table
from fisher_keras.files import replacing
from fisher_keras.tables import Rows, aligned_table

_BASELINE = "plain"


@dataclasses.dataclass(frozen=True)
class ComparedNetwork:
    """A network of a comparison.

    Attributes:
        method: Name of the method that trained it.
        seed: Of its initial weights and batches.
        train: Result on the training data.
        test: On the test data.
        metrics: The mean over the trials of each metric, by name; may be infinite or NaN.
        seconds_per_step: The median time of a training step.
        notes: Assumptions of the metrics that do not hold, see `LocalMinimumReport`.
        path: Of its files, below the folder of the comparison; "" if they are gone.
    """

    method: str
    seed: int
    train: PartResult
    test: PartResult
    metrics: Mapping[str, float]
    seconds_per_step: float
    notes: tuple[str, ...]
    path: str

    @classmethod
    def of(cls, store: ExperimentStore, record: Record) -> "ComparedNetwork":
        """Returns the network of a finished run, see `own_training.train_network`."""
        files = store.begun(record.key)
        result = record.result
        return cls(
            record.config["method"],
            record.seed,
            PartResult(**result["train"]),
            PartResult(**result["test"]),
            {name: float(summary["mean"]) for name, summary in result["metrics"].items()},
            result["seconds_per_step"],
            tuple(result["notes"]),
            "" if files is None else str(files.relative_to(store.directory)),
        )


QUANTITIES = {
    "test_error": ERROR,
    "test_loss": CROSS_ENTROPY._replace(digits=4),
    "calibration_error": Column(
        "calibration error (%)", 2, lambda group: [100 * n.test.calibration_error for n in group]
    ),
    "gamma_hat": GAMMA_HAT,
    "log_determinant_margins": LOG_DET_MARGINS,
    "train_error": TRAIN_ERROR,
    "excess_loss": Column("excess train loss", 4, result_of("train", "excess_loss")),
}
_DRAWN = ("test_error", "calibration_error", "gamma_hat", "log_determinant_margins")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The networks of several methods from the same seeds; `str` of it is a table.

    Attributes:
        networks: The networks of each method, by seed.
        mixture: Sentences on versions and commits in which they differ.
    """

    networks: Mapping[str, Group]
    mixture: Sequence[str] = ()

    @classmethod
    def of(
        cls, store: ExperimentStore, runs: Sequence[Run], methods: Sequence[str]
    ) -> "Comparison":
        """Returns the comparison of finished runs.

        Args:
            store: Where they are.
            runs: The runs.
            methods: Their methods, in the order of the table.
        """
        records = store.records_of(runs)
        networks = [ComparedNetwork.of(store, record) for record in records]
        groups = grouped(networks, lambda network: network.method)
        return cls({method: groups[method] for method in methods}, mixture_notes(records))

    @property
    def baseline(self) -> str:
        """The method that differences are to: "plain", or else the first one."""
        return _BASELINE if _BASELINE in self.networks else next(iter(self.networks))

    def values(self, method: str, quantity: str) -> list[float]:
        """Returns a quantity of the networks of a method, in the order of their seeds.

        Args:
            method: Name of the method.
            quantity: One of "test_error", "test_loss", "calibration_error", "gamma_hat",
                "log_determinant_margins" (ln det Xi), "train_error" and "excess_loss" (of the
                training data, over the least that the labels allow). Errors and calibration errors
                are in percent, losses in nats.
        """
        return QUANTITIES[quantity].quantity(list(self.networks[method].values()))

    def difference(self, method: str, quantity: str) -> PairedDifference:
        """Returns the mean difference of a method to the baseline, of pairs of one seed.

        Args:
            method: Name of the method.
            quantity: See `values`.

        Returns:
            The mean, with the 95 % interval of Student's t.
        """
        return paired_difference(*(self.values(m, quantity) for m in (method, self.baseline)))

    def cost(self, method: str) -> float:
        """Returns the median time of a step over that of the baseline."""
        times = [
            statistics.median(n.seconds_per_step for n in self.networks[m].values())
            for m in (method, self.baseline)
        ]
        return times[0] / times[1]

    def table(self) -> Rows:
        """Returns the table: a column a method, the header first."""
        baseline = self.networks[self.baseline]
        rows = [["", *self.networks]]
        for column in QUANTITIES.values():
            less = [
                "" if group is baseline else column.difference(group, baseline)
                for group in self.networks.values()
            ]
            rows += [[column.title, *map(column.mean, self.networks.values())]]
            rows += [[f"- less {self.baseline}", *less]]
        costs = [f"{self.cost(method):.2f}" for method in self.networks]
        return [*rows, [f"time of a step, {self.baseline} = 1", *costs]]

    def notes(self) -> list[str]:
        """Returns sentences on how to read the table."""
        groups = self.networks.values()
        networks = [network for group in groups for network in group.values()]
        # Of a note what comes before its explanation, and without the numbers of the network.
        kinds = collections.Counter(
            re.sub(r" (?!0$)\d[^ ]*", " ...", re.split("[(:,]", note)[0].strip())
            for network in networks
            for note in network.notes
        )
        about = (
            f"Mean ± standard deviation over {len(self.networks[self.baseline])} seeds; below, "
            "the mean difference of networks of the same seed, with its 95 % interval."
        )
        found = [f"{kind} ({count} of {len(networks)} networks)" for kind, count in kinds.items()]
        care = [f"Compare gamma-hat and ln det Xi with care: {'; '.join(found)}."] if found else []
        return [about, *care, *self.mixture]

    def __str__(self) -> str:
        """Returns the table for a terminal, and how to read it."""
        notes = [textwrap.fill(note, width=88) for note in self.notes()]
        return "\n\n".join([aligned_table(self.table()), *notes])

    def figure(self) -> Figure:
        """Draws the differences to the baseline: each seed, and the mean with its interval."""
        others = [method for method in self.networks if method != self.baseline]
        # Two panels a row: so that it is readable on a narrow screen, too.
        num_rows = -(-len(_DRAWN) // 2)
        size = 6, 0.6 + num_rows * (0.6 + 0.5 * len(others))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(num_rows, 2, sharey=True).ravel()
        for axes, name in zip(panels, _DRAWN, strict=True):
            base = np.array(self.values(self.baseline, name))
            axes.axvline(0, color="0.6", linewidth=0.8)
            for place, method in enumerate(others):
                differences = np.array(self.values(method, name)) - base
                axes.plot(differences, np.full(len(base), place + 0.18), "o", color="0.7", ms=3)
                if np.isfinite(differences).all():
                    mean = self.difference(method, name)
                    axes.hlines(place, mean.low, mean.high, color="#0072B2", linewidth=2)
                    axes.plot(mean.mean, place, "o", color="#0072B2", ms=6)
            axes.set_xlabel(QUANTITIES[name].title)
            axes.grid(axis="x", alpha=0.25)
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.locator_params(axis="x", nbins=4)  # Long numbers would run into each other.
        labels = [f"{method}\n({self.cost(method):.1f} × a step)" for method in others]
        panels[0].set_yticks(range(len(others)), labels)
        panels[0].set_ylim(len(others) - 0.5, -0.5)
        figure.suptitle(
            f"Difference to {self.baseline}: {len(base)} seeds (gray), mean and 95 % interval",
            fontsize="medium",
        )
        return figure

    def publish(self, directory: pathlib.Path) -> None:
        """Prints the table, and writes it and the figure.

        Args:
            directory: The folder.

        Raises:
            OSError: If a file cannot be written.
        """
        table, notes = self.table(), self.notes()
        publish_table(directory, "comparison", table, notes=notes, printed=str(self))
        path = directory / "comparison.png"
        with replacing(path) as part:
            self.figure().savefig(part, dpi=150)
        print(f"The figure is {path}.", flush=True)
