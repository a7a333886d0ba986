"""Drawing and comparing the finished runs of the scenarios: `bin/plot_results`."""

import pathlib

from fisher_keras.experiments.scenarios.figures.forest import forest_figure
from fisher_keras.experiments.scenarios.figures.over_variable import scenario_figure
from fisher_keras.experiments.scenarios.figures.scatter import scatter_figure
from fisher_keras.experiments.scenarios.plot_config import PlotConfig
from fisher_keras.experiments.scenarios.scenario import read_scenarios
from fisher_keras.experiments.scenarios.summary import (
    OTHER_TARGETS,
    correlations,
    summary,
    summary_json,
)
from fisher_keras.files import replacing, write_text


def plot_results(config: PlotConfig) -> None:
    """Draws Figures 1 to 3 and writes and prints the summary of the runs that are finished.

    Into the output folder go `figures/<experiment>.pdf` and `.png`; likewise `correlations`, the
    rank correlations with the test error, and two more figures with those of other quantities;
    `log_determinant`, gamma-hat against the test error; `summary.md` and `summary.json`.

    Args:
        config: Which runs are drawn, and where to.

    Raises:
        ValueError: If there are no runs, or they are not of one recipe a scenario.
        OSError: If a file cannot be read or written.
    """
    if config.output is None and len(config.stores) > 1:
        raise ValueError("--output: give the folder for the summary of several stores")
    output = pathlib.Path(config.output or config.stores[0]).expanduser()
    scenarios = read_scenarios(config.stores)
    (output / "figures").mkdir(parents=True, exist_ok=True)
    lines = correlations(scenarios)
    figures = {scenario.experiment: scenario_figure(scenario) for scenario in scenarios}
    figures["correlations"] = forest_figure(lines)
    for target in OTHER_TARGETS:
        figures[f"correlations_{target}"] = forest_figure(lines, target)
    compared = [scenario for scenario in scenarios if "log_determinant" in scenario.metrics]
    if compared:
        figures["log_determinant"] = scatter_figure(compared)
    for name, figure in figures.items():
        for suffix, options in ((".pdf", {"metadata": {"CreationDate": None}}), (".png", {})):
            with replacing(output / "figures" / f"{name}{suffix}") as path:
                figure.savefig(path, dpi=200, **options)
    text = summary(scenarios, lines)
    for name, content in (("summary.md", text), ("summary.json", summary_json(scenarios, lines))):
        write_text(output / name, content)
    print(text)
    print(f"written to {output}")
