"""User errors as one line, and the command that resumes what was stopped."""

import contextlib
import errno
import pathlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

_USERS = (ArithmeticError, ImportError, OSError, ValueError)
# Errors of the user as well. They are known by name: importing their classes takes seconds.
_USERS_BY_NAME = {
    "FailedRunsError": "{}",
    "ResourceExhaustedError": "out of memory: give a smaller --batch_size",
}


@contextlib.contextmanager
def one_line_errors(
    program: str, arguments: Sequence[str] = (), resume_flag: str | None = None, status: int = 1
) -> Iterator[None]:
    """Prints errors that the user can mend as one line on stderr, and exits.

    These are errors of flags, data, files and missing packages. Others are bugs, and pass.

    Args:
        program: How the command was started, without its flags and ready for a shell.
        arguments: Its flags.
        resume_flag: What it needs to resume after it was stopped; None if the same flags do.
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
    except Exception as error:
        message = _message(error, resume_flag or "the same command")
        if message is None:
            raise
        _fail(program, message, status)


def _message(error: Exception, resume_with: str) -> str | None:
    """Returns the line for an error; None if it is a bug."""
    if type(error).__name__ in _USERS_BY_NAME:
        return _USERS_BY_NAME[type(error).__name__].format(error)
    if not isinstance(error, _USERS):
        return None
    if isinstance(error, ImportError) and (error.name or "").startswith("fisher_keras"):
        return None
    path = error.filename if isinstance(error, OSError) else None
    match getattr(error, "errno", None):
        case errno.ENOSPC:
            return f"{error}; what is finished is kept: make room and go on with {resume_with}"
        case errno.EEXIST if path:
            return f"{path} is a file and cannot be a folder: give another path"
        case errno.ENOTDIR if path:
            return f"{path} would lie in what is a file and no folder: give another path"
    return str(error)


def _fail(program: str, message: str, status: int) -> NoReturn:
    name = pathlib.Path(shlex.split(program)[-1]).name
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
