"""All rank correlations at a glance, with partial correlations given the training loss."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fisher_keras.experiments.scenarios.figures.over_variable import FONT_SIZE, LABELS
from fisher_keras.experiments.scenarios.scenario import TITLES
from fisher_keras.experiments.scenarios.summary import (
    ALL_RUNS,
    OTHER_TARGETS,
    Association,
    Correlation,
)

_KINDS = {"rank": ("tau", "#0072B2", "o", -0.17), "partial": ("partial tau", "#D55E00", "s", 0.17)}
_COLUMN_INCHES, _ROW_INCHES = 2.4, 0.24


def forest_figure(lines: Sequence[Correlation]) -> Figure:
    """Draws Kendall's tau of each measure, and its partial tau given the training loss.

    Args:
        lines: What `correlations` returns; those without the flagged runs are left out.

    Returns:
        The figure: a row of panels a scenario, a column a quantity of the test images.
    """
    lines = [line for line in lines if line.runs == ALL_RUNS]
    groups = {
        name: [line for line in lines if line.scenario == name]
        for name in dict.fromkeys(line.scenario for line in lines)
    }
    targets = {"test_error": "test error", **OTHER_TARGETS}
    heights = [len(group) for group in groups.values()]
    figure = Figure(
        figsize=(_COLUMN_INCHES * len(targets) + 1.2, _ROW_INCHES * sum(heights) + 1.2),
        layout="constrained",
    )
    panels = figure.subplots(
        len(groups), len(targets), sharex=True, squeeze=False, height_ratios=heights
    )
    for row, (name, group) in zip(panels, groups.items(), strict=True):
        for axes, target in zip(row, targets, strict=True):
            _draw(axes, group, target)
        row[0].set_yticks(range(len(group)), [LABELS.get(g.measure, g.measure) for g in group])
        title = TITLES.get(name, name)
        row[0].set_title(
            f"{title} ({group[0].rank.num_runs} networks)", loc="left", fontsize=FONT_SIZE
        )
    for axes, title in zip(panels[-1], targets.values(), strict=True):
        axes.set_xlabel(f"tau with the {title}", fontsize=FONT_SIZE)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=FONT_SIZE
    )
    return figure


def _draw(axes: Axes, group: Sequence[Correlation], target: str) -> None:
    for kind, (label, color, marker, shift) in _KINDS.items():
        estimates = [getattr(_association(line, target), kind).kendall for line in group]
        for place, estimate in enumerate(estimates):
            axes.hlines(place + shift, estimate.low, estimate.high, color=color, linewidth=1)
        axes.plot(
            [estimate.value for estimate in estimates],
            np.arange(len(group)) + shift,
            marker,
            color=color,
            markersize=3.5,
            label=label,
        )
    axes.axvline(0, color="gray", linewidth=0.7)
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(len(group) - 0.5, -0.5)
    axes.set_yticks(range(len(group)), [])
    axes.tick_params(labelsize=FONT_SIZE)
    axes.grid(axis="x", alpha=0.25)


def _association(line: Correlation, target: str) -> Association:
    return line.others.get(target) or Association(line.rank, line.partial)
