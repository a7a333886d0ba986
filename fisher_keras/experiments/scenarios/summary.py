"""What the runs of the scenarios come to: tables of means and of rank correlations."""

import dataclasses
import json
from collections.abc import Callable, Sequence

import numpy as np

from fisher_keras.experiments.scenarios.results import (
    Scenario,
    ScenarioRun,
    column,
    common_metrics,
)
from fisher_keras.experiments.statistics.rank_correlation import (
    LEVEL,
    NUM_RESAMPLES,
    Estimate,
    RankCorrelation,
    granulated_kendall,
    kendall_correlation,
    rank_correlation,
)
from fisher_keras.experiments.statistics.text_tables import markdown_table
from fisher_keras.metrics.trials import json_ready

TRAIN_LOSS = "train_loss"
ALL_RUNS, CONVERGED = "all", "converged"
_ALL_SCENARIOS = "all scenarios"
_NOTES = f"""\
A positive coefficient: lower values of the metric go with lower test errors, 1 being the same
order. In brackets, the {LEVEL:.0%} percentile interval of {NUM_RESAMPLES} bootstrap resamples of
the runs; an order without an exception has one without width, however few the runs are. Granulated
(Jiang et al., 2020): Kendall's tau over the values of the variable, each seed by itself, in the
mean over the seeds; of all scenarios, the mean of theirs. `{TRAIN_LOSS}` is no metric of the
paper: it tells how far the order follows from how far each network was trained, and the last
column how far a metric's own order does."""


@dataclasses.dataclass(frozen=True)
class Correlation:
    """A line of the table of rank correlations.

    Attributes:
        scenario: Name of the experiment, or "all scenarios" where several are compared together.
        runs: `ALL_RUNS`, or `CONVERGED` for those without a flag.
        measure: Name of a metric, or `TRAIN_LOSS`.
        rank: Kendall's tau-b and Spearman's rho with the test error.
        granulated: The granulated coefficient, see `granulated_kendall`.
        with_train_loss: Kendall's tau-b with the training loss.
    """

    scenario: str
    runs: str
    measure: str
    rank: RankCorrelation
    granulated: float
    with_train_loss: Estimate


def correlations(scenarios: Sequence[Scenario]) -> list[Correlation]:
    """Correlates each measure with the test error, for each scenario and over several.

    Args:
        scenarios: What `read_scenarios` returns.

    Returns:
        All lines of the table. Where runs are flagged, a second time without them. Over several
        scenarios, those metrics that all have; a network that is in two is counted once.
    """
    lines = []
    for scenario in scenarios:
        lines += _with_and_without_flagged([scenario], scenario.experiment)
    if len(scenarios) > 1:
        lines += _with_and_without_flagged(scenarios, _ALL_SCENARIOS)
    return lines


def _with_and_without_flagged(scenarios: Sequence[Scenario], name: str) -> list[Correlation]:
    lines = _correlate([scenario.runs for scenario in scenarios], name, ALL_RUNS)
    if any(run.flags for scenario in scenarios for run in scenario.runs):
        converged = [[run for run in scenario.runs if not run.flags] for scenario in scenarios]
        lines += _correlate(converged, name, CONVERGED)
    return lines


def _correlate(
    groups: Sequence[Sequence[ScenarioRun]], name: str, which: str
) -> list[Correlation]:
    networks = list({run.training: run for runs in groups for run in runs}.values())
    return [
        Correlation(
            name,
            which,
            measure,
            rank_correlation(column(networks, measure), column(networks, "test_error")),
            _mean_granulated(groups, measure),
            kendall_correlation(column(networks, measure), column(networks, TRAIN_LOSS)),
        )
        for measure in [*common_metrics(networks), TRAIN_LOSS]
    ]


def _mean_granulated(groups: Sequence[Sequence[ScenarioRun]], measure: str) -> float:
    coefficients = [
        granulated_kendall(
            column(runs, measure), column(runs, "test_error"), [run.seed for run in runs]
        )
        for runs in groups
    ]
    defined = [value for value in coefficients if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def correlation_table(lines: Sequence[Correlation]) -> str:
    """Formats the rank correlations with the test error as a Markdown table."""
    coefficients = ["Kendall's tau", "Spearman's rho", "granulated", "tau with train loss"]
    head = ["scenario", "runs", "metric", "n", *coefficients]
    rows = [
        [
            line.scenario,
            line.runs,
            line.measure,
            str(line.rank.num_runs),
            _estimate(line.rank.kendall),
            _estimate(line.rank.spearman),
            _coefficient(line.granulated),
            _estimate(line.with_train_loss),
        ]
        for line in lines
    ]
    return markdown_table([head, *rows], num_names=3)


def scenario_table(scenario: Scenario) -> str:
    """Formats a Markdown table of a scenario: a line a value, mean ± std over its seeds."""
    columns: list[tuple[str, str, Callable[[float], str]]] = [
        ("test error (%)", "test_error", "{:.2f}".format),
        *((metric, metric, "{:.4g}".format) for metric in scenario.metrics),
        ("train loss", TRAIN_LOSS, "{:.2g}".format),
        ("train error (%)", "train_error", "{:.3f}".format),
    ]
    head = [scenario.variable, "runs", *(title for title, _, _ in columns), "flagged"]
    rows = []
    for value in scenario.values:
        runs = [run for run in scenario.runs if run.value == value]
        cells = [_mean(column(runs, name), form) for _, name, form in columns]
        flagged = sum(bool(run.flags) for run in runs)
        rows.append([str(value), str(len(runs)), *cells, str(flagged or "")])
    return markdown_table([head, *rows])


def summary(scenarios: Sequence[Scenario], lines: Sequence[Correlation]) -> str:
    """Formats everything as Markdown: tables, figures, flagged runs and rank correlations.

    Args:
        scenarios: The runs.
        lines: What `correlations` returns for them.

    Returns:
        The text; it shows `figures/<experiment>.png`.
    """
    parts = ["# Do the metrics capture the test error?"]
    for scenario in scenarios:
        losses = column(scenario.runs, TRAIN_LOSS)
        parts += [
            f"## {scenario.title}",
            f"![{scenario.title}](figures/{scenario.experiment}.png)",
            "Mean ± standard deviation over the seeds. The training losses are between "
            f"{losses.min():.2g} and {losses.max():.2g}.",
            scenario_table(scenario),
        ]
        flagged = [run for run in scenario.runs if run.flags]
        if flagged:
            parts.append("Not at a minimum such as the others', but counted:")
            parts.append(
                "\n".join(
                    f"- {scenario.variable} {run.value}, seed {run.seed} (run {run.key}): "
                    f"{', '.join(run.flags)}"
                    for run in flagged
                )
            )
    parts += ["## Rank correlations with the test error", _NOTES, correlation_table(lines)]
    return "\n\n".join(parts) + "\n"


def summary_json(scenarios: Sequence[Scenario], lines: Sequence[Correlation]) -> str:
    """Returns the runs that were compared, and the rank correlations, as JSON."""
    record = {
        "level": LEVEL,
        "correlations": [dataclasses.asdict(line) for line in lines],
        "scenarios": [dataclasses.asdict(scenario) for scenario in scenarios],
    }
    return json.dumps(json_ready(record), indent=2, allow_nan=False) + "\n"


def _mean(values: np.ndarray, form: Callable[[float], str]) -> str:
    """Mean ± std of the finite values, and how many of which are not."""
    finite = values[np.isfinite(values)]
    text = form(finite.mean()) if len(finite) else "–"
    if len(finite) > 1:
        text += f" ± {finite.std(ddof=1):.3g}"
    for other, name in ((-np.inf, "-inf"), (np.inf, "inf"), (np.nan, "nan")):
        count = np.count_nonzero(np.isnan(values) if np.isnan(other) else values == other)
        text += f" ({count} of {len(values)}: {name})" if count else ""
    return text


def _estimate(estimate: Estimate) -> str:
    text = _coefficient(estimate.value)
    if not np.isnan(estimate.low):
        text += f" [{_coefficient(estimate.low)}, {_coefficient(estimate.high)}]"
    return text


def _coefficient(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"
