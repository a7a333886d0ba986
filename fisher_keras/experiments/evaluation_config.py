"""Options of `fisher-keras evaluate`."""

import dataclasses
import functools

from fisher_keras.experiments.command_line.flags import REQUIRED, option
from fisher_keras.experiments.data_options import DataOptions
from fisher_keras.experiments.names import METRICS

_models, _data, _metrics, _output = (
    functools.partial(option, group=group) for group in ("models", "data", "metrics", "output")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(DataOptions):
    """Options of an evaluation, also as flags."""

    models: tuple[str, ...] = _models(
        REQUIRED,
        "Required. A model to evaluate: a .keras file, or hf://USER/NAME on Hugging Face.",
        repeated="model",
    )
    imports: tuple[str, ...] = _models(
        (),
        "A Python module that defines layers of the models, by its name, such as keras_hub; it is "
        "imported first.",
        repeated="import",
    )
    validation_size: int = _data(0, "As it was for the trainings.", least=0)
    label_smoothing: float = _data(
        0.0,
        "As it was for the trainings: the report's training loss is of such labels, and compared "
        "with the least that they allow. The metrics are of the classes.",
        least=0,
        below=1,
    )
    seed: int = _data(0, "As it was for the trainings; also the seed of the samples.", least=0)
    metrics: tuple[str, ...] = _metrics(
        tuple(name for name in METRICS if name != "robustness"),  # Which takes much longer.
        f"What to compute, some of {', '.join(METRICS)}.",
        choices=METRICS,
    )
    num_samples: int = _metrics(100, "N', images that a trial samples.", least=1)
    num_trials: int = _metrics(100, "T, number of trials.", least=1)
    normalize_logits: float | None = _metrics(
        None,
        "Divide logits by this times their norm, as the paper does for its Table 2 (0.04).",
        above=0,
    )
    output: str | None = _output(
        None, "Folder for reports, trials and figures; by default nothing is written."
    )
