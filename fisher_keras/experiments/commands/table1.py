"""Table 1: test errors with and without the regularizer (Section 7.2).

For example

  table1 --preset=laptop --num_workers=2

Stopped, the same command goes on. table1 and table2 read the same runs.
"""

from fisher_keras.experiments.command_line.command import Command
from fisher_keras.experiments.comparisons.regularization import TableOptions, make_table_1

COMMAND = Command.of(TableOptions, make_table_1)
