"""Figure of the quickstart: test errors by method, and gamma-hat against the test error."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fisher_keras.experiments.quickstart.networks import Settings
from fisher_keras.experiments.quickstart.results import ARMS, ERROR, Network, arms, ordering

_LABELS = ("plain", "SAM", "Fisher", "plain,\nstopped\nearly")
_MARKERS = {"plain": "o", "sam": "s", "fisher": "^"}
_FISHER = "#009E73"  # Of Okabe and Ito, whose colors can be told apart by everybody.


def quickstart_figure(networks: Sequence[Network], settings: Settings) -> Figure:
    """Draws both panels.

    Args:
        networks: All networks.
        settings: Their settings.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(7.8, 4.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_methods(left, arms(networks, settings.wrong_labels))
    share = 100 * settings.wrong_labels / settings.train_size
    left.set_title(f"{share:.0f} % random training labels")
    _draw_order(right, networks, settings)
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.set_ylabel("test error (%)")
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_methods(axes: Axes, groups: Mapping[str, Mapping[int, Network]]) -> None:
    """Draws a line for each seed over the methods, and the mean of each method."""
    errors = np.array([ERROR.quantity(groups[arm].values()) for arm in ARMS])
    places = np.arange(len(ARMS))
    axes.plot(places, errors, "-o", color="0.7", linewidth=0.8, markersize=3)
    for place, mean, arm in zip(places, errors.mean(axis=1), ARMS, strict=True):
        color = _FISHER if arm == "fisher" else "black"
        axes.plot([place - 0.25, place + 0.25], [mean, mean], color=color, linewidth=3)
        bottom = {"xycoords": axes.get_xaxis_transform(), "ha": "center", "fontweight": "bold"}
        axes.annotate(f"{mean:.1f}", (place, 0.03), color=color, **bottom)
    axes.set_xticks(places, _LABELS)
    axes.set_xlim(-0.5, len(ARMS) - 0.5)
    axes.set_xlabel(f"gray: {errors.shape[1]} seeds; bar and number: their mean")


def _draw_order(axes: Axes, networks: Sequence[Network], settings: Settings) -> None:
    """Draws a point for each network, its color the share of random labels."""
    for method, marker in _MARKERS.items():
        of_method = [network for network in networks if network.method == method]
        points = axes.scatter(
            [network.gamma_hat for network in of_method],
            [network.test_error for network in of_method],
            c=[100 * network.wrong_labels / settings.train_size for network in of_method],
            vmin=0,  # One scale for all methods.
            vmax=100 * max(network.wrong_labels for network in networks) / settings.train_size,
            cmap="viridis_r",
            marker=marker,
            edgecolors="black",
            linewidths=0.5,
            label=_LABELS[ARMS.index(method)],
        )
    axes.figure.colorbar(points, ax=axes, label="random labels (%)")
    for handle in axes.legend(frameon=False, loc="upper left").legend_handles:
        handle.set_array(None)  # Else it has a color of its own.
        handle.set_facecolor("0.8")
    axes.set_xlabel(r"$\hat\gamma$ of training images (lower is better)")
    tau = ordering(networks)
    value = "" if np.isnan(tau.value) else rf": Kendall's $\tau$ = {tau.value:.2f}"
    axes.set_title(f"{len(networks)} networks{value}")
