"""The report of an evaluation."""

import dataclasses
import json
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from fisher_keras.extras import require
from fisher_keras.metrics import summaries
from fisher_keras.metrics.layer_table import LayerTable
from fisher_keras.metrics.loss_and_errors import DataLoss
from fisher_keras.metrics.summaries import MetricSummary
from fisher_keras.metrics.trials import Trial, json_ready
from fisher_keras.tables import markdown_table

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class LocalMinimumReport:
    """The result of `evaluate_local_minimum`. `print` shows it as a table.

    Attributes:
        metrics: Summaries over the trials, by the name of the metric.
        train: Loss, errors and calibration on the training data.
        test: The same on the test data, or None without test data.
        notes: Warnings to read before trusting the metrics, such as assumptions that do not hold.
        evaluation: All that the trials depend on: num_samples (N'), seed, metrics,
            normalize_logits, stratified, fingerprints of the model's weights, of its trainable
            weights and of the data, num_parameters, dtypes with their rounding, and sums over a
            few logits; also unit and layers if they are not the defaults.
        num_parameters: W, the number of trainable parameters.
        seconds: The time of the trials of this call and of the training loss. Trials that were
            found in a file do not count.
        trials: The trials one by one.
        layer_weights: For each layer, by its path, the number of its trainable parameters and the
            logarithm of their norm. It is empty without `layers=True`.
    """

    metrics: dict[str, MetricSummary]
    train: DataLoss
    test: DataLoss | None
    notes: tuple[str, ...]
    evaluation: dict[str, Any]
    num_parameters: int
    seconds: float
    trials: tuple[Trial, ...]
    layer_weights: dict[str, tuple[int, float]] = dataclasses.field(default_factory=dict)

    @property
    def layers(self) -> LayerTable:
        """The layers of the network, one row each: `print(report.layers)`.

        Raises:
            ValueError: If the evaluation had no `layers=True`.
        """
        if not self.layer_weights:
            raise ValueError(
                "This report has no layers: give evaluate_local_minimum(..., layers=True)."
            )
        return LayerTable(self.layer_weights, self.trials, self.evaluation)

    def difference(self, other: "LocalMinimumReport") -> dict[str, MetricSummary]:
        """Returns the metrics of this network minus those of another, over pairs of trials.

        Trial t of both networks has the same examples. The common effect of a sample on both
        networks cancels out, so that the standard error is often far below that of each network.

        Args:
            other: The report of the other network, with the same samples of the same data. Trials
                that only one of the reports has do not count.

        Returns:
            Summaries of the metrics that both reports have, by the name of the metric.

        Raises:
            ValueError: If the samples differ.
        """
        summaries.check_same_samples(self.evaluation, other.evaluation)
        return {
            name: summaries.summarize_differences(
                *([trial.metrics[name] for trial in report.trials] for report in (self, other))
            )
            for name in self.metrics
            if name in other.metrics
        }

    def to_frame(self) -> "pandas.DataFrame":
        """Returns the metrics as a data frame, one row each: mean, std and standard_error.

        Raises:
            ImportError: If pandas is not installed.
        """
        require("pandas", install="pandas")
        import pandas

        rows = {name: dataclasses.asdict(summary) for name, summary in self.metrics.items()}
        return pandas.DataFrame.from_dict(rows, orient="index")

    def to_markdown(self) -> str:
        """Returns a section in Markdown, for a model card: metrics, losses, errors and notes."""
        rows = [["metric", "mean", "standard error"]]
        rows += [[n, f"{s.mean:.6g}", f"{s.standard_error:.2g}"] for n, s in self.metrics.items()]
        titles = ["data", "loss", "error (%)", "calibration error (%)", "examples"]
        losses = [titles]
        for name, part in self._losses().items():
            shares = [f"{100 * share:.2f}" for share in (part.error, part.calibration_error)]
            name = name.replace("train", "training")
            losses.append([name, f"{part.loss:.4g}", *shares, str(part.num_examples)])
        notes = "\n".join(f"- {note}" for note in self.notes)
        parts = ("## Local minimum", self._about() + ".", markdown_table(rows))
        return "\n\n".join([*parts, markdown_table(losses), *([notes] if notes else [])]) + "\n"

    def to_json(self) -> str:
        """Returns everything as JSON, with "-inf", "inf" and "nan" for numbers that JSON lacks."""
        record = dataclasses.asdict(self)
        for name, losses in self._losses().items():
            # A property, which `asdict` leaves out.
            record[name]["error"] = losses.error
        return json.dumps(json_ready(record), indent=2, allow_nan=False)

    def __str__(self) -> str:
        """Returns a table of the metrics, the losses and errors, and the notes."""
        lines = [self._about()]
        width = max(map(len, self.metrics))
        lines.append(f"{'':{width}}  {'mean':>12}  {'std. dev.':>12}  {'std. error':>12}")
        for name, summary in self.metrics.items():
            values = (summary.mean, summary.std, summary.standard_error)
            lines.append(f"{name:{width}}  " + "  ".join(f"{value:>12.6g}" for value in values))
        for name, losses in self._losses().items():
            lines.append(
                f"{name}: loss {losses.loss:.4g}, error {100 * losses.error:.2f} % "
                f"({losses.num_errors} of {losses.num_examples}), "
                f"calibration error {100 * losses.calibration_error:.2f} %"
            )
        return "\n".join(lines + [f"Note: {note}" for note in self.notes])

    def _losses(self) -> dict[str, DataLoss]:
        losses = {"train": self.train, "test": self.test}
        return {name: part for name, part in losses.items() if part is not None}

    @property
    def _units(self) -> str:
        """Units of the samples, in the plural."""
        return f"{self.evaluation.get('unit', 'example')}s"

    def _about(self) -> str:
        about = self.evaluation
        text = (
            f"Local minimum of {self.num_parameters} parameters: {len(self.trials)} trials of "
            f"{about['num_samples']} {'stratified ' if about['stratified'] else ''}"
            f"{self._units}, seed {about['seed']}"
        )
        if about["normalize_logits"] is None:
            return text
        of_logits = f"normalize_logits={about['normalize_logits']:g}"
        return f"{text}\nMetrics of normalized logits: {of_logits}"

    def plot_spectrum(self, axes: "Axes | None" = None) -> "Axes":
        """Draws the eigenvalues of xi by rank: their geometric mean and its spread over trials.

        Args:
            axes: Matplotlib axes to draw into. None makes a new figure, which you can save with
                `report.plot_spectrum().figure.savefig("spectrum.png")`.

        Returns:
            The axes. They show decimal logarithms, as eigenvalues may be out of float64's range.

        Raises:
            ValueError: If no metric needed xi.
            ImportError: If no axes are given, and matplotlib is not installed.
        """
        if not self.trials[0].log_spectrum:
            raise ValueError(
                f"There is no spectrum to plot: the metrics {tuple(self.metrics)} need no Gram "
                "matrix. Add 'log_determinant'."
            )
        decimal = np.array([trial.log_spectrum for trial in self.trials]) / math.log(10)
        decimal[np.isneginf(decimal)] = np.nan  # Zero eigenvalues have no place on the axis.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice|Degrees of freedom")
            mean, spread = np.nanmean(decimal, axis=0), np.nanstd(decimal, axis=0)
        if axes is None:
            require("matplotlib")
            from matplotlib.figure import Figure

            # Without pyplot, which may want a display, and keeps each figure until it is closed.
            axes = Figure(layout="constrained").subplots()
        rank = np.arange(1, len(mean) + 1)
        axes.plot(rank, mean)
        axes.fill_between(rank, mean - spread, mean + spread, alpha=0.3, linewidth=0)
        axes.set_xlabel("rank")
        axes.set_ylabel(r"$\log_{10}$ eigenvalue of $\xi$")
        axes.set_title(f"{len(self.trials)} trials of {len(mean)} {self._units}, ±1 std. dev.")
        return axes
