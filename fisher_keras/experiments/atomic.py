"""Files that are written in one go: killed in the middle, the old one is still there."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a path to write to, which takes the place of `path` once it is written.

    Args:
        path: the file to make or replace.

    Yields:
        The path of a hidden file beside it, with the same suffix.
    """
    part = path.with_name(f".part.{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
