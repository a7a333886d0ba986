"""User errors as one line, and the command that resumes what was stopped."""

import contextlib
import errno
import pathlib
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

_USERS = (ArithmeticError, ImportError, OSError, ValueError)
# Errors of the user as well. They are known by name: importing their classes takes seconds.
_USERS_BY_NAME = {
    "FailedRunsError": "{}",
    "ResourceExhaustedError": "out of memory: give a smaller --batch_size",
}
_FILE_ERRORS = {
    errno.EACCES: "{} cannot be read or written: its permissions do not allow it",
    errno.EPERM: "{} cannot be read or written: its permissions do not allow it",
    errno.EROFS: "{} cannot be written: its file system is read-only",
    errno.ENOENT: "there is no file or folder {}",
    errno.EISDIR: "{} is a folder and cannot be a file: give another path",
    errno.EEXIST: "{} is a file and cannot be a folder: give another path",
    errno.ENOTDIR: "{} would lie in what is a file and no folder: give another path",
}


# A kind of Ctrl-C, so that every place which cleans up after that also cleans up here, and no
# `except Exception` takes it for an error.
class Terminated(KeyboardInterrupt):
    """SIGTERM: the command ends as after Ctrl-C."""


def raise_on_sigterm() -> None:
    """Has SIGTERM, with which clusters and `kill` end a process, raise `Terminated`."""

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)


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
        SystemExit: With code 130 after Ctrl-C, 143 after SIGTERM, `status` after an error.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        # Taken out before it is added: a command that was itself resumed would name it twice.
        again = [argument for argument in arguments if argument != resume_flag]
        again += [resume_flag] if resume_flag else []
        command = " ".join([program, *map(shlex.quote, again)])
        # Shells and cluster schedulers read 128 + number as the end by that signal.
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        _fail(program, f"stopped; go on with: {command}", status=128 + number)
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
    # A missing module of this package is a bug; only other packages can be installed.
    if isinstance(error, ImportError) and (error.name or "").startswith("fisher_keras"):
        return None
    # Without a number, the message was written for the user where the error was raised.
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    # Before the question of a file's name: a write to a full disk does not know it.
    if error.errno == errno.ENOSPC:
        where = f" that holds {error.filename}" if error.filename else ""
        return (
            f"the disk{where} is full; what is finished is kept: make room and go on with "
            f"{resume_with}"
        )
    if not error.filename:
        return error.strerror or str(error)
    return _FILE_ERRORS.get(error.errno, f"{{}}: {error.strerror}").format(error.filename)


def _fail(program: str, message: str, status: int) -> NoReturn:
    # The last word is the command, in "fisher-keras NAME" as in the quoted path of a script.
    name = pathlib.Path(shlex.split(program)[-1]).name
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
