"""All rank correlations at a glance, with partial correlations given the training loss."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fisher_keras.experiments.scenarios.figures.over_variable import FONT_SIZE, LABELS
from fisher_keras.experiments.scenarios.scenario import TITLES
from fisher_keras.experiments.scenarios.summary import (
    ALL_RUNS,
    TARGETS,
    TEST_ERROR,
    Association,
    Correlation,
)

_KINDS = {"rank": ("tau", "#0072B2", "o", -0.17), "partial": ("partial tau", "#D55E00", "s", 0.17)}
# As wide as the screen of a telephone, so that it is readable there.
_WIDTH_INCHES, _ROW_INCHES = 4.2, 0.24


def forest_figure(lines: Sequence[Correlation], target: str = TEST_ERROR) -> Figure:
    """Draws Kendall's tau of each measure, and its partial tau given the training loss.

    Args:
        lines: What `correlations` returns; those without the flagged runs are left out.
        target: The quantity of the test images that the tau are with, out of `TARGETS`.

    Returns:
        The figure: a panel a scenario.
    """
    lines = [line for line in lines if line.runs == ALL_RUNS]
    groups = {
        name: [line for line in lines if line.scenario == name]
        for name in dict.fromkeys(line.scenario for line in lines)
    }
    heights = [len(group) for group in groups.values()]
    figure = Figure(
        figsize=(_WIDTH_INCHES, _ROW_INCHES * sum(heights) + 0.4 * len(groups) + 0.8),
        layout="constrained",
    )
    panels = figure.subplots(len(groups), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, group) in zip(panels, groups.items(), strict=True):
        _draw(axes, group, target)
        # Its own line for the number: a narrow figure cuts off longer titles.
        title = f"{TITLES.get(name, name)}\n({group[0].rank.num_runs} networks)"
        axes.set_title(title, loc="left", fontsize=FONT_SIZE)
    panels[-1].set_xlabel(f"tau with the {TARGETS[target]}", fontsize=FONT_SIZE)
    handles, labels = panels[0].get_legend_handles_labels()
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
    axes.set_xticks(np.linspace(-1, 1, 5))
    axes.set_ylim(len(group) - 0.5, -0.5)
    axes.set_yticks(range(len(group)), [LABELS.get(g.measure, g.measure) for g in group])
    axes.tick_params(labelsize=FONT_SIZE)
    axes.grid(axis="x", alpha=0.25)


def _association(line: Correlation, target: str) -> Association:
    return Association(line.rank, line.partial) if target == TEST_ERROR else line.others[target]
