"""Starts a command of the package in this checkout, whether an environment is active or not.

It must run in any Python 3, as `python3` may be one that the package is not installed in.
"""

import importlib.util
import os
import pathlib
import shlex
import sys

_ROOT = pathlib.Path(__file__).resolve().parent.parent


def launch(command: str) -> None:
    """Runs a command with the script's arguments, in the checkout's .venv if need be.

    Args:
        command: Its name, as in `fisher-keras NAME`.
    """
    if sys.version_info < (3, 11) or importlib.util.find_spec("fisher_keras") is None:
        _go_on_in(_ROOT / ".venv")
    try:
        from fisher_keras.experiments.command_line.main import main
    except ImportError as error:
        if error.name is not None:  # No check of ours, but a bug.
            raise
        sys.exit(f"{command}: {error}")
    os.environ["FISHER_KERAS_PROGRAM"] = sys.argv[0]
    main([command, *sys.argv[1:]])


def _go_on_in(venv: pathlib.Path) -> None:
    python = venv / "bin" / "python"
    if not os.access(python, os.X_OK) or pathlib.Path(sys.prefix).resolve() == venv.resolve():
        quickstart = shlex.quote(str(_ROOT / "bin" / "quickstart"))
        sys.exit(
            f"{pathlib.Path(sys.argv[0]).name}: fisher_keras is not installed: run {quickstart} "
            "once, which installs it into the checkout's .venv"
        )
    os.execv(python, [str(python), *sys.argv])
