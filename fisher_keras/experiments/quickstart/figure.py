"""The figure of both halves: learning curves, and gamma-hat against the test error."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from fisher_keras.experiments.quickstart.networks import METHODS
from fisher_keras.experiments.quickstart.results import MethodRun, Minimum, ordering
from fisher_keras.experiments.statistics.rank_correlation import LEVEL

_FONT_SIZE = 10
# Of Okabe and Ito, who chose them to be told apart by everybody.
_METHOD_STYLES = {
    "baseline": ("#0072B2", ":"),
    "clipped": ("#E69F00", "--"),
    "regularized": ("#009E73", "-"),
}
_SIZE_STYLES = (("#56B4E9", "o"), ("#CC79A7", "s"), ("#D55E00", "D"), ("#000000", "^"))


def quickstart_figure(runs: Sequence[MethodRun], minima: Sequence[Minimum]) -> Figure:
    """Draws three panels: training loss and test error of the methods, and the minima.

    Args:
        runs: Of the first half.
        minima: Of the second half.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 1), wspace=0.02)
    left.suptitle("The regularizer: training without it and with it")
    losses, errors = left.subplots(1, 2)
    _draw_curves(losses, runs, "train_losses")
    losses.set_title("training cross-entropy, mean over the epoch", fontsize=_FONT_SIZE)
    losses.legend(title=f"mean and range of {len(runs) // len(METHODS)} seeds", frameon=False)
    _draw_curves(errors, runs, "test_errors")
    errors.set_title("test error (%)", fontsize=_FONT_SIZE)
    right.suptitle(r"The metric: $\hat\gamma$ against the test error")
    scatter = right.subplots()
    _draw_minima(scatter, minima)
    for axes in (losses, errors, scatter):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_curves(axes: Axes, runs: Sequence[MethodRun], name: str) -> None:
    """Draws a quantity against epochs: mean over the seeds, and their range."""
    for method, (color, line) in _METHOD_STYLES.items():
        curves = np.array([getattr(run, name) for run in runs if run.method == method])
        epochs = np.arange(1, curves.shape[1] + 1)
        axes.plot(epochs, curves.mean(axis=0), line, color=color, label=method, linewidth=1.8)
        low, high = curves.min(axis=0), curves.max(axis=0)
        axes.fill_between(epochs, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel="epoch", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_minima(axes: Axes, minima: Sequence[Minimum]) -> None:
    sizes = sorted({minimum.confusion_size for minimum in minima})
    for index, size in enumerate(sizes):
        color, marker = _SIZE_STYLES[index % len(_SIZE_STYLES)]
        of_size = [minimum for minimum in minima if minimum.confusion_size == size]
        axes.plot(
            [minimum.gamma_hat for minimum in of_size],
            [minimum.test_error for minimum in of_size],
            marker,
            color=color,
            label=str(size),
            markersize=7,
            alpha=0.85,
        )
    axes.set(xlabel=r"$\hat\gamma$ (a point is a network)", ylabel="test error (%)")
    axes.set_ylim(bottom=0)
    axes.legend(title="random labels", frameon=False)
    tau = ordering(minima).tau
    if not np.isnan(tau.value):
        interval = f"{100 * LEVEL:g} %: {tau.low:.2f} to {tau.high:.2f}"
        axes.set_title(rf"Kendall's $\tau$ {tau.value:.2f} ({interval})", fontsize=_FONT_SIZE)
