"""Table 2: gamma-hat of the minima found with and without the regularizer (Section 7.2.2).

For example

  table2 --preset=laptop --num_workers=2

Stopped, the same command goes on. table1 and table2 read the same runs.
"""

from fisher_keras.experiments import flags
from fisher_keras.experiments.tables import Table2Options, make_table_2

FLAG_GROUPS = flags.flag_groups(Table2Options)
RESUME_FLAG = None


def define_flags() -> None:
    """Defines the flags of `Table2Options`."""
    flags.define_flags(Table2Options)


def run() -> None:
    """Carries out what is missing, and makes the table."""
    make_table_2(flags.from_flags(Table2Options))
