"""Files that are written in one go: killed in the middle, the old one is still there."""

import contextlib
import os
import pathlib
import uuid
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: pathlib.Path, shared: bool = False) -> Iterator[pathlib.Path]:
    """Gives a path to write to, which takes the place of `path` once it is written.

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
