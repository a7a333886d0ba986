"""Options of `fisher-keras evaluate`."""

import dataclasses
import functools

from fisher_keras.experiments.command_line.flags import REQUIRED, option
from fisher_keras.experiments.data_options import DataOptions
from fisher_keras.experiments.names import METRICS, NUM_SEEDS

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
        "Name of a Python module that defines layers of the models, such as keras_hub. It is "
        "imported first.",
        repeated="import",
    )
    validation_size: int = _data(
        0, "Number of training images that were held out in the trainings.", least=0
    )
    label_smoothing: float = _data(
        0.0,
        "Label smoothing, as in the trainings. The training loss of the report uses these "
        "labels, and is compared with the smallest loss that they allow. The metrics use "
        "the classes.",
        least=0,
        below=1,
    )
    seed: int = _data(
        0,
        "Seed, as in the trainings. It also determines the samples.",
        least=0,
        below=NUM_SEEDS,
    )
    metrics: tuple[str, ...] = _metrics(
        tuple(name for name in METRICS if name != "robustness"),  # Which takes much longer.
        f"Metrics to compute, out of {', '.join(METRICS)}.",
        choices=METRICS,
    )
    num_samples: int = _metrics(100, "Number of images in a sample (N').", least=1)
    num_trials: int = _metrics(100, "Number of samples (T).", least=1)
    normalize_logits: float | None = _metrics(
        None,
        "Divide each logit vector by this number times its norm. The paper uses 0.04 for "
        "its Table 2.",
        above=0,
    )
    layers: bool = _metrics(
        False,
        "Also evaluate each layer: trace, log-determinant and norm of the weights. Of several "
        "models with the same layers, it prints them side by side.",
    )
    output: str | None = _output(
        None, "Folder for the reports, trials and figures. Without it, nothing is written."
    )
