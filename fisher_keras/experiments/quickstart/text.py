"""Text of the quickstart: the table, three sentences and the next commands."""

import os
import pathlib
import shlex
import textwrap
from collections.abc import Sequence

import numpy as np

from fisher_keras.experiments.quickstart.networks import STRENGTHS, Settings
from fisher_keras.experiments.quickstart.results import (
    ARMS,
    ERROR,
    STOPPED,
    Network,
    arms,
    differences,
    ordering,
)
from fisher_keras.experiments.quickstart.training import STOPS, VALIDATION_SIZE
from fisher_keras.experiments.statistics.paired import PairedDifference
from fisher_keras.experiments.statistics.rank_correlation import LEVEL, Estimate
from fisher_keras.experiments.statistics.text_tables import mean_and_spread
from fisher_keras.tables import aligned_table

_CHECKOUT = pathlib.Path(__file__).parents[3]
_NEXT = (
    ("train_cifar", "--dataset=digits --method=fisher --output_dir=runs/fisher"),
    ("evaluate", "--dataset=digits --model=runs/fisher/last.keras"),
    ("compare_methods", "--preset=laptop --dry_run"),
)
_INTERVAL = f"{100 * LEVEL:g} % interval"
_NAMES = {
    "plain": "plain training",
    "sam": "sharpness-aware minimization (SAM)",
    STOPPED: "that",
}


def results_table(networks: Sequence[Network], settings: Settings) -> str:
    """Returns the table: a line for each method, mean ± standard deviation over the seeds.

    Args:
        networks: All networks.
        settings: Their settings.
    """
    groups = arms(networks, settings.wrong_labels)
    fisher = groups["fisher"]
    rows = [["", ERROR.title, "fisher less this", "random labels fitted (%)", "gamma-hat"]]
    for arm in ARMS:
        strength = {"sam": " (rho {:g})", "fisher": " (beta {:g})"}.get(arm, "")
        cells = [ERROR.mean(groups[arm])]
        cells.append("–" if arm == "fisher" else ERROR.difference(fisher, groups[arm]))
        for name in ("wrong_labels_fitted", "gamma_hat"):
            values = [getattr(network, name) for network in groups[arm].values()]
            cells.append("–" if arm == STOPPED else mean_and_spread(values, "{:.0f}", "{:.0f}"))
        name = "plain, stopped early" if arm == STOPPED else arm
        rows.append([name + strength.format(STRENGTHS.get(arm)), *cells])
    return aligned_table(rows)


def sentences(networks: Sequence[Network], settings: Settings) -> list[str]:
    """Returns three sentences: against plain training and SAM, against stopping, the metric.

    Args:
        networks: All networks.
        settings: Their settings.

    Returns:
        The sentences. A difference whose interval contains 0 is called noise.
    """
    groups = arms(networks, settings.wrong_labels)
    found = differences(groups)
    errors = {arm: np.mean(ERROR.quantity(groups[arm].values())) for arm in groups}
    share = 100 * settings.wrong_labels / settings.train_size
    return [
        f"With random labels on {share:.0f} % of the training images, the regularizer ends with a "
        f"test error of {errors['fisher']:.1f} %: {_verdict('plain', found)}, and "
        f"{_verdict('sam', found)}.",
        f"Plain training that stops at the best of {len(STOPS)} moments ends with "
        f"{errors[STOPPED]:.1f} %, and the regularizer's error is {_verdict(STOPPED, found)}; "
        f"only clean labels tell that moment, here of {VALIDATION_SIZE} more images, while the "
        "regularizer needs neither clean labels nor a stopping time.",
        f"Over all {len(networks)} networks, {_order(networks)}.",
    ]


def next_commands() -> list[str]:
    """Returns three commands, ready for a shell in the present folder."""
    return [f"{_program(name)} {flags}" for name, flags in _NEXT]


def wrapped(text: str) -> str:
    """Returns a paragraph in lines that fit a terminal."""
    return textwrap.fill(text, width=88)


def _verdict(arm: str, found: dict[str, PairedDifference]) -> str:
    """Returns the comparison of the regularizer with another arm, in words."""
    difference = found[arm]
    mean, low, high = difference.mean, difference.low, difference.high
    if difference.is_within_noise:
        return (
            f"the same as {_NAMES[arm]} within the noise of {difference.num_pairs} seeds "
            f"({mean:+.1f} points, {_INTERVAL} {low:+.1f} to {high:+.1f})"
        )
    kind = "higher"
    if mean < 0:
        # The word "lower" has the sign: the numbers lose it, and so the ends change places.
        kind, mean, low, high = "lower", -mean, -high, -low
    return f"{mean:.1f} points {kind} than {_NAMES[arm]} ({_INTERVAL} {low:.1f} to {high:.1f})"


def _order(networks: Sequence[Network]) -> str:
    tau = ordering(networks)
    if np.isnan(tau.value):
        return "gamma-hat or the test error is the same: there is no order to compare"
    others = {"ln det Xi": "log_det_margins", "the training loss": "excess_loss"}
    taus = [f"Kendall's tau {_estimate(tau)}"]
    taus += [f"of {name} {_estimate(ordering(networks, others[name]))}" for name in others]
    plain = [network for network in networks if network.method == "plain"]
    alone = [f"{ordering(plain, name).value:.2f}" for name in ("gamma_hat", "excess_loss")]
    taus.append(f"of the plain networks alone, gamma-hat {alone[0]} and the loss {alone[1]}")
    values = f"({'; '.join(taus)})"
    if tau.low <= 0 <= tau.high:
        return f"gamma-hat does not order the test errors beyond the noise {values}"
    kind = "lower" if tau.value > 0 else "higher"
    return f"a lower gamma-hat, which takes no test images, goes with a {kind} test error {values}"


def _estimate(tau: Estimate) -> str:
    return f"{tau.value:.2f}, {_INTERVAL} {tau.low:.2f} to {tau.high:.2f}"


def _program(name: str) -> str:
    """Returns the checkout's script if the package is in a checkout, else the command."""
    if not (_CHECKOUT / "bin" / name).is_file():
        return f"fisher-keras {name}"
    # Also in bin/ itself it has a slash, without which a shell looks on PATH.
    return shlex.quote(f"{os.path.relpath(_CHECKOUT / 'bin')}/{name}")
