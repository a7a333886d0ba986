"""Table 2: gamma-hat of the minima found with and without the regularizer (Section 7.2.2).

For example

  table2 --preset=laptop --num_workers=2 --data_dir=tfds --download

Stopped, the same command goes on. table1 and table2 read the same runs.
"""

from absl import flags

from fisher_keras.experiments.runs.experiment import (
    FLAGS_GROUP,
    define_experiment_flags,
    experiment_options,
)
from fisher_keras.experiments.tables import make_table_2

FLAG_GROUPS = [FLAGS_GROUP]
RESUME_FLAG = None


def define_flags() -> None:
    """Defines the flags of an experiment, and which gamma-hat to show."""
    define_experiment_flags()
    flags.DEFINE_boolean(
        "normalize_logits",
        False,
        "Show gamma-hat of logits divided by 0.04 times their norm.",
        module_name=FLAGS_GROUP,
    )


def run() -> None:
    """Carries out what is missing, and makes the table."""
    make_table_2(experiment_options(), flags.FLAGS.normalize_logits)
