"""How the scripts in `bin/` run: grouped help, and every error of the user in one line."""

import errno
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import tensorflow as tf
from absl import app, flags

from fisher_keras.experiments.runs.runner import FailedRunsError

_HELP = {"-h", "-help", "--help", "-?", "--helpshort"}


def run_script(
    main: Callable[[], object],
    description: str,
    groups: Sequence[str],
    resume_flag: str | None = "--resume",
) -> NoReturn:
    """Parses the flags, runs the script and exits.

    Args:
        main: the script, to be called with the flags parsed.
        description: of the script, for --help.
        groups: names of the modules that the script's flags were defined under, as --help lists
            them.
        resume_flag: what a stopped script needs to go on; None if the same command does.
    """

    def parse(arguments: list[str]) -> list[str]:
        if _HELP.intersection(arguments[1:]):
            print(description.strip(), *map(flags.FLAGS.module_help, groups), sep="\n")
            sys.exit(0)
        try:
            rest = flags.FLAGS(arguments)
        except flags.Error as error:
            _fail(f"{error} (--help lists the flags)", status=2)
        if rest[1:]:
            _fail(f"unexpected argument {rest[1]!r}: flags start with -- (--help lists them)", 2)
        return rest

    app.run(lambda _: guarded(main, resume_flag), flags_parser=parse)


def guarded(main: Callable[[], object], resume_flag: str | None = "--resume") -> None:
    """Calls `main`; what the user can mend becomes one line on stderr and an exit code.

    Args:
        main: the script. Other errors than those of flags, data and files are let through: they
            are bugs.
        resume_flag: what a stopped script needs to go on; None if the same command does.

    Raises:
        SystemExit: with code 130 after Ctrl-C, 1 after an error.
    """
    try:
        main()
    except KeyboardInterrupt:
        command = [argument for argument in sys.argv if argument != resume_flag]
        command += [resume_flag] if resume_flag else []
        _fail(f"stopped; go on with: {shlex.join(command)}", status=130)
    except OSError as error:
        _fail(_full_disk(error, resume_flag or "the same command") or str(error))
    except tf.errors.ResourceExhaustedError:
        _fail("out of memory: give a smaller --batch_size")
    except (ArithmeticError, FailedRunsError, ImportError, ValueError) as error:
        _fail(str(error))


def _full_disk(error: OSError, how: str) -> str | None:
    if error.errno != errno.ENOSPC:
        return None
    return f"{error}; what is finished is kept: make room and go on with {how}"


def _fail(message: str, status: int = 1) -> NoReturn:
    name = pathlib.Path(sys.argv[0]).name
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
