"""`python -m fisher_keras.experiments.quickstart`: the same as `fisher-keras quickstart`."""

import sys

from fisher_keras.experiments.command_line.main import main

if __name__ == "__main__":
    main(["quickstart", *sys.argv[1:]])
