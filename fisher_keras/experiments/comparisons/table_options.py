"""Options of Tables 1 and 2."""

import dataclasses

from fisher_keras.experiments.command_line.flags import option
from fisher_keras.experiments.runs.run_options import ExperimentOptions


@dataclasses.dataclass(frozen=True)
class TableOptions(ExperimentOptions):
    """Options of Table 1, also as flags."""

    settings_file: str | None = option(
        None, "Table of the regularizer's values, as in train_cifar.", group="experiment"
    )


@dataclasses.dataclass(frozen=True)
class Table2Options(TableOptions):
    """Options of Table 2, also as flags."""

    normalize_logits: bool = option(
        False,
        "Show gamma-hat of logits that are divided by 0.04 times their norm.",
        group="experiment",
    )
