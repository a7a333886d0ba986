"""Executes a script of `# %%` cells, in the current directory, and writes its page there.

python execute.py SCRIPT: SCRIPT's stem is the page's name, and its folder of figures.
"""

import contextlib
import io
import pathlib
import re
import sys

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt

_CELL = re.compile(r"^# %%(?P<kind> \[markdown\])?\n", re.MULTILINE)
_OUTPUT = '``` {{ .text .output title="Output" }}\n{}\n```'


def main() -> None:
    """Executes the cells one after the other."""
    script = pathlib.Path(sys.argv[1])
    # What is before the first cell, the docstring, is for those who read the file alone.
    _, *cells = _CELL.split(script.read_text(encoding="utf-8"))
    names = {"__name__": "__main__"}
    blocks = []
    for kind, text in zip(cells[::2], cells[1::2], strict=True):
        if kind:
            blocks.append(re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE))
        else:
            blocks += _run(text.strip("\n"), names, script)
    pathlib.Path(f"{script.stem}.md").write_text("\n\n".join(blocks) + "\n", encoding="utf-8")


def _run(code: str, names: dict, script: pathlib.Path) -> list[str]:
    """Executes a cell: its blocks of the page."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, script.name, "exec"), names)
    blocks = [f"```python\n{code}\n```"]
    if text := printed.getvalue().rstrip():
        blocks.append(_OUTPUT.format(text))
    for number in plt.get_fignums():
        figure = f"figure-{len(list(pathlib.Path().glob('figure-*.png'))) + 1}.png"
        plt.figure(number).savefig(figure, dpi=150)
        blocks.append(f"![What the code above draws]({script.stem}/{figure})")
    plt.close("all")
    return blocks


if __name__ == "__main__":
    main()
