"""Configuration of one training, with the recipe's values for all that is not given."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from fisher_keras.experiments.command_line.flags import check_options, like, option
from fisher_keras.experiments.data_options import DataOptions
from fisher_keras.experiments.names import (
    ACTIVATIONS,
    ARCHITECTURES,
    AUGMENTATIONS,
    DATASETS,
    DIRECTIONS,
    GRADIENTS,
    NUM_SEEDS,
    STRATEGIES,
    folder_name,
)
from fisher_keras.experiments.training.option_checks import check_together

MIXED_PRECISIONS = ("none", "mixed_float16", "mixed_bfloat16")
SCHEDULES = ("recipe", "plateau")
METHODS = ("plain", "clipped", "ghost", "fisher", "sam")
# Where a network is trained, but not how.
_NOT_DECISIVE = {"data_dir", "download", "output_dir", "resume", "dry_run", "schedule_epochs"}

_model, _data, _method, _training, _output = (
    functools.partial(option, group=group)
    for group in ("model", "data", "regularizer", "training", "output")
)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Options of a training, also as flags.

    None stands for a value that the recipe, the architecture or the data decide, see `resolve`.
    `method` is always one of `METHODS`, and `regularize` tells whether it is "fisher".
    `schedule_epochs` has no flag: if a finished run is trained further, it is the number of epochs
    that the learning rates were planned for. The last of them stays.
    """

    arch: str = _model(
        "cnn",
        f"Network of the paper's Appendix E: {', '.join(ARCHITECTURES)}; or "
        "keras.applications:NAME, such as keras.applications:MobileNetV2; or "
        "package.module:function, a function of the number of classes and the shape of the images "
        "that returns a model which gives logits. Other networks have resnet's recipe.",
    )
    depth: int | None = _model(
        None,
        "Number of layers. The default is 20 for resnet, 28 for wide_resnet and 100 for "
        "densenet. cnn does not take it.",
        least=1,
    )
    width: float | None = _model(
        None,
        "Width of the layers. For cnn, it is a factor on the numbers of filters (default "
        "1). For resnet, it is the filters of the first stage (16). For wide_resnet, it "
        "is the widening factor k (2). For densenet, it is the growth rate k (12).",
        above=0,
    )

    l2_penalty: float | None = _model(
        None,
        "Coefficient of the sum of squares of the weights. The default is that of the "
        "network's recipe.",
        least=0,
    )

    activation: str | None = _model(
        None,
        "Smooth function in the place of ReLU, for gradients without ReLU's jumps.",
        choices=ACTIVATIONS,
    )

    dataset: str = _data("cifar10", "Images to train on.", choices=DATASETS)
    data_dir: str | None = like(DataOptions, "data_dir", "data")
    download: bool = like(DataOptions, "download", "data")
    image_size: int | None = like(DataOptions, "image_size", "data")
    train_size: int | None = _data(
        None, "Number of training images, drawn at random. The default is all.", least=1
    )
    confusion_size: int = _data(
        0,
        "Number of further images that are trained on with random labels (Section 7.1, Scenario "
        "I).",
        least=0,
    )
    validation_size: int = _data(
        0,
        "Number of training images that are held out. The learning curves and the choice "
        "of best.keras use them. With 0, the curves are of the test images, and "
        "best.keras is the network with the lowest training loss.",
        least=0,
    )
    augmentation: str | None = _data(
        None,
        "Random changes of the training images: none, flips, or flips and crops of images "
        "that are padded by 1 or 4 pixels. The default is that of the network's recipe.",
        choices=AUGMENTATIONS,
    )

    method: str | None = _method(
        None,
        "Method of training. plain is the default. clipped: plain, with the gradient "
        "clipped as the regularizer's. ghost: clipped, with batch normalization over "
        "sub-batches, as with --share_gradients (Hoffer et al., 2017). fisher: with the "
        "regularizer (Section 6, Algorithm 1). sam: sharpness-aware minimization (Foret "
        "et al., 2021).",
        choices=METHODS,
    )
    rho: float | None = _method(
        None,
        "For --method=sam: distance from the weights at which the gradient is taken. The "
        "default is 0.05, or 0.5 with --adaptive.",
        above=0,
    )
    adaptive: bool = _method(
        False, "For --method=sam: measure rho in units of the weights (ASAM, Kwon et al., 2021)."
    )
    sub_batches: int | None = _method(
        None,
        "For --method=sam: number of sub-batches, each of which ascends by itself "
        "(m-SAM). The default is 1.",
        least=1,
    )
    regularize: bool = _method(False, "The same as --method=fisher.")
    alpha: float | None = _method(
        None,
        "Length of the step along the gradient of a sub-batch. The default is that of "
        "--settings_file, or 0.0001.",
        above=0,
    )
    beta: float | None = _method(
        None,
        "Weight of the regularizer. The default is that of --settings_file, or 10.",
        least=0,
    )
    strength: float | None = _method(
        None,
        "Strength of the regularizer relative to SGD's own regularization, at any "
        "learning rate. It replaces --beta.",
        least=0,
    )
    beta_phases: str | None = _method(
        None,
        "Factors of --beta or --strength, one for each learning rate of the recipe, with "
        "commas between them. With 0,1,1, the regularizer is off until the learning rate "
        "falls.",
    )
    num_sub_batches: int | None = _method(
        None,
        "Number of sub-batches that a batch is split into (M). The default is that of "
        "--settings_file, or 8.",
        least=1,
    )
    clip_norm: float | None = _method(
        None,
        "Norm that a gradient is clipped to (tau); 0 means no clipping. The default is "
        "that of --settings_file, or 10. Without --regularize, plain training is clipped "
        "in the same way, which shows what the regularizer itself does.",
        least=0,
    )
    gradient: str | None = _method(
        None,
        "Computation of the regularizer's gradient: as in the paper, which is the "
        "default, or its limit for a small alpha. --mixed_precision needs the limit, or "
        "--step_length.",
        choices=GRADIENTS,
    )
    step_length: float | None = _method(
        None,
        "Distance at which the finite difference takes its second gradient. The default "
        "is that of the paper: alpha times the length of the gradient.",
        above=0,
    )
    direction: str | None = _method(
        None,
        "Side on which the finite difference takes its second gradient. descent is that "
        "of the paper and the default. ascent is the other side. central is the mean of "
        "both.",
        choices=DIRECTIONS,
    )
    interval: int | None = _method(
        None,
        "Number of steps from one step with the regularizer to the next. beta is "
        "multiplied by it. The default is 1.",
        least=1,
    )
    settings_file: str | None = _method(
        None,
        "JSON table of alpha, beta, M and tau for each data set and network, as "
        "tune_regularizer writes it. Values that it does not have come from the table of "
        "the package, which is not tuned.",
    )
    share_gradients: bool | None = _method(
        None,
        "Compute the loss from sub-batches, too. A step then takes two gradients instead of "
        "three, but batch normalization uses the moments of the sub-batches. By default, "
        "this is done only where it gives the same step, as with cnn.",
    )

    epochs: int | None = _training(
        None,
        "Number of passes over the training images. The default is that of the recipe.",
        least=1,
    )
    batch_size: int | None = _training(
        None, "Number of images in a batch. The default is that of the recipe.", least=1
    )
    learning_rate: float | None = _training(
        None, "Learning rate at the start. The default is that of the recipe.", above=0
    )
    schedule: str = _training(
        SCHEDULES[0],
        "Schedule of the learning rate: it falls as in the recipe, or by a factor of 10 "
        "when the training loss stops falling (Section 7.1).",
        choices=SCHEDULES,
    )
    label_smoothing: float = _training(
        0.0,
        "Part of each label that is spread over all classes, from 0 to below 1. If it is "
        "above 0, the loss has a minimum, and the metrics of several networks can be "
        "compared.",
        least=0,
        below=1,
    )
    target_loss: float | None = _training(
        None,
        "End the training when the mean loss of the training images without augmentation "
        "is at most this many nats above the smallest loss that their labels allow. It "
        "ends after the last epoch in any case.",
        above=0,
    )
    target_error: float | None = _training(
        None,
        "End the training when at most this percentage of the training images without "
        "augmentation is wrongly classified. It ends after --epochs in any case.",
        above=0,
        below=100,
    )
    mixed_precision: str = _training(
        "none", "Policy of Keras for computing in half precision.", choices=MIXED_PRECISIONS
    )
    jit_compile: bool = _training(
        False, "Compile the steps with XLA. The start is slower, and steps are faster on a GPU."
    )
    strategy: str = _training(
        STRATEGIES[0],
        "Devices. none: one device. mirrored: all GPUs of the machine. multi_worker: the "
        "processes that the environment variable TF_CONFIG names. --batch_size counts the "
        "images of all devices together. Each replica splits its share into "
        "--num_sub_batches.",
        choices=STRATEGIES,
    )
    seed: int = _training(0, "Seed of everything that is random.", least=0, below=NUM_SEEDS)

    output_dir: str | None = _output(
        None, "Folder of the run. The default is runs/<dataset>_<arch>_<method>_seed<seed>."
    )
    resume: bool = _output(
        False,
        "Go on with the run in --output_dir, if there is one. A finished run is trained further "
        "if --epochs is larger, with its last learning rate.",
    )
    dry_run: bool = _output(
        False,
        "Only print what would be trained, and estimate its time. A few steps are measured for "
        "this, on one device. Nothing is written.",
    )
    schedule_epochs: int | None = None

    def __post_init__(self) -> None:
        """Checks the values that do not depend on the recipe.

        Raises:
            ValueError: If a value cannot be used.
        """
        check_options(self)
        if self.width is not None and self.width.is_integer():
            object.__setattr__(self, "width", int(self.width))  # Filters are counted.
        if self.jit_compile and self.strategy != STRATEGIES[0]:
            raise ValueError(f"--jit_compile is not for --strategy={self.strategy}: leave it out")
        # Before the checks below, which read `regularize`: it is set here.
        self._check_method()
        check_together(self)

    def _check_method(self) -> None:
        """Rejects conflicting options, and finds the method that they ask for."""
        if self.regularize and self.method not in (None, "fisher"):
            raise ValueError(f"--method={self.method} has no regularizer: leave out --regularize")
        if self.method == "plain" and self.clip_norm:
            raise ValueError("--clip_norm is not for --method=plain: give --method=clipped")
        # None is allowed here: the norm then comes from the table.
        if self.method == "clipped" and self.clip_norm == 0:
            raise ValueError("--clip_norm=0 does not clip: give --method=plain")
        of_sam = [name for name in ("rho", "adaptive", "sub_batches") if getattr(self, name)]
        if self.method != "sam" and of_sam:
            raise ValueError(f"--{of_sam[0]} has no effect without --method=sam: add it")
        # Records name a method by its other options alone, see `training_settings`.
        unregularized = "clipped" if self.clip_norm else "plain"
        method = self.method or ("fisher" if self.regularize else unregularized)
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "regularize", method == "fisher")


def decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of a training's settings that say how a network is trained, and not where."""
    # The data are known by their fingerprint.
    return {name: value for name, value in settings.items() if name not in _NOT_DECISIVE}


def resolve_run(config: TrainingConfig) -> TrainingConfig:
    """Fills in the defaults of an experiment's run: the paper's three gradients a step."""
    if config.method == "fisher" and config.share_gradients is None:
        config = dataclasses.replace(config, share_gradients=False)
    return resolve(config)


def resolve(config: TrainingConfig) -> TrainingConfig:
    """Fills in the recipe's defaults.

    Args:
        config: The configuration, with None where the recipe's value is wanted.

    Returns:
        The configuration that is trained. None is left where the architecture or the data decide
        (`depth`, `width`, `l2_penalty`, `train_size`, `data_dir`), for `settings_file`, whose
        values are now in the other fields, and for those options of the regularizer that are
        not given and have no value in the table.

    Raises:
        ValueError: If `settings_file` is no table, a value in it cannot be used, or a batch has
            fewer images than sub-batches.
        OSError: If it cannot be read.
    """
    # Here, as --help must not wait for TensorFlow.
    from fisher_keras.experiments.training.arch import recipe_of
    from fisher_keras.models import regularizer_settings
    from fisher_keras.regularizer.sam import RHO

    recipe = recipe_of(config.arch)
    defaults = {
        "augmentation": recipe.augmentation,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "output_dir": f"runs/{folder_name(config.dataset)}_{folder_name(config.arch)}"
        f"_{config.method}_seed{config.seed}",
    }
    if config.method == "sam":
        defaults["rho"] = RHO[config.adaptive]
    if config.method in ("clipped", "ghost", "fisher"):
        settings = regularizer_settings(config.arch, config.dataset, config.settings_file)
        defaults["clip_norm"] = settings.clip_norm or 0.0
        if config.method == "clipped" and not (config.clip_norm or settings.clip_norm):
            raise ValueError(f"the table has no clip_norm for {config.arch}: give --clip_norm")
    if config.method in ("ghost", "fisher"):
        defaults["num_sub_batches"] = settings.num_sub_batches
    if config.method == "fisher":
        defaults |= {
            "alpha": settings.alpha,
            # A strength takes its place: a training refuses both together.
            "beta": settings.beta if config.strength is None else None,
            "gradient": GRADIENTS[0],
        }
    missing = {name: defaults[name] for name in defaults if getattr(config, name) is None}
    # The file's values are in the fields now: under another path, the same values are the same
    # training.
    config = dataclasses.replace(config, **missing, settings_file=None)
    if (config.num_sub_batches or 0) > config.batch_size:
        raise ValueError(
            f"--num_sub_batches must be at most the {config.batch_size} images of a batch, got "
            f"{config.num_sub_batches}"
        )
    return config
