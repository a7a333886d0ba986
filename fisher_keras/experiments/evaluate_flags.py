"""The command line flags of `bin/evaluate_metrics`, in groups."""

import dataclasses

from absl import flags

from fisher_keras.datasets import DATASETS
from fisher_keras.experiments.evaluate import EvaluationConfig
from fisher_keras.metrics import METRICS

GROUPS = ("models and data", "metrics", "output")


def define_flags() -> None:
    """Defines a flag for each field of `EvaluationConfig`."""
    data, metrics, output = ({"module_name": name} for name in GROUPS)
    usual = EvaluationConfig(models=())
    flags.DEFINE_multi_string("model", None, "A .keras file; repeated to compare.", **data)
    flags.mark_flag_as_required("model")
    flags.DEFINE_enum("dataset", usual.dataset, DATASETS, "Images trained on.", **data)
    flags.DEFINE_string("data_dir", None, "As for train_cifar.", **data)
    flags.DEFINE_bool("download", False, "Download the data set.", **data)
    flags.DEFINE_integer(
        "train_size", None, "--train_size of the training runs.", lower_bound=1, **data
    )
    flags.DEFINE_integer(
        "validation_size",
        usual.validation_size,
        "--validation_size of the training runs.",
        lower_bound=0,
        **data,
    )
    flags.DEFINE_integer(
        "seed", usual.seed, "--seed of the training runs; also of the samples.", **data
    )
    flags.DEFINE_list("metrics", list(usual.metrics), f"Some of {', '.join(METRICS)}.", **metrics)
    flags.DEFINE_integer(
        "num_samples", usual.num_samples, "N', images a trial.", lower_bound=1, **metrics
    )
    flags.DEFINE_integer("num_trials", usual.num_trials, "T, trials.", lower_bound=1, **metrics)
    flags.DEFINE_float(
        "normalize_logits", None, "Divide logits by this times their norm (0.04).", **metrics
    )
    flags.DEFINE_string("output", None, "Directory of reports, trials and figures.", **output)


def evaluation_config() -> EvaluationConfig:
    """Returns the configuration that the parsed flags ask for."""
    names = {field.name for field in dataclasses.fields(EvaluationConfig)} - {"models"}
    values = {name: flags.FLAGS[name].value for name in names}
    values["metrics"] = tuple(values["metrics"])
    return EvaluationConfig(models=tuple(flags.FLAGS.model), **values)
