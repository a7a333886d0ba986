"""Presets of `bin/train_cifar`: whole recipes for other data than CIFAR."""

import dataclasses
from typing import Any

from absl import flags

from fisher_keras.experiments.command_line.flags import check_options, nested, option
from fisher_keras.experiments.training.config import TrainingConfig

# Fields of `TrainingConfig`.
TRAINING_PRESETS: dict[str, dict[str, Any]] = {
    # He et al. (2016a), Section 3.4: 224 pixels, batches of 256, learning rate 0.1; epochs and
    # label smoothing as in Goyal et al. (2017), Section 5.1, and Szegedy et al. (2016), Section 7.
    # A quarter of SGD's own regularization comes in addition.
    "imagenet": {
        "dataset": "tfds:imagenet2012",
        "image_size": 224,
        "arch": "keras.applications:ResNet50",
        "epochs": 90,
        "batch_size": 256,
        "learning_rate": 0.1,
        "augmentation": "flip-only",
        "label_smoothing": 0.1,
        # The rounding of half precision needs a longer step than the paper's.
        "mixed_precision": "mixed_bfloat16",
        "method": "fisher",
        "strength": 0.25,
        "step_length": 0.1,
    },
}
# What a given flag leaves without a meaning: the flag, those of its values that do so (None: all),
# and the fields of the preset.
_WITHOUT_MEANING = (
    ("method", ("plain", "clipped", "ghost", "sam"), ("strength", "step_length")),
    ("regularize", (False,), ("method", "strength", "step_length")),
    ("beta", None, ("strength",)),
    ("gradient", ("hessian_vector_product",), ("step_length",)),
    ("dataset", ("cifar10", "cifar100", "digits"), ("image_size",)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of `bin/train_cifar`, also as flags.

    Attributes:
        training: The training, with the values of the preset for what is not given.
    """

    preset: str | None = option(
        None,
        "Recipe whose values replace the defaults of the other flags. imagenet: ResNet-50 on "
        "ImageNet at 224 x 224 pixels, with label smoothing, in mixed precision, with the "
        "regularizer. A value that is given by its own flag replaces that of the preset.",
        group="preset",
        choices=tuple(TRAINING_PRESETS),
    )
    training: TrainingConfig = nested(TrainingConfig)

    def __post_init__(self) -> None:
        """Checks the preset.

        Raises:
            ValueError: If there is none of that name.
        """
        check_options(self)

    @classmethod
    def usual(cls, values: flags.FlagValues) -> dict[str, Any]:
        """Returns the fields that the preset of the flags decides."""
        preset = dict(TRAINING_PRESETS.get(values["preset"].value, {}))
        for flag, those, fields in _WITHOUT_MEANING:
            if values[flag].present and (those is None or values[flag].value in those):
                for field in fields:
                    preset.pop(field, None)
        return {"training": preset}
