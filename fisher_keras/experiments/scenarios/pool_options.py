"""Options of the pool of networks."""

import dataclasses

from fisher_keras.experiments.command_line.flags import option
from fisher_keras.experiments.names import PRESETS
from fisher_keras.experiments.runs.run_options import ExperimentOptions


@dataclasses.dataclass(frozen=True)
class PoolOptions(ExperimentOptions):
    """Options of the pool, also as flags."""

    preset: str = option(
        "laptop",
        "Size of the experiment. laptop: small networks and few images, hours on two cores. "
        "repeated: the same at one width and one training loss, each setting with three seeds. "
        "paper: the paper's network, days on GPUs. smoke: a minute, to see that everything runs. "
        "--dry_run shows the details.",
        group="experiment",
        choices=(*PRESETS, "repeated"),
    )
