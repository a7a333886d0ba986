"""Options of `bin/evaluate_metrics`."""

import dataclasses

from fisher_keras.experiments.command_line.flags import REQUIRED, check_options, option
from fisher_keras.experiments.names import DATASETS, METRICS


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Options of an evaluation, also as flags."""

    models: tuple[str, ...] = option(
        REQUIRED,
        "Required. A model to evaluate, a .keras file.",
        group="models and data",
        repeated="model",
    )
    imports: tuple[str, ...] = option(
        (),
        "A Python module that defines layers of the models, by its name; it is imported first.",
        group="models and data",
        repeated="import",
    )
    dataset: str = option(
        "cifar10",
        "Images that the models were trained on.",
        group="models and data",
        choices=DATASETS,
    )
    data_dir: str | None = option(
        None,
        "Where the data are: for CIFAR a TensorFlow Datasets (TFDS) folder, by default TFDS's "
        "own; for --dataset=folder the folder with train/<class>/ and test/<class>/.",
        group="models and data",
    )
    download: bool = option(
        True, "Download CIFAR if it is not in --data_dir.", group="models and data"
    )
    image_size: int | None = option(
        None, "As it was for the trainings.", group="models and data", least=1
    )
    train_size: int | None = option(
        None,
        "As it was for the trainings: the metrics are of these images.",
        group="models and data",
        least=1,
    )
    validation_size: int = option(
        0,
        "As it was for the trainings.",
        group="models and data",
        least=0,
    )
    label_smoothing: float = option(
        0.0,
        "As it was for the trainings: the report's training loss is of such labels, and compared "
        "with the least that they allow. The metrics are of the classes.",
        group="models and data",
        least=0,
        below=1,
    )
    seed: int = option(
        0,
        "As it was for the trainings; also the seed of the samples.",
        group="models and data",
        least=0,
    )
    metrics: tuple[str, ...] = option(
        tuple(name for name in METRICS if name != "robustness"),  # Which takes much longer.
        f"What to compute, some of {', '.join(METRICS)}.",
        group="metrics",
        choices=METRICS,
    )
    num_samples: int = option(100, "N', images that a trial samples.", group="metrics", least=1)
    num_trials: int = option(100, "T, number of trials.", group="metrics", least=1)
    normalize_logits: float | None = option(
        None,
        "Divide logits by this times their norm, as the paper does for its Table 2 (0.04).",
        group="metrics",
        above=0,
    )
    output: str | None = option(
        None,
        "Folder for reports, trials and figures; by default nothing is written.",
        group="output",
    )

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: If one cannot be used.
        """
        check_options(self)
