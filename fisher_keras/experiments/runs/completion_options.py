"""Options of `bin/complete_metrics`."""

import dataclasses

from fisher_keras.experiments.command_line.flags import REQUIRED, option
from fisher_keras.experiments.data_options import data_dir_option, download_option


@dataclasses.dataclass(frozen=True)
class CompletionOptions:
    """Options of the completion of records, also as flags."""

    stores: tuple[str, ...] = option(
        REQUIRED,
        "Required. Folder of an experiment's runs, with their networks.",
        group="results",
        repeated="store",
    )
    data_dir: str | None = data_dir_option("results")
    download: bool = download_option("results")
