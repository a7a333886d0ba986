"""Summary tables of the scenarios: means, and rank correlations."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fisher_keras.experiments.runs.trained_network import common_metrics
from fisher_keras.experiments.scenarios.scenario import (
    NOISE,
    Scenario,
    ScenarioRun,
    column,
    hyperparameters,
    noise,
)
from fisher_keras.experiments.scenarios.varied_settings import (
    SHARES_NOTES,
    STRATA_NOTES,
    shares_table,
    strata_table,
)
from fisher_keras.experiments.statistics.conditional_information import (
    MAX_CONDITIONS,
    conditional_information,
)
from fisher_keras.experiments.statistics.partial_correlation import partial_rank_correlation
from fisher_keras.experiments.statistics.permutation import holm, level_permutation_p_value
from fisher_keras.experiments.statistics.rank_correlation import (
    LEVEL,
    NUM_RESAMPLES,
    Estimate,
    RankCorrelation,
    coefficient_cell,
    estimate_cell,
    granulated_kendall,
    kendall_correlation,
    kendall_difference,
    rank_correlation,
)
from fisher_keras.experiments.statistics.sign_error import SignError, robust_sign_error
from fisher_keras.experiments.statistics.text_tables import markdown_table, mean_and_spread, p_cell
from fisher_keras.metrics.trials import json_ready

TRAIN_LOSS, RANDOM = "train_loss", "random"
# They are no metrics, and there to compare with: no correction counts them.
_BASELINES = (TRAIN_LOSS, NOISE, RANDOM)
ALL_RUNS, CONVERGED = "all", "converged"
_ALL_SCENARIOS = "all scenarios"
_NOTES = f"""\
A positive coefficient: lower values of the metric go with lower test errors, 1 being the same
order. In brackets, the {LEVEL:.0%} percentile interval of {NUM_RESAMPLES} bootstrap resamples of
the runs; an order without an exception has one without width, however few the runs are. Granulated
(Jiang et al., 2020): Kendall's tau over the values of the variable, each seed by itself, in the
mean over the seeds; of all scenarios, the mean of theirs. `{TRAIN_LOSS}` is no metric of the
paper: it tells how far the order follows from how far each network was trained, and the last
column how far a metric's own order does. `{NOISE}` is the inverse of
the noise of SGD, where networks differ in it. `{RANDOM}` is one random number a network: an
example of what chance gives. Where settings are repeated with other seeds, a resample draws
settings."""
_LEFT_NOTES = f"""\
Partial tau and rho: the rank correlation with the test error, given the training loss. Conditional
information (Jiang et al., 2020): the share of what is uncertain about which of two networks is
better, given up to {MAX_CONDITIONS} of their hyperparameters, that the metric tells, in the worst
case; few networks make it too high, so compare with `{RANDOM}`. Sign-error (Dziugaite et al.,
2020): how often the metric is wrong about two settings that differ in one hyperparameter, in the
mean and in the worst case; 0.5 is chance."""
_SIGNIFICANCE_NOTES = """\
p: the share of all orders of the variable's levels in which metric and test error go together as
far, two-sided; k levels have k! orders. Holm corrects it for the number of rows that have a p.
Last, how much higher Kendall's tau is than the first metric's, over the same resamples."""
_OTHER_NOTES = """\
Kendall's tau, and partial tau given the training loss, with the test error less the training error
in place of the test error, and with the test cross-entropy."""
# What a metric may be compared with beside the test error.
OTHER_TARGETS = {"generalization_gap": "generalization gap", "test_loss": "test cross-entropy"}
TEST_ERROR = "test_error"
TARGETS = {TEST_ERROR: "test error", **OTHER_TARGETS}


@dataclasses.dataclass(frozen=True)
class Association:
    """Rank correlations of a metric with a quantity of the test images.

    Attributes:
        rank: Kendall's tau-b and Spearman's rho.
        partial: The same, given the training loss.
    """

    rank: RankCorrelation
    partial: RankCorrelation


@dataclasses.dataclass(frozen=True)
class Correlation:
    """A line of the table of rank correlations.

    Attributes:
        scenario: Name of the experiment, or "all scenarios" where several are compared together.
        runs: `ALL_RUNS`, or `CONVERGED` for those without a flag.
        measure: Name of a metric, `TRAIN_LOSS`, `NOISE` or `RANDOM`.
        rank: Kendall's tau-b and Spearman's rho with the test error.
        granulated: The granulated coefficient, see `granulated_kendall`.
        with_train_loss: Kendall's tau-b with the training loss.
        partial: tau-b and rho with the test error, given the training loss.
        information: The conditional information, see `conditional_information`.
        sign_error: See `robust_sign_error`.
        others: Rank correlations of the measure with each of `OTHER_TARGETS`.
        p_value: Of the permutations of the variable's levels, see `level_permutation_p_value`;
            NaN over several scenarios or settings.
        less_first: How much higher its tau is than that of the first metric.
    """

    scenario: str
    runs: str
    measure: str
    rank: RankCorrelation
    granulated: float
    with_train_loss: Estimate
    partial: RankCorrelation
    information: Estimate
    sign_error: SignError
    others: Mapping[str, Association]
    p_value: float
    less_first: Estimate


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
    if any(scenario.converged != scenario.runs for scenario in scenarios):
        lines += _correlate([scenario.converged for scenario in scenarios], name, CONVERGED)
    return lines


def _correlate(
    groups: Sequence[Sequence[ScenarioRun]], name: str, which: str
) -> list[Correlation]:
    networks = list({run.training: run for runs in groups for run in runs}.values())
    columns = {name: column(networks, name) for name in ("test_error", TRAIN_LOSS, *OTHER_TARGETS)}
    error, train_loss = columns["test_error"], columns[TRAIN_LOSS]
    differing = hyperparameters(networks)
    # The smallest number makes no difference of test errors look more certain than it is.
    num_test_images = min((run.num_test_images for run in networks), default=0)
    measures = [*common_metrics(networks), *noise(networks), TRAIN_LOSS, RANDOM]
    units = [run.unit for run in networks]
    lines = []
    for measure in measures:
        values = column(networks, measure)
        associations = {
            target: Association(
                rank_correlation(values, columns[target], units),
                partial_rank_correlation(values, columns[target], train_loss, units),
            )
            for target in ("test_error", *OTHER_TARGETS)
        }
        with_error = associations.pop("test_error")
        lines.append(
            Correlation(
                name,
                which,
                measure,
                with_error.rank,
                _mean_granulated(groups, measure),
                kendall_correlation(values, train_loss, units),
                with_error.partial,
                conditional_information(values, error, differing, units),
                robust_sign_error(values, error, differing, num_test_images, units),
                associations,
                _p_value(groups, differing, measure),
                kendall_difference(values, column(networks, measures[0]), error, units),
            )
        )
    return lines


def _p_value(
    groups: Sequence[Sequence[ScenarioRun]], differing: Mapping[str, object], measure: str
) -> float:
    runs, *others = groups
    # Levels can only be exchanged where nothing else differs between them.
    if others or len(differing) != 1:
        return float("nan")
    levels = [run.value for run in runs]
    seeds = {tuple(run.seed for run in runs if run.value == level) for level in levels}
    # A level's errors take the places of another's seed by seed.
    if len(seeds) != 1:
        return float("nan")
    # A scenario has its runs by value and then by seed, the order that the test needs.
    values, errors = column(runs, measure), column(runs, "test_error")
    return level_permutation_p_value(values, errors, levels)


def _mean_granulated(groups: Sequence[Sequence[ScenarioRun]], measure: str) -> float:
    coefficients = [
        granulated_kendall(
            column(runs, measure), column(runs, "test_error"), [run.seed for run in runs]
        )
        for runs in groups
        # Where several settings vary, the networks of a seed are not those of one variable.
        if len(hyperparameters(runs)) == 1
    ]
    defined = [value for value in coefficients if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def correlation_table(lines: Sequence[Correlation]) -> str:
    """Formats the rank correlations with the test error as a Markdown table."""
    columns = {
        "n": lambda line: str(line.rank.num_runs),
        "Kendall's tau": lambda line: estimate_cell(line.rank.kendall),
        "Spearman's rho": lambda line: estimate_cell(line.rank.spearman),
        "granulated": lambda line: coefficient_cell(line.granulated),
        "tau with train loss": lambda line: estimate_cell(line.with_train_loss),
    }
    return _table(lines, columns)


def given_table(lines: Sequence[Correlation]) -> str:
    """Formats the partial correlations, given the training loss or hyperparameters, likewise."""
    columns = {
        "partial tau": lambda line: estimate_cell(line.partial.kendall),
        "partial rho": lambda line: estimate_cell(line.partial.spearman),
        "conditional information": lambda line: estimate_cell(line.information),
        "sign-error": lambda line: estimate_cell(line.sign_error.mean),
        "worst sign-error": lambda line: estimate_cell(line.sign_error.worst),
        "settings compared": lambda line: str(line.sign_error.num_environments),
    }
    return _table(lines, columns)


def significance_table(lines: Sequence[Correlation]) -> str:
    """Formats p-values of the levels' permutations and differences between metrics, likewise."""
    # Holm's correction is to count each test once: converged runs are a part of all runs.
    tested = [line for line in lines if line.runs == ALL_RUNS and line.measure not in _BASELINES]
    # By identity, as lines hold mappings and so cannot be keys themselves.
    adjusted = dict(zip(map(id, tested), holm([line.p_value for line in tested]), strict=True))
    columns = {
        "p": lambda line: p_cell(line.p_value),
        "Holm": lambda line: p_cell(adjusted[id(line)]),
        "tau less the first metric's": lambda line: estimate_cell(line.less_first),
    }
    return _table(tested, columns)


def others_table(lines: Sequence[Correlation]) -> str:
    """Formats the rank correlations with other quantities than the test error, likewise."""
    columns = {}
    for target, title in OTHER_TARGETS.items():
        # As a default, the target is that of this round; else all columns would show the last one.
        columns[f"tau with {title}"] = lambda line, target=target: estimate_cell(
            line.others[target].rank.kendall
        )
        columns[f"partial tau with {title}"] = lambda line, target=target: estimate_cell(
            line.others[target].partial.kendall
        )
    return _table(lines, columns)


def _table(
    lines: Sequence[Correlation], columns: Mapping[str, Callable[[Correlation], str]]
) -> str:
    head = ["scenario", "runs", "metric", *columns]
    rows = [
        [line.scenario, line.runs, line.measure, *(cell(line) for cell in columns.values())]
        for line in lines
    ]
    return markdown_table([head, *rows], num_names=3)


def scenario_table(scenario: Scenario) -> str:
    """Formats a Markdown table of a scenario: a line a value, mean ± std over its seeds."""
    columns: list[tuple[str, str, str]] = [
        ("test error (%)", "test_error", "{:.2f}"),
        ("test cross-entropy", "test_loss", "{:.3f}"),
        ("calibration error", "calibration_error", "{:.3f}"),
        *((metric, metric, "{:.4g}") for metric in scenario.metrics),
        ("train loss", TRAIN_LOSS, "{:.2g}"),
        ("train error (%)", "train_error", "{:.3f}"),
    ]
    head = [scenario.variable, "runs", *(title for title, _, _ in columns), "flagged"]
    rows = []
    for value in scenario.values:
        runs = [run for run in scenario.runs if run.value == value]
        cells = [mean_and_spread(column(runs, name), form) for _, name, form in columns]
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
            f"Mean ± standard deviation over the {_repeats(scenario)}. {_range(losses)}",
            scenario_table(scenario),
            " ".join(scenario.notes),
        ]
        if len(hyperparameters(scenario.runs)) > 1:
            parts += [SHARES_NOTES, shares_table(scenario), STRATA_NOTES, strata_table(scenario)]
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
    parts += ["![Rank correlations](figures/correlations.png)"]
    parts += ["![gamma-hat and the test error](figures/log_determinant.png)"]
    parts += ["## Significance", _SIGNIFICANCE_NOTES, significance_table(lines)]
    parts += ["## What is left of them", _LEFT_NOTES, given_table(lines)]
    parts += ["## With other quantities", _OTHER_NOTES, others_table(lines)]
    parts += [
        f"![Rank correlations with the {title}](figures/correlations_{target}.png)"
        for target, title in OTHER_TARGETS.items()
    ]
    return "\n\n".join(parts) + "\n"


def summary_json(scenarios: Sequence[Scenario], lines: Sequence[Correlation]) -> str:
    """Returns the runs that were compared, and the rank correlations, as JSON."""
    record = {
        "level": LEVEL,
        "correlations": [dataclasses.asdict(line) for line in lines],
        "scenarios": [dataclasses.asdict(scenario) for scenario in scenarios],
    }
    return json.dumps(json_ready(record), indent=2, allow_nan=False) + "\n"


def _repeats(scenario: Scenario) -> str:
    return "seeds" if len(hyperparameters(scenario.runs)) <= 1 else "networks of each value"


def _range(losses: np.ndarray) -> str:
    if np.isnan(losses).any():
        return "The records do not have the training losses over the least that labels allow."
    return f"The training losses are between {losses.min():.2g} and {losses.max():.2g}."
