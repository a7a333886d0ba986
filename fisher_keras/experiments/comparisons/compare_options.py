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
    epochs: int = _option(REQUIRED, "Required. Number of passes over the training data.", least=1)
    methods: tuple[str, ...] = _option(
        ("plain", "sam", "fisher"),
        "A method: plain, clipped, ghost, sam, fisher, or a function from a classifier to the "
        "model that trains it, as package.module:function. By default plain, sam and fisher.",
        repeated="method",
    )
    seeds: int = _option(
        8, "Number of seeds. Each method trains one network from each of them.", least=2
    )
    batch_size: int | None = _option(
        None,
        "Number of examples in a batch. The default is 32, or the size of the batches of "
        "--dataset.",
        least=1,
    )
    num_samples: int = _option(100, "Number of training examples in a sample (N').", least=1)
    num_trials: int = _option(20, "Number of samples (T).", least=1)
    output_dir: str = _option("results/comparison", "Folder of the networks and the table.")

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: If one cannot be used.
        """
        DataOptions.__post_init__(self)
        EngineOptions.__post_init__(self)
