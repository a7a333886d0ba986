"""The table of a network's layers: their parts of the Fisher information, and their weights."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from fisher_keras.classifier import stateless
from fisher_keras.extras import require
from fisher_keras.fisher.gram import FisherGram
from fisher_keras.fisher.layer_weights import weights_by_layer
from fisher_keras.metrics import gram_metrics, summaries
from fisher_keras.metrics.singular import is_singular
from fisher_keras.metrics.trials import Trial
from fisher_keras.tables import aligned_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    r"""A layer in a `LayerTable`.

    Attributes:
        name: Path of the layer.
        num_parameters: Number of its trainable parameters.
        trace: Its part of the trace: the mean of $\|g_i\|^2$, where $g_i$ is the gradient by only
            the weights of this layer. The parts add up to the trace.
        log_determinant: $\ln |\xi|$ of these gradients. It is -inf if $\xi$ is singular, as it is
            for all layers with fewer parameters than a sample has examples.
        log_weight_norm: Logarithm of the Euclidean norm of its trainable parameters.
    """

    name: str
    num_parameters: int
    trace: summaries.MetricSummary
    log_determinant: summaries.MetricSummary
    log_weight_norm: float


class LayerTable(Sequence[LayerSummary]):
    """The layers with trainable weights, one `LayerSummary` each. `print` shows all of them.

    Attributes:
        evaluation: All that the trials depend on (see `LocalMinimumReport`).
        values: By layer, its traces and its log-determinants in all trials, shape (2, T).
    """

    def __init__(
        self,
        weights: Mapping[str, tuple[int, float]],
        trials: Sequence[Trial],
        evaluation: Mapping[str, Any],
    ) -> None:
        """Makes the table from the parts of a report.

        Args:
            weights: For each layer, the number of its parameters and the logarithm of their norm.
            trials: Trials with the traces and log-determinants of the layers.
            evaluation: See `LocalMinimumReport`.
        """
        self.evaluation = evaluation
        # By their order: trials of a file may have the names of another model like this one.
        of_layers = zip(*(trial.layers.values() for trial in trials), strict=True)
        self.values = {
            name: np.array(pairs).T for name, pairs in zip(weights, of_layers, strict=True)
        }
        self._rows = [
            LayerSummary(name, count, *map(summaries.summarize, self.values[name]), log_norm)
            for name, (count, log_norm) in weights.items()
        ]

    def __len__(self) -> int:
        """Returns the number of layers."""
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        """Returns a layer by its position, or several by a slice."""
        return self._rows[index]

    def __str__(self) -> str:
        """Returns the table: means over the trials ± standard errors."""
        header = ["layer", "parameters", "trace", "ln det", "ln norm of the weights"]
        rows = []
        for row in self:
            cells = [_cell(row.trace), _cell(row.log_determinant), f"{row.log_weight_norm:.4g}"]
            rows.append([row.name, str(row.num_parameters), *cells])
        return aligned_table([header, *rows])

    def beside(self, other: "LayerTable") -> str:
        """Returns the table of two networks side by side, layer by layer.

        Args:
            other: The table of a network with layers of the same sizes in the same order,
                evaluated on the same samples.

        Returns:
            The means of both networks, and the mean of the difference, other minus this one, with
            the standard error over pairs of trials.

        Raises:
            ValueError: If the networks or their samples differ.
        """
        self._check_comparable(other)
        header = ["layer", "trace", "that", "ln det", "that", "difference", "ln norm", "that"]
        rows = []
        for a, b in zip(self, other, strict=True):
            pairs = [table.values[row.name][1] for table, row in ((other, b), (self, a))]
            rows.append(
                [
                    a.name,
                    *(f"{row.trace.mean:.4g}" for row in (a, b)),
                    *(f"{row.log_determinant.mean:.5g}" for row in (a, b)),
                    _cell(summaries.summarize_differences(*pairs)),
                    *(f"{row.log_weight_norm:.4g}" for row in (a, b)),
                ]
            )
        return aligned_table([header, *rows])

    def plot(self, *others: "LayerTable", labels: Sequence[str] = ()) -> "Figure":
        """Draws trace, log-determinant and norm of the weights over the layers.

        Args:
            *others: Tables of other networks, as for `beside`.
            labels: Names of the networks, for the legend.

        Returns:
            The figure: `report.layers.plot().savefig("layers.png")`. A mean that is infinite, as
            the log-determinant of a singular layer, leaves a gap.

        Raises:
            ValueError: If the networks or their samples differ.
            ImportError: If matplotlib is not installed.
        """
        for other in others:
            self._check_comparable(other)
        require("matplotlib")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3 + 0.25 * len(self), 7), layout="constrained")
        panels = figure.subplots(3, 1, sharex=True)
        places = np.arange(len(self))
        for index, table in enumerate((self, *others)):
            label = labels[index] if labels else None
            for axes, name in zip(panels, ("trace", "log_determinant"), strict=False):
                values = [getattr(row, name) for row in table]
                means, errors = np.array([(v.mean, v.standard_error) for v in values]).T
                means[np.isinf(means)] = np.nan
                axes.errorbar(places, means, errors, fmt="o-", markersize=3, label=label)
            norms = [row.log_weight_norm for row in table]
            panels[2].plot(places, norms, "o-", markersize=3, label=label)
        panels[0].set_yscale("log")
        titles = ("trace", r"$\ln |\xi|$", "ln norm of the weights")
        for axes, title in zip(panels, titles, strict=True):
            axes.set_ylabel(title)
            axes.grid(alpha=0.3)
        panels[2].set_xticks(places, [row.name for row in self], rotation=90, fontsize=7)
        if labels:
            panels[0].legend()
        return figure

    def _check_comparable(self, other: "LayerTable") -> None:
        sizes, others = ([row.num_parameters for row in table] for table in (self, other))
        if sizes != others:
            raise ValueError(
                "Networks can be compared by layer if their layers have the same numbers of "
                f"parameters in the same order. Given: {sizes} and {others}."
            )
        summaries.check_same_samples(self.evaluation, other.evaluation)


def layer_metrics(gram: FisherGram) -> dict[str, tuple[float, float]]:
    """Returns the part of the trace and the log-determinant of each layer, by path.

    Args:
        gram: A Gram matrix, with or without `layers`.
    """
    return {
        name: (
            gram_metrics.trace(layer),
            -np.inf if is_singular(layer) else gram_metrics.log_determinant(layer),
        )
        for name, layer in (gram.layers or {}).items()
    }


def layer_weights(model: keras.Model) -> dict[str, tuple[int, float]]:
    """Returns the number of parameters of each layer, and ln of their norm, by path."""
    weights, found = stateless.weights(model), {}
    for name, indices in weights_by_layer(model).items():
        own = [weights[index] for index in indices]
        found[name] = stateless.count_parameters(own), log_norm(own)
    return found


def log_norm(variables: Sequence[keras.Variable]) -> float:
    """Returns the logarithm of the Euclidean norm of variables together, in float64."""
    norms = [np.linalg.norm(variable.numpy().astype(np.float64)) for variable in variables]
    with np.errstate(divide="ignore"):
        return float(np.log(np.linalg.norm(norms)))


def _cell(summary: summaries.MetricSummary) -> str:
    if not np.isfinite(summary.mean):
        return f"{summary.mean:g}".replace("nan", "-")
    return f"{summary.mean:.5g} ± {summary.standard_error:.2g}"
