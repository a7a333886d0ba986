"""gamma-hat of each network against its test error."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fisher_keras.experiments.scenarios.figures.over_variable import AXIS_LABELS, FONT_SIZE, LABELS
from fisher_keras.experiments.scenarios.scenario import Scenario, column

_METRIC = "log_determinant"
_PANEL_INCHES = (4.2, 2.9)  # As wide as the screen of a telephone.


def scatter_figure(scenarios: Sequence[Scenario]) -> Figure:
    """Draws a panel a scenario, a point a network, a color a value of the scenario's variable.

    Runs that are not at a minimum such as the others' are hollow; infinite values are left out.

    Args:
        scenarios: The runs to draw.

    Returns:
        The figure.
    """
    size = _PANEL_INCHES[0], _PANEL_INCHES[1] * len(scenarios)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(scenarios), squeeze=False)[:, 0]
    for axes, scenario in zip(panels, scenarios, strict=True):
        colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(scenario.values)))
        for value, color in zip(scenario.values, colors, strict=True):
            for flagged in (False, True):
                runs = [
                    run
                    for run in scenario.runs
                    if run.value == value and bool(run.flags) == flagged
                ]
                axes.plot(
                    column(runs, "test_error"),
                    _finite(column(runs, _METRIC)),
                    "o",
                    color=color,
                    markersize=4,
                    markerfacecolor="none" if flagged else color,
                    label=None if flagged else str(value),
                )
        axes.set_xlabel("test error (%)", fontsize=FONT_SIZE)
        axes.set_title(scenario.title, fontsize=FONT_SIZE)
        axes.tick_params(labelsize=FONT_SIZE)
        axes.grid(alpha=0.25)
        legend = axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            ncols=4,
            title=AXIS_LABELS[scenario.variable],
            fontsize=FONT_SIZE - 1,
            frameon=False,
        )
        legend.get_title().set_fontsize(FONT_SIZE - 1)
        axes.set_ylabel(LABELS[_METRIC], fontsize=FONT_SIZE)
    return figure


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)
