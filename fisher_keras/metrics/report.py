"""The report of an evaluation."""

import dataclasses
import json
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fisher_keras.extras import require
from fisher_keras.metrics.loss_and_errors import DataLoss
from fisher_keras.metrics.trials import Trial, json_ready

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class MetricSummary:
    """A metric over T trials.

    Attributes:
        mean: The estimate; for the log-determinant, the paper's gamma-hat.
        std: Standard deviation between the trials (T - 1 in the denominator); NaN for one trial,
            or where a trial's value is infinite.
        standard_error: Of the mean: std / sqrt(T).
    """

    mean: float
    std: float
    standard_error: float


@dataclasses.dataclass(frozen=True)
class LocalMinimumReport:
    """The result of `evaluate_local_minimum`; `str` of it is a table.

    Attributes:
        metrics: Summary over the trials by the metric's name.
        train: Loss, errors and calibration on the training data.
        test: The same on the test data, None if there were none.
        notes: Warnings to read before trusting the metrics, such as assumptions that do not hold.
        evaluation: All that the trials depend on: num_samples (N'), seed, metrics,
            normalize_logits, stratified, fingerprints of the model's weights, of the trainable
            ones among them and of the data, dtypes, and sums over a few logits.
        num_parameters: W, the number of trainable parameters.
        seconds: The time that the trials of this call took, together with the training loss; those
            found in a file do not count.
        trials: The trials one by one.
    """

    metrics: dict[str, MetricSummary]
    train: DataLoss
    test: DataLoss | None
    notes: tuple[str, ...]
    evaluation: dict[str, Any]
    num_parameters: int
    seconds: float
    trials: tuple[Trial, ...]

    def to_json(self) -> str:
        """Returns everything as JSON, infinite and undefined numbers as "-inf", "inf", "nan"."""
        record = dataclasses.asdict(self)
        for name, losses in (("train", self.train), ("test", self.test)):
            if losses is not None:
                # A property, which `asdict` leaves out.
                record[name]["error"] = losses.error
        return json.dumps(json_ready(record), indent=2, allow_nan=False)

    def __str__(self) -> str:
        """Returns a table of the metrics, the losses and errors, and the notes."""
        about = self.evaluation
        lines = [
            f"Local minimum of {self.num_parameters} parameters: {len(self.trials)} trials of "
            f"{about['num_samples']} {'stratified ' if about['stratified'] else ''}"
            f"{about.get('unit', 'example')}s, seed {about['seed']}"
        ]
        if about["normalize_logits"] is not None:
            lines.append(
                f"Metrics of normalized logits: normalize_logits={about['normalize_logits']:g}"
            )
        width = max(map(len, self.metrics))
        lines.append(f"{'':{width}}  {'mean':>12}  {'std. dev.':>12}  {'std. error':>12}")
        for name, summary in self.metrics.items():
            values = (summary.mean, summary.std, summary.standard_error)
            lines.append(f"{name:{width}}  " + "  ".join(f"{value:>12.6g}" for value in values))
        for name, losses in (("train", self.train), ("test", self.test)):
            if losses is not None:
                lines.append(
                    f"{name}: loss {losses.loss:.4g}, error {100 * losses.error:.2f} % "
                    f"({losses.num_errors} of {losses.num_examples}), "
                    f"calibration error {100 * losses.calibration_error:.2f} %"
                )
        return "\n".join(lines + [f"Note: {note}" for note in self.notes])

    def plot_spectrum(self, axes: "Axes | None" = None) -> "Axes":
        """Draws the eigenvalues of xi by rank: their geometric mean and its spread over trials.

        Args:
            axes: Matplotlib axes to draw into; None makes a figure, which the axes know:
                `report.plot_spectrum().figure.savefig("spectrum.png")`.

        Returns:
            The axes. Decimal logarithms are drawn, as eigenvalues may be beyond float64.

        Raises:
            ValueError: If no metric needed xi.
            ImportError: If there are no axes, and matplotlib is not installed.
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
        axes.set_title(f"{len(self.trials)} trials of {len(mean)} examples, ±1 std. dev.")
        return axes


def summarize(values: Sequence[float]) -> MetricSummary:
    """Returns mean, standard deviation and standard error of one metric over the trials."""
    values = np.asarray(values)
    # Where a trial is infinite, the deviation is inf - inf: NaN, as documented.
    with np.errstate(invalid="ignore"):
        std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        return MetricSummary(float(np.mean(values)), std, std / math.sqrt(len(values)))
