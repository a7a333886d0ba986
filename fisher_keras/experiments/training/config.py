"""What a training run can be told, and the recipe's values where it is not."""

import dataclasses
import math

from fisher_keras.datasets import AUGMENTATIONS, DATASETS
from fisher_keras.models import ARCHITECTURES
from fisher_keras.models.recipes import RECIPES, regularizer_settings
from fisher_keras.regularizer.model import GRADIENTS

MIXED_PRECISIONS = ("none", "mixed_float16", "mixed_bfloat16")
SCHEDULES = ("recipe", "plateau")

REGULARIZER_OPTIONS = (
    "alpha",
    "beta",
    "num_sub_batches",
    "clip_norm",
    "gradient",
    "share_gradients",
)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Everything that `train` can be told. None stands for the recipe's or the usual value.

    Attributes:
        arch: one of `fisher_keras.models.ARCHITECTURES`.
        depth: number of layers, see `build_model`.
        width: factor on the filters, filters or growth rate, see `build_model`.
        dataset: one of `fisher_keras.datasets.DATASETS`.
        data_dir: the TensorFlow Datasets folder, or the folder of images.
        download: whether data that are not in `data_dir` are downloaded.
        train_size: training images, drawn at random; None for all that are not held out.
        confusion_size: further images, trained on with random labels (Section 7.1, Scenario I).
        validation_size: images of the train split that are held out of the training; 0 for none.
        augmentation: one of `fisher_keras.datasets.AUGMENTATIONS`.
        regularize: whether to train with the regularizer.
        alpha: length of the step along a sub-batch's gradient, alpha.
        beta: strength of the regularizer, beta.
        num_sub_batches: sub-batches of a batch, M.
        clip_norm: largest global norm of a gradient, tau; 0 for no clipping.
        gradient: one of `GRADIENTS`, see `FisherRegularizedModel`.
        share_gradients: see `FisherRegularizedModel`.
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate: the initial one.
        schedule: one of `SCHEDULES`: the recipe's, or divided by 10 where the training loss
            plateaus (Section 7.1), see `PlateauSchedule`.
        label_smoothing: part of a label that is spread over all classes, in [0, 1).
        mixed_precision: one of `MIXED_PRECISIONS`.
        jit_compile: whether XLA compiles the step.
        seed: of everything that is random.
        output_dir: directory of the run's files; None for
            `runs/<dataset>_<arch>_<plain or regularized>_seed<seed>`.
        resume: whether to go on with the run in `output_dir`, if there is one.
    """

    arch: str = "cnn"
    depth: int | None = None
    width: float | None = None
    dataset: str = "cifar10"
    data_dir: str | None = None
    download: bool = False
    train_size: int | None = None
    confusion_size: int = 0
    validation_size: int = 0
    augmentation: str | None = None
    regularize: bool = False
    alpha: float | None = None
    beta: float | None = None
    num_sub_batches: int | None = None
    clip_norm: float | None = None
    gradient: str | None = None
    share_gradients: bool | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    schedule: str = SCHEDULES[0]
    label_smoothing: float = 0.0
    mixed_precision: str = "none"
    jit_compile: bool = False
    seed: int = 0
    output_dir: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        """Checks what does not depend on the recipe.

        Raises:
            ValueError: if a value cannot be used.
        """
        for name, choices in (
            ("arch", ARCHITECTURES),
            ("dataset", DATASETS),
            ("augmentation", (None, *AUGMENTATIONS)),
            ("gradient", (None, *GRADIENTS)),
            ("schedule", SCHEDULES),
            ("mixed_precision", MIXED_PRECISIONS),
        ):
            if getattr(self, name) not in choices:
                known = ", ".join(choice for choice in choices if choice)
                raise ValueError(f"--{name} must be one of {known}, got {getattr(self, name)!r}")
        for name, lowest in (
            ("train_size", 1),
            ("confusion_size", 0),
            ("validation_size", 0),
            ("num_sub_batches", 1),
            ("epochs", 1),
            ("batch_size", 1),
            ("seed", 0),
        ):
            _check_number(name, getattr(self, name), lowest, whole=True)
        for name in ("beta", "clip_norm", "label_smoothing"):
            _check_number(name, getattr(self, name), 0)
        for name in ("alpha", "learning_rate"):
            _check_number(name, getattr(self, name), 0, above=True)
        if self.label_smoothing >= 1:
            raise ValueError(f"--label_smoothing must be below 1, got {self.label_smoothing}")
        if not self.regularize:
            given = [name for name in REGULARIZER_OPTIONS if getattr(self, name) is not None]
            if given:
                raise ValueError(f"--{given[0]} has no effect without --regularize: add it")


def resolve(config: TrainingConfig) -> TrainingConfig:
    """Fills in what the recipe decides.

    Args:
        config: with None where the recipe's value is wanted.

    Returns:
        The configuration that is trained. None is left where the architecture or the data decide
        (`depth`, `width`, `train_size`, `data_dir`) and, without `regularize`, for the
        regularizer's options.
    """
    recipe = RECIPES[config.arch]
    method = "regularized" if config.regularize else "plain"
    defaults = {
        "augmentation": recipe.augmentation,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "output_dir": f"runs/{config.dataset}_{config.arch}_{method}_seed{config.seed}",
    }
    if config.regularize:
        settings = regularizer_settings(config.arch, config.dataset)
        defaults |= {
            "alpha": settings.alpha,
            "beta": settings.beta,
            "num_sub_batches": settings.num_sub_batches,
            "clip_norm": settings.clip_norm or 0.0,
            "gradient": GRADIENTS[0],
            "share_gradients": False,
        }
    missing = {name: defaults[name] for name in defaults if getattr(config, name) is None}
    return dataclasses.replace(config, **missing)


def _check_number(
    name: str, value: float | None, lowest: int, *, whole: bool = False, above: bool = False
) -> None:
    if value is None:
        return
    kind = int if whole else (int, float)
    inside = isinstance(value, kind) and (lowest < value if above else lowest <= value)
    if isinstance(value, bool) or not inside or value == math.inf:
        expected = "a whole number" if whole else "a number"
        bound = f"above {lowest}" if above else f"of at least {lowest}"
        raise ValueError(f"--{name} must be {expected} {bound}, got {value!r}")
