"""Options of `bin/plot_results`."""

import dataclasses

from fisher_keras.experiments.command_line.flags import REQUIRED, option


@dataclasses.dataclass(frozen=True)
class PlotConfig:
    """Options of the figures and summaries, also as flags."""

    stores: tuple[str, ...] = option(
        REQUIRED, "Required. Folder of a scenario's runs.", group="results", repeated="store"
    )
    output: str | None = option(
        None,
        "Folder for the figures and the summary. The default is the folder of --store, if "
        "only one is given.",
        group="results",
    )
