"""A lock that keeps other commands out of a folder."""

import contextlib
import os
import pathlib
import socket
import time
from collections.abc import Iterator

import filelock

from fisher_keras.files import make_folder, remove_empty


@contextlib.contextmanager
def folder_lock(directory: pathlib.Path) -> Iterator[None]:
    """Makes a folder and keeps other commands out of it.

    A folder that this has made is removed again if nothing but hidden files is in it at the end:
    the command was refused then.

    Args:
        directory: The folder.

    Raises:
        ValueError: If another command is at work there.
        OSError: If the folder cannot be made or written.
    """
    made = make_folder(directory)
    path = directory / ".lock"
    try:
        held = filelock.FileLock(path).acquire(timeout=0)
    except filelock.Timeout:
        holder = path.read_text(encoding="utf-8")
        raise ValueError(
            f"{directory} is in use by {holder or 'another process'}: wait for its end, "
            "or give another --output_dir"
        ) from None
    with held:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        # For messages alone: it may still be there after its writer has ended, while the lock
        # is then free.
        path.write_text(
            f"process {os.getpid()} on {socket.gethostname()} since {since}", encoding="utf-8"
        )
        try:
            yield
        finally:
            # What is not a file, or is gone, must not hide an error of the command.
            with contextlib.suppress(OSError):
                files = list(directory.iterdir())
                if made and all(file.name.startswith(".") for file in files):
                    for file in files:
                        file.unlink()
                    remove_empty(made)
