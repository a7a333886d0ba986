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
        "Name of a Python module that defines layers of the models. It is imported first.",
        repeated="import",
    )
    dataset: str = _data("cifar10", "Images that the models were trained on.", choices=DATASETS)
    data_dir: str | None = _data(
        None,
        "Folder of the data. For CIFAR, it is a folder of TensorFlow Datasets (TFDS), by "
        "default the one that TFDS uses. For --dataset=folder, it contains train/<class>/ "
        "and test/<class>/.",
    )
    download: bool = _data(True, "Download CIFAR if it is not in --data_dir.")
    image_size: int | None = _data(
        None, "Height and width of the images, as in the trainings.", least=1
    )
    train_size: int | None = _data(
        None,
        "Number of training images, as in the trainings. The metrics are computed from "
        "these images.",
        least=1,
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
    seed: int = _data(0, "Seed, as in the trainings. It also determines the samples.", least=0)
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
    output: str | None = _output(
        None, "Folder for the reports, trials and figures. Without it, nothing is written."
    )

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: If one cannot be used.
        """
        check_options(self)
