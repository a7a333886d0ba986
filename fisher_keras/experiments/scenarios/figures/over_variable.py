"""Figures 1 to 3: the metrics of a scenario's minima, each beside the test error."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fisher_keras.experiments.scenarios.scenario import Scenario, ScenarioRun, column
from fisher_keras.metrics import METRICS

LABELS = {name: metric.label for name, metric in METRICS.items()}
LABELS |= {
    "batch_size_over_learning_rate": "batch size / learning rate",
    "train_loss": "training loss",
    "random": "random number",
}
AXIS_LABELS = {
    "confusion_size": "size of the confusion set",
    "augmentation": "data augmentation",
    "batch_size": "batch size",
}
# Of Okabe and Ito, who chose them to be told apart by everybody.
_METRIC_COLOR = "#0072B2"
_ERROR_COLOR = "#D55E00"
_LOG_SPREAD = 100  # Between the largest and the smallest value.
_SHIFT = 0.03  # So that nothing of the two curves lies exactly on the other.
_PANEL_INCHES = (3.4, 2.2)
_MANY = 8  # Metrics; of more, two columns would be too long for a page.
FONT_SIZE = 8


def scenario_figure(scenario: Scenario) -> Figure:
    """Draws a panel for each metric: mean and ±1 standard deviation, and those of the test error.

    Runs that are not at a minimum such as the others' count in both and are marked; infinite
    values count in neither and are marked at the edge. A standard deviation needs two runs.

    Args:
        scenario: The runs to draw.

    Returns:
        The figure.
    """
    metrics = scenario.metrics
    num_columns = min(2 if len(metrics) <= _MANY else 3, len(metrics))
    num_rows = -(-len(metrics) // num_columns)
    size = _PANEL_INCHES[0] * num_columns, _PANEL_INCHES[1] * num_rows + 0.5
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, metric in zip(panels, metrics, strict=False):
        _draw_panel(axes, scenario, metric)
    for axes in panels[len(metrics) :]:
        axes.set_axis_off()
    figure.supxlabel(AXIS_LABELS[scenario.variable], fontsize=FONT_SIZE)
    figure.legend(
        handles=_legend(scenario),
        loc="outside upper center",
        ncols=5,
        frameon=False,
        fontsize=FONT_SIZE,
        columnspacing=1.2,
    )
    return figure


def _draw_panel(axes: Axes, scenario: Scenario, metric: str) -> None:
    values = column(scenario.runs, metric)
    logarithmic = _spread(values) > _LOG_SPREAD
    label = LABELS.get(metric, metric)
    if logarithmic:
        axes.set_yscale("log")
        label += "\n(geometric mean)"
    _draw(axes, scenario, values, _METRIC_COLOR, "-", -_SHIFT, logarithmic)
    axes.set_ylabel(label, color=_METRIC_COLOR, fontsize=FONT_SIZE)
    axes.set_xticks(range(len(scenario.values)), list(map(str, scenario.values)))
    axes.grid(axis="x", alpha=0.25)

    right = axes.twinx()
    errors = column(scenario.runs, "test_error")
    _draw(right, scenario, errors, _ERROR_COLOR, "--", _SHIFT)
    right.set_ylabel("test error (%)", color=_ERROR_COLOR, fontsize=FONT_SIZE)
    for side, color in ((axes, _METRIC_COLOR), (right, _ERROR_COLOR)):
        side.tick_params(axis="both", labelsize=FONT_SIZE)
        side.tick_params(axis="y", colors=color, which="both")
        side.spines["top"].set_visible(False)


def _spread(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    positive = len(finite) > 0 and finite.min() > 0
    return finite.max() / finite.min() if positive else 1.0


def _draw(
    axes: Axes,
    scenario: Scenario,
    values: np.ndarray,
    color: str,
    line: str,
    shift: float,
    logarithmic: bool = False,
) -> None:
    """Draws one quantity; on a logarithmic axis, mean and deviation are of the logarithms."""
    places = np.array([scenario.values.index(run.value) for run in scenario.runs])
    finite = np.isfinite(values)
    scaled = np.log10(values, where=finite, out=values.copy()) if logarithmic else values
    groups = [scaled[finite & (places == place)] for place in range(len(scenario.values))]
    means = np.array([group.mean() if len(group) else np.nan for group in groups])
    stds = np.array([group.std(ddof=1) if len(group) > 1 else np.nan for group in groups])
    curves = (means, means - stds, means + stds)
    mean, low, high = (10**curve for curve in curves) if logarithmic else curves
    order = np.arange(len(groups)) + shift
    axes.plot(order, mean, line, color=color, marker=".")
    axes.fill_between(order, low, high, color=color, alpha=0.18, linewidth=0)
    # A band needs two neighbours that have a deviation.
    axes.vlines(order, low, high, color=color, linewidth=0.8, alpha=0.6)
    for run, x, y in zip(scenario.runs, places + shift, values, strict=True):
        _mark(axes, run, x, y, color)


def _mark(axes: Axes, run: ScenarioRun, x: float, y: float, color: str) -> None:
    """Marks a run that is infinite, at the axes' edge, or not converged."""
    if np.isinf(y):
        marker, height = ("v", 0.03) if y < 0 else ("^", 0.97)
        axes.plot(x, height, marker, transform=axes.get_xaxis_transform(), **_hollow(color))
    elif run.flags and not np.isnan(y):
        axes.plot(x, y, "D", **_hollow(color))


def _hollow(color: str) -> dict[str, object]:
    return {"color": color, "markerfacecolor": "none", "linestyle": "none", "markersize": 5}


def _legend(scenario: Scenario) -> list[Line2D | Patch]:
    handles = [
        Line2D([], [], color=_METRIC_COLOR, marker=".", label="metric (left)"),
        Line2D([], [], color=_ERROR_COLOR, marker=".", ls="--", label="test error (right)"),
        Patch(color="gray", alpha=0.3, linewidth=0, label="±1 standard deviation"),
    ]
    if any(run.flags for run in scenario.runs):
        handles.append(Line2D([], [], marker="D", label="not converged", **_hollow("black")))
    numbers = np.array([column(scenario.runs, metric) for metric in scenario.metrics])
    if np.isinf(numbers).any():
        handles.append(Line2D([], [], marker="v", label="infinite", **_hollow("black")))
    return handles
