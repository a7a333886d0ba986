"""Files that are written in one go, and the differences between two definitions."""

import contextlib
import os
import pathlib
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def replacing(path: pathlib.Path, shared: bool = False) -> Iterator[pathlib.Path]:
    """Gives a path to write to, which takes the place of `path` once it is written.

    Killed in the middle, the old file is still there.

    Args:
        path: The file to make or replace.
        shared: Whether several processes may write it at the same time. Each then has a hidden
            file of its own; one that is killed leaves it behind.

    Yields:
        The path of a hidden file beside it, with the same suffix.
    """
    own = f"{uuid.uuid4().hex}." if shared else ""
    part = path.with_name(f".part.{own}{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def make_folder(directory: pathlib.Path) -> list[pathlib.Path]:
    """Makes a folder.

    Returns:
        It and those that it is in, from the inside, as far as they were not there: see
        `remove_empty`.

    Raises:
        OSError: If it cannot be made.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    return made


def remove_empty(folders: Iterable[pathlib.Path]) -> None:
    """Removes folders, up to the first that is not empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def write_text(path: pathlib.Path, text: str, shared: bool = False) -> None:
    """Writes a text file in one go, see `replacing`; line ends stay as they are.

    Raises:
        OSError: If it cannot be written; the old file is then still there.
    """
    with replacing(path, shared) as part, part.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # On a network, a full disk says so no sooner.


def differences(
    stored: Mapping[str, Any], given: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """Compares two definitions of what should be the same thing.

    Args:
        stored: A value by name, as it was when the thing was made.
        given: The values of now. A name that one of them lacks has the value None there.
        prefix: Stands before each name.

    Returns:
        For each name whose values differ, in order, "NAME was VALUE, is VALUE".
    """
    return [
        f"{prefix}{name} was {stored.get(name)}, is {given.get(name)}"
        for name in sorted({*stored, *given})
        if stored.get(name) != given.get(name)
    ]
