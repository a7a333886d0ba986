"""Table 1: test errors with and without the regularizer (Section 7.2).

For example

  table1 --preset=laptop --num_workers=2 --data_dir=tfds --download

Stopped, the same command goes on. table1 and table2 read the same runs.
"""

from fisher_keras.experiments.runs.experiment import (
    FLAGS_GROUP,
    experiment_options,
)
from fisher_keras.experiments.runs.experiment import (
    define_experiment_flags as define_flags,
)
from fisher_keras.experiments.tables import make_table_1

__all__ = ["FLAG_GROUPS", "RESUME_FLAG", "define_flags", "run"]

FLAG_GROUPS = [FLAGS_GROUP]
RESUME_FLAG = None


def run() -> None:
    """Carries out what is missing, and makes the table."""
    make_table_1(experiment_options())
