"""Options of the tables of Section 7.2."""

import dataclasses

from fisher_keras.experiments.command_line.flags import option
from fisher_keras.experiments.comparisons.arms import ARMS, OTHER_NETWORKS
from fisher_keras.experiments.runs.run_options import ExperimentOptions


@dataclasses.dataclass(frozen=True)
class MethodsOptions(ExperimentOptions):
    """Options of the comparison of methods, also as flags."""

    arms: str = option(
        "usual",
        "Which arms are trained: usual, the regularizer at three strengths beside plain, clipped, "
        "ghost and sam; further, these with other controls and forms; cnn or gelu, those of the "
        "CNN, or of the network with GELU in the place of ReLU; or all, those of the three "
        "networks. --dry_run lists them.",
        group="experiment",
        choices=("usual", "further", *OTHER_NETWORKS, "all"),
    )
    only: tuple[str, ...] = option(
        (),
        "Train only this arm of those that --arms stands for. It can be given several times. The "
        "table always has all that are finished.",
        group="experiment",
        choices=tuple(ARMS),
        repeated="arm",
    )
    batch_size: int | None = option(
        None,
        "Train only at this one of the preset's batch sizes. Networks and arms with a batch size "
        "of their own, such as the CNN, are the same at each.",
        group="experiment",
        least=1,
    )


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
