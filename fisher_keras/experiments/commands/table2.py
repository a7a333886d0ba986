"""Table 2: gamma-hat of the minima found with and without the regularizer (Section 7.2.2).

For example

  table2 --preset=laptop --num_workers=2

Stopped, the same command goes on. table1 and table2 read the same runs.
"""

from fisher_keras.experiments.command_line.command import Command
from fisher_keras.experiments.comparisons.regularization import Table2Options, make_table_2

COMMAND = Command.of(Table2Options, make_table_2)
