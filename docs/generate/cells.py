"""The cells of a script of `# %%` cells, as pages and as a notebook have them.

python docs/generate/cells.py SCRIPT: prints the notebook.
"""

import json
import pathlib
import re
import sys

_CELL = re.compile(r"^# %%(?P<kind> \[markdown\])?\n", re.MULTILINE)


def split(script: pathlib.Path) -> list[tuple[bool, str]]:
    """Returns the cells, each with True for Markdown or False for code."""
    # What is before the first cell, the docstring, is for those who read the file alone.
    _, *parts = _CELL.split(script.read_text(encoding="utf-8"))
    return [
        (True, re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE))
        if kind
        else (False, text.strip())
        for kind, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def notebook(script: pathlib.Path) -> str:
    """Returns a script as a Jupyter notebook without outputs, in the form that Jupytext gives it.

    A commented magic command (`# %pip install ...`) becomes a real one.
    """
    cells = []
    for number, (is_markdown, text) in enumerate(split(script)):
        cell = {"cell_type": "markdown" if is_markdown else "code", "id": f"cell-{number}"}
        if not is_markdown:
            text = re.sub(r"^# (?=%)", "", text, flags=re.MULTILINE)
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell | {"metadata": {}, "source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": cells,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(notebook(pathlib.Path(sys.argv[1])))
