"""Options of `fisher-keras compare`."""

import dataclasses
import functools

from fisher_keras.experiments.command_line.flags import REQUIRED, like, option
from fisher_keras.experiments.data_options import DataOptions
from fisher_keras.experiments.evaluation_config import EvaluationConfig
from fisher_keras.experiments.runs.run_options import EngineOptions

_option = functools.partial(option, group="comparison")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions(DataOptions, EngineOptions):
    """Options of a comparison, also as flags."""

    model: str = _option(
        REQUIRED,
        "Required. The function that makes the compiled classifier, as package.module:function.",
    )
    imports: tuple[str, ...] = like(EvaluationConfig, "imports", "comparison")
    epochs: int = _option(REQUIRED, "Required. Passes over the training data.", least=1)
    methods: tuple[str, ...] = _option(
        ("plain", "sam", "fisher"),
        "A method: plain, clipped, ghost, sam, fisher, or a function from a classifier to the "
        "model that trains it, as package.module:function. By default plain, sam and fisher.",
        repeated="method",
    )
    seeds: int = _option(8, "Networks that each method trains.", least=2)
    batch_size: int | None = _option(
        None, "Examples a step; by default 32, or that of the batches of --dataset.", least=1
    )
    num_samples: int = _option(100, "N', training examples that a trial samples.", least=1)
    num_trials: int = _option(20, "T, number of trials of the metrics.", least=1)
    output_dir: str = _option("results/comparison", "Folder of the networks and the table.")

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: If one cannot be used.
        """
        DataOptions.__post_init__(self)
        EngineOptions.__post_init__(self)
