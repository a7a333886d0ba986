"""The figure of both halves: learning curves, and gamma-hat against the test error."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from fisher_keras.experiments.quickstart.networks import METHODS
from fisher_keras.experiments.quickstart.results import MethodRun, Minimum, ordering

# Of Okabe and Ito, who chose them to be told apart by everybody.
_METHOD_STYLES = {
    "baseline": ("#0072B2", ":"),
    "clipped": ("#E69F00", "--"),
    "regularized": ("#009E73", "-"),
}
_SIZE_COLORS = ("#56B4E9", "#CC79A7", "#D55E00", "#000000")
_SIZE_MARKERS = "osD^"


def quickstart_figure(runs: Sequence[MethodRun], minima: Sequence[Minimum]) -> Figure:
    """Draws three panels: training loss and test error of the methods, and the minima.

    Args:
        runs: Of the first half.
        minima: Of the second half.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    losses, errors, scatter = figure.subplots(1, 3)
    _draw_curves(losses, runs, "train_losses")
    losses.set(
        ylabel="training cross-entropy\n(mean over the epoch)", title="Regularizer: training"
    )
    _draw_curves(errors, runs, "test_errors")
    errors.set(ylabel="test error (%)", title="Regularizer: test")
    errors.legend(title=f"mean and range\nof {len(runs) // len(METHODS)} seeds", frameon=False)
    _draw_minima(scatter, minima)
    return figure


def _draw_curves(axes: Axes, runs: Sequence[MethodRun], name: str) -> None:
    """Draws a quantity against epochs: mean over the seeds, and their range."""
    for method, (color, line) in _METHOD_STYLES.items():
        curves = np.array([getattr(run, name) for run in runs if run.method == method])
        epochs = np.arange(1, curves.shape[1] + 1)
        axes.plot(epochs, curves.mean(axis=0), line, color=color, label=method)
        axes.fill_between(
            epochs,
            curves.min(axis=0),
            curves.max(axis=0),
            color=color,
            alpha=0.2,
            linewidth=0,
        )
    axes.set(xlabel="epoch", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _draw_minima(axes: Axes, minima: Sequence[Minimum]) -> None:
    sizes = sorted({minimum.confusion_size for minimum in minima})
    for index, size in enumerate(sizes):
        of_size = [minimum for minimum in minima if minimum.confusion_size == size]
        axes.plot(
            [minimum.gamma_hat for minimum in of_size],
            [minimum.test_error for minimum in of_size],
            _SIZE_MARKERS[index % len(_SIZE_MARKERS)],
            color=_SIZE_COLORS[index % len(_SIZE_COLORS)],
            label=str(size),
        )
    tau = ordering(minima).tau
    axes.set(
        xlabel=r"$\hat\gamma$ (lower is better)",
        ylabel="test error (%)",
        title=rf"Metric: Kendall's $\tau$ = {tau.value:.2f} [{tau.low:.2f}, {tau.high:.2f}]",
    )
    axes.legend(title="random labels", frameon=False)
    axes.grid(alpha=0.3)
