"""`fisher-keras NAME`: all experiments behind one name on the user's PATH."""

import ast
import difflib
import importlib
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

_COMMANDS = pathlib.Path(__file__).parents[1] / "commands"
_HELP = {"-h", "-help", "--help", "-?", "help"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits.

    The scripts in bin/ say in the environment variable FISHER_KERAS_PROGRAM that it was they who
    were started, for messages that name a command to type.

    Args:
        arguments: The command's name, then its flags; by default those of the process.

    Raises:
        SystemExit: With the command's exit code; 2 if there is no such command.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in _HELP:
        print(_overview())
        sys.exit(0 if arguments else 2)
    name = arguments[0].replace("-", "_")
    if name not in _names():
        close = difflib.get_close_matches(name, _names(), n=1)
        guess = f" (did you mean {close[0]}?)" if close else ""
        sys.exit(
            f"fisher-keras: no command {arguments[0]!r}{guess}; fisher-keras --help lists them"
        )
    try:
        from fisher_keras.experiments.command_line import quiet  # noqa: F401

        # First, as it asks for the packages that all others take for granted.
        module = importlib.import_module(f"fisher_keras.experiments.commands.{name}")
        from fisher_keras.experiments.command_line.running import run_command
    except ImportError as error:
        if error.name is not None:  # No check of ours, but a bug.
            raise
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    script = os.environ.pop("FISHER_KERAS_PROGRAM", None)
    program = shlex.quote(script) if script else f"fisher-keras {name}"
    run_command(module.COMMAND, module.__doc__, program, arguments[1:])


def _names() -> list[str]:
    return sorted(path.stem for path in _COMMANDS.glob("[!_]*.py"))


def _overview() -> str:
    """Returns all commands with the first line of their help, without importing any."""
    lines = ["usage: fisher-keras COMMAND [--flags]; fisher-keras COMMAND --help lists them", ""]
    for name in _names():
        text = (_COMMANDS / f"{name}.py").read_text(encoding="utf-8")
        summary = ast.get_docstring(ast.parse(text)).partition("\n")[0]
        lines.append(f"  {name:<22}{summary}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
