"""The scripts of examples/ as pages: their text, code, what it printed, and its figures.

Each is executed in a process of its own, unless that was done since it and the package have
changed, here or by the tests. One that fails is an error.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

_HERE = pathlib.Path(__file__).parent
_AT_ONCE = 2


def pages(root: pathlib.Path, repository: str) -> dict[str, pathlib.Path]:
    """Executes the scripts.

    Args:
        root: The checkout.
        repository: Its address; where that is GitHub's, a page has a link that opens its notebook.

    Returns:
        The pages and figures, by their places on the site.
    """
    scripts = sorted((root / "examples").glob("*.py"))
    files = {}
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        for folder in pool.map(functools.partial(_execute, root), scripts):
            page = folder / f"{folder.name}.md"
            files[f"examples/{page.name}"] = _with_badge(page, root, repository)
            for figure in sorted(folder.glob("figure-*.png")):
                files[f"examples/{folder.name}/{figure.name}"] = figure
    return files


def badge(name: str, repository: str) -> str:
    """Returns the Markdown of the link that opens a notebook of examples/ in Colab."""
    github = re.match(r"https://github\.com/([^/]+/[^/]+?)/?$", repository)
    if github is None:
        return ""
    colab = "https://colab.research.google.com"
    address = f"{colab}/github/{github[1]}/blob/main/examples/{name}"
    return f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({address})"


def _with_badge(page: pathlib.Path, root: pathlib.Path, repository: str) -> pathlib.Path:
    notebook = root / "examples" / f"{page.stem}.ipynb"
    link = badge(notebook.name, repository) if notebook.exists() else ""
    if not link:
        return page
    title, rest = page.read_text(encoding="utf-8").split("\n", 1)
    linked = page.parent / "with_badge.md"
    linked.write_text(f"{title}\n\n{link}\n{rest}", encoding="utf-8")
    return linked


def _execute(root: pathlib.Path, script: pathlib.Path) -> pathlib.Path:
    """Executes a script unless its page is there: the folder with its page."""
    folder = _folder(root, script)
    stamp = folder / "stamp"
    if stamp.exists() and stamp.read_text() == _fingerprint(root, script):
        return folder
    with new_folder(root, script):
        done = subprocess.run(
            [sys.executable, _HERE / "execute.py", script],
            **{"cwd": folder, "capture_output": True, "text": True},
        )
        if done.returncode:
            sys.exit(f"{script.relative_to(root)} failed:\n{done.stderr}")
    return folder


@contextlib.contextmanager
def new_folder(root: pathlib.Path, script: pathlib.Path) -> Iterator[pathlib.Path]:
    """Empties the folder of a script's page, and stamps it if what executes it raises nothing."""
    folder, stamp = _folder(root, script), _fingerprint(root, script)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    (folder / "stamp").write_text(stamp)


def _folder(root: pathlib.Path, script: pathlib.Path) -> pathlib.Path:
    return root / "build" / "examples" / script.stem


def _fingerprint(root: pathlib.Path, script: pathlib.Path) -> str:
    # Of tests: in another numeric environment, a page has other numbers.
    digest = hashlib.sha256(os.environ.get("FISHER_KERAS_ENVIRONMENT", "").encode())
    package = sorted((root / "fisher_keras").rglob("*.py"))
    for path in (script, _HERE / "cells.py", _HERE / "execute.py", *package):
        digest.update(path.read_bytes())
    return digest.hexdigest()
