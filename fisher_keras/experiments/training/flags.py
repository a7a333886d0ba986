"""The command line flags of a training run, in groups."""

import dataclasses

from absl import flags

from fisher_keras.datasets import AUGMENTATIONS, DATASETS
from fisher_keras.experiments.training.config import (
    MIXED_PRECISIONS,
    SCHEDULES,
    TrainingConfig,
)
from fisher_keras.models import ARCHITECTURES
from fisher_keras.regularizer.model import GRADIENTS

GROUPS = ("model", "data", "regularizer", "training", "output")


def define_training_flags() -> None:
    """Defines a flag for each field of `TrainingConfig`."""
    # A flag is listed in --help under its module's name: here the groups' names.
    model, data, regularizer, training, output = ({"module_name": name} for name in GROUPS)
    usual = TrainingConfig()

    flags.DEFINE_enum("arch", usual.arch, ARCHITECTURES, "Network.", **model)
    flags.DEFINE_integer(
        "depth", None, "Layers: resnet 20, wide_resnet 28, densenet 100; not for cnn.", **model
    )
    flags.DEFINE_float(
        "width",
        None,
        "cnn: factor on the filters (1); resnet: filters of the first stage (16); wide_resnet: "
        "widening factor k (2); densenet: growth rate k (12).",
        **model,
    )

    flags.DEFINE_enum("dataset", usual.dataset, DATASETS, "Images to train on.", **data)
    flags.DEFINE_string(
        "data_dir",
        None,
        "TensorFlow Datasets folder; for --dataset=folder the folder with train/<class>/ and "
        "test/<class>/.",
        **data,
    )
    flags.DEFINE_boolean("download", usual.download, "Download data that are not there.", **data)
    flags.DEFINE_integer(
        "train_size", None, "Training images, drawn at random; all by default.", **data
    )
    flags.DEFINE_integer(
        "confusion_size",
        usual.confusion_size,
        "Further images, trained on with random labels.",
        **data,
    )
    flags.DEFINE_integer(
        "validation_size",
        usual.validation_size,
        "Training images held out for the learning curves and best.keras. With 0 the curves are "
        "of the test images, and best.keras has the lowest training loss.",
        **data,
    )
    flags.DEFINE_enum(
        "augmentation", None, AUGMENTATIONS, "By default the network's recipe's.", **data
    )

    flags.DEFINE_boolean(
        "regularize", usual.regularize, "Train with the regularizer.", **regularizer
    )
    flags.DEFINE_float(
        "alpha", None, "Length of the step along a sub-batch's gradient.", **regularizer
    )
    flags.DEFINE_float("beta", None, "Strength of the regularizer.", **regularizer)
    flags.DEFINE_integer("num_sub_batches", None, "Sub-batches of a batch, M.", **regularizer)
    flags.DEFINE_float(
        "clip_norm", None, "Largest norm of a gradient, tau; 0 for no clipping.", **regularizer
    )
    flags.DEFINE_enum(
        "gradient", None, GRADIENTS, "How the regularizer's gradient is taken.", **regularizer
    )
    flags.DEFINE_boolean(
        "share_gradients",
        None,
        "Take the loss over the sub-batches, too: two gradients a step instead of three.",
        **regularizer,
    )

    flags.DEFINE_integer("epochs", None, "By default the recipe's.", **training)
    flags.DEFINE_integer("batch_size", None, "By default the recipe's.", **training)
    flags.DEFINE_float("learning_rate", None, "At first; by default the recipe's.", **training)
    flags.DEFINE_enum(
        "schedule",
        usual.schedule,
        SCHEDULES,
        "Of the learning rate: the recipe's, or divided by 10 where the training loss plateaus.",
        **training,
    )
    flags.DEFINE_float("label_smoothing", usual.label_smoothing, "From 0 to below 1.", **training)
    flags.DEFINE_enum(
        "mixed_precision", usual.mixed_precision, MIXED_PRECISIONS, "Keras policy.", **training
    )
    flags.DEFINE_boolean("jit_compile", usual.jit_compile, "Compile with XLA.", **training)
    flags.DEFINE_integer("seed", usual.seed, "Of everything that is random.", **training)

    flags.DEFINE_string(
        "output_dir",
        None,
        "Folder of the run; by default runs/<dataset>_<arch>_<plain or regularized>_seed<seed>.",
        **output,
    )
    flags.DEFINE_boolean(
        "resume", usual.resume, "Go on with the run in --output_dir, if there is one.", **output
    )


def training_config() -> TrainingConfig:
    """Returns the configuration that the parsed flags ask for.

    Raises:
        ValueError: if a value cannot be used.
    """
    names = [field.name for field in dataclasses.fields(TrainingConfig)]
    values = {name: flags.FLAGS[name].value for name in names}
    if values["width"] is not None and values["width"].is_integer():
        values["width"] = int(values["width"])  # Filters are counted.
    return TrainingConfig(**values)
