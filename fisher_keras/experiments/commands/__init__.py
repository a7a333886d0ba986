"""The commands, a module each: its docstring is the help; `define_flags` is called, then `run`.

A command is started as `fisher-keras NAME`, or from a checkout as `bin/NAME`. `FLAG_GROUPS` names
the modules that its flags are defined under, as --help lists them. `RESUME_FLAG` is what a stopped
command needs to go on, None where the same command does.
"""

from fisher_keras.extras import require

require(
    *("distributed", "filelock", "matplotlib", "optuna"),
    *("sklearn", "tensorboard", "tensorflow_datasets"),
)
