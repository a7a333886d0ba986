"""`fisher-keras NAME`: all experiments behind one name on the user's PATH."""

import difflib
import os
import shlex
import sys
from collections.abc import Sequence

from fisher_keras._version import __version__
from fisher_keras.experiments.command_line import flags
from fisher_keras.experiments.command_line.errors import one_line_errors, raise_on_sigterm
from fisher_keras.experiments.command_line.quiet import find_devices, without_notices
from fisher_keras.experiments.command_line.table import COMMANDS, FORMER_NAMES, Command
from fisher_keras.extras import require

_HELP = {"-h", "-help", "--help", "-?", "--helpshort"}
_EXTRA = (
    *("distributed", "filelock", "matplotlib", "optuna"),
    *("sklearn", "tensorboard", "tensorflow_datasets"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits.

    The scripts in bin/ say in the environment variable FISHER_KERAS_PROGRAM that it was they who
    were started, for messages that name a command to type.

    Args:
        arguments: The command's name, then its flags; by default those of the process.

    Raises:
        SystemExit: With the command's exit code; 1 or 2 if there is no such command.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in {*_HELP, "help"}:
        print(_overview())
        sys.exit(0 if arguments else 2)
    if arguments == ["--version"]:
        print(f"fisher_keras {__version__}")
        sys.exit()
    name = arguments.pop(0)
    given = name.replace("-", "_")
    command = COMMANDS.get(FORMER_NAMES.get(given, given))
    if command is None:
        close = difflib.get_close_matches(given, COMMANDS, n=1)
        guess = f" (did you mean {close[0]}?)" if close else ""
        sys.exit(f"fisher-keras: no command {name!r}{guess}; fisher-keras --help lists them")
    # Removed, as the processes that this one starts are not the script.
    script = os.environ.pop("FISHER_KERAS_PROGRAM", None)
    program = shlex.quote(script) if script else f"fisher-keras {given}"
    # The first word only: a later one may be the value of the flag before it.
    if command.argument and arguments and not arguments[0].startswith("-"):
        arguments[0] = f"--{command.argument}={arguments[0]}"
    raise_on_sigterm()
    sys.stdout.reconfigure(line_buffering=True)  # Also where there is no terminal.
    _run(command, program, arguments)
    sys.exit()


def _run(command: Command, program: str, arguments: Sequence[str]) -> None:
    with one_line_errors(program, arguments, command.resume_flag):
        # Before any import: it says how to install all that is missing, and a failed import would
        # name one package.
        require(*_EXTRA)
        with without_notices():
            config = command.load_options()
        # Before the flags are parsed: one asks for help where they are wrong or still missing.
        if _HELP.intersection(arguments):
            print(command.help())
            return
        # Wrong flags exit with 2, as is usual in a shell. The outer block lets that pass, as
        # SystemExit is no Exception.
        with one_line_errors(program, arguments, command.resume_flag, status=2):
            values = flags.parse(config, program, arguments)
        with without_notices():
            options = flags.from_flags(config, values)
            # Only now, as a mistake in the options should not have to wait for TensorFlow.
            function = command.load_function()
            find_devices()
        function(*command.arguments, options)


def _overview() -> str:
    """Returns all commands with the first line of their help, without importing any."""
    lines = ["usage: fisher-keras COMMAND [--flags]; fisher-keras COMMAND --help lists them", ""]
    lines += [f"  {name:<22}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
