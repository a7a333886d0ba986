"""Executes a script of `# %%` cells, in the current directory, and writes its page there.

python execute.py SCRIPT: SCRIPT's stem is the page's name, and its folder of figures.
"""

import contextlib
import io
import pathlib
import sys

import cells
import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt


def execute(script: pathlib.Path) -> dict:
    """Executes the cells one after the other: the names that they define."""
    names = {"__name__": "__main__"}
    plt.close("all")  # Figures of what ran in this process before.
    blocks = []
    for is_markdown, text in cells.split(script):
        blocks += [text] if is_markdown else _run(text, names, script)
    pathlib.Path(f"{script.stem}.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return names


def _run(code: str, names: dict, script: pathlib.Path) -> list[str]:
    """Executes a cell: its blocks of the page."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, script.name, "exec"), names)
    blocks = [f"```python\n{code}\n```"]
    if text := printed.getvalue().rstrip():
        blocks.append(f"Output:\n\n```text\n{text}\n```")
    for number in plt.get_fignums():
        figure = f"figure-{len(list(pathlib.Path().glob('figure-*.png'))) + 1}.png"
        plt.figure(number).savefig(figure, dpi=150)
        blocks.append(f"![What the code above draws]({script.stem}/{figure})")
    plt.close("all")
    return blocks


if __name__ == "__main__":
    execute(pathlib.Path(sys.argv[1]))
