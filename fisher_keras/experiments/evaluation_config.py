"""Options of `bin/evaluate_metrics`."""

import dataclasses
import functools

from fisher_keras.experiments.command_line.flags import REQUIRED, check_options, option
from fisher_keras.experiments.names import DATASETS, METRICS

_data, _metrics, _output = (
    functools.partial(option, group=group) for group in ("models and data", "metrics", "output")
)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Options of an evaluation, also as flags."""

    models: tuple[str, ...] = _data(
        REQUIRED, "Required. A model to evaluate, a .keras file.", repeated="model"
    )
    imports: tuple[str, ...] = _data(
        (),
        "A Python module that defines layers of the models, by its name; it is imported first.",
        repeated="import",
    )
    dataset: str = _data("cifar10", "Images that the models were trained on.", choices=DATASETS)
    data_dir: str | None = _data(
        None,
        "Where the data are: for CIFAR a TensorFlow Datasets (TFDS) folder, by default TFDS's "
        "own; for --dataset=folder the folder with train/<class>/ and test/<class>/.",
    )
    download: bool = _data(True, "Download CIFAR if it is not in --data_dir.")
    image_size: int | None = _data(None, "As it was for the trainings.", least=1)
    train_size: int | None = _data(
        None, "As it was for the trainings: the metrics are of these images.", least=1
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

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: If one cannot be used.
        """
        check_options(self)
