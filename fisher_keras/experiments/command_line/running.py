"""How commands run: grouped help, and every error of the user in one line."""

import contextlib
import errno
import pathlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

import tensorflow as tf
from absl import app, flags

from fisher_keras.experiments.command_line.command import Command
from fisher_keras.experiments.runs.engine import FailedRunsError

_HELP = {"-h", "-help", "--help", "-?", "--helpshort"}


def run_command(
    command: Command, description: str, program: str, arguments: Sequence[str]
) -> NoReturn:
    """Parses the flags, runs the command and exits.

    Args:
        command: The command.
        description: Of it, for --help.
        program: How it was started, without its flags and ready for a shell.
        arguments: Its flags.
    """

    def parse(_: list[str]) -> list[str]:
        if _HELP.intersection(arguments):
            help_of = flags.FLAGS.module_help
            print(description.strip(), *map(help_of, command.flag_groups), sep="\n")
            sys.exit(0)
        with one_line_errors(program, status=2):
            try:
                rest = flags.FLAGS([program, *arguments])
            except flags.Error as error:
                raise ValueError(f"{error} (--help lists the flags)") from error
            if rest[1:]:
                raise ValueError(
                    f"unexpected argument {rest[1]!r}: flags start with -- (--help lists them)"
                )
        return rest

    def run(_: list[str]) -> None:
        with one_line_errors(program, arguments, command.resume_flag):
            command.run(command.read_flags())

    command.define_flags()
    app.run(run, argv=[program, *arguments], flags_parser=parse)


@contextlib.contextmanager
def one_line_errors(
    program: str, arguments: Sequence[str] = (), resume_flag: str | None = None, status: int = 1
) -> Iterator[None]:
    """Makes what the user can mend into one line on stderr and an exit code.

    Other errors than those of flags, data, files and missing packages are let through: they are
    bugs.

    Args:
        program: How the command was started, without its flags and ready for a shell.
        arguments: Its flags.
        resume_flag: What it needs to go on after it was stopped; None if the same flags do.
        status: The exit code after an error.

    Raises:
        SystemExit: With code 130 after Ctrl-C, `status` after an error.
    """
    try:
        yield
    except KeyboardInterrupt:
        again = [argument for argument in arguments if argument != resume_flag]
        again += [resume_flag] if resume_flag else []
        command = " ".join([program, *map(shlex.quote, again)])
        _fail(program, f"stopped; go on with: {command}", status=130)
    except OSError as error:
        how = resume_flag or "the same command"
        _fail(program, _full_disk(error, how) or _no_folder(error) or str(error), status)
    except tf.errors.ResourceExhaustedError:
        _fail(program, "out of memory: give a smaller --batch_size", status)
    except (ArithmeticError, FailedRunsError, ImportError, ValueError) as error:
        _fail(program, str(error), status)


def _full_disk(error: OSError, how: str) -> str | None:
    if error.errno != errno.ENOSPC:
        return None
    return f"{error}; what is finished is kept: make room and go on with {how}"


def _no_folder(error: OSError) -> str | None:
    if error.errno == errno.EEXIST and error.filename:
        return f"{error.filename} is a file and cannot be a folder: give another path"
    if error.errno == errno.ENOTDIR and error.filename:
        return f"{error.filename} would lie in what is a file and no folder: give another path"
    return None


def _fail(program: str, message: str, status: int) -> NoReturn:
    name = pathlib.Path(shlex.split(program)[-1]).name
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
