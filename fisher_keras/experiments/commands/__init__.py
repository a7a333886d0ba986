"""The commands, a module each: its docstring is the help, its `COMMAND` what is done.

A command is started as `fisher-keras NAME`, or from a checkout as `bin/NAME`.
"""

from fisher_keras.extras import require

require(
    *("distributed", "filelock", "matplotlib", "optuna"),
    *("sklearn", "tensorboard", "tensorflow_datasets"),
)
