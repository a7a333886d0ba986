"""Options of `bin/complete_metrics`."""

import dataclasses

from fisher_keras.experiments.command_line.flags import REQUIRED, like, option
from fisher_keras.experiments.data_options import DataOptions


@dataclasses.dataclass(frozen=True)
class CompletionOptions:
    """Options of the completion of records, also as flags."""

    stores: tuple[str, ...] = option(
        REQUIRED,
        "Required. Folder of an experiment's runs, with their networks.",
        group="results",
        repeated="store",
    )
    data_dir: str | None = like(DataOptions, "data_dir", "results")
    download: bool = like(DataOptions, "download", "results")
