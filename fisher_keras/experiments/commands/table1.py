"""Table 1: test errors with and without the regularizer (Section 7.2).

For example

  table1 --preset=laptop --num_workers=2

Stopped, the same command goes on. table1 and table2 read the same runs.
"""

from fisher_keras.experiments import flags
from fisher_keras.experiments.runs.experiment import ExperimentOptions
from fisher_keras.experiments.tables import make_table_1

FLAG_GROUPS = flags.flag_groups(ExperimentOptions)
RESUME_FLAG = None


def define_flags() -> None:
    """Defines the flags of `ExperimentOptions`."""
    flags.define_flags(ExperimentOptions)


def run() -> None:
    """Carries out what is missing, and makes the table."""
    make_table_1(flags.from_flags(ExperimentOptions))
