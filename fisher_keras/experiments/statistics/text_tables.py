"""Cells of tables, and tables as files."""

import math
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from fisher_keras.files import write_text
from fisher_keras.tables import Rows, markdown_table


def mean_and_spread(
    values: Sequence[float], form: str = "{:.4g}", form_of_spread: str = "{:.3g}"
) -> str:
    """Formats mean ± standard deviation (n - 1 in the denominator) of the values that are finite.

    Args:
        values: A value of each run.
        form: Format of the mean.
        form_of_spread: Format of the standard deviation, which a single value does not have.

    Returns:
        The text, with the numbers of values that are infinite or NaN; "–" without a finite one.
    """
    values = np.asarray(values, float)
    if np.isnan(values).all():
        return "–"
    finite = values[np.isfinite(values)]
    text = form.format(finite.mean()) if len(finite) else "–"
    if len(finite) > 1:
        text += f" ± {form_of_spread.format(finite.std(ddof=1))}"
    for other, name in ((-np.inf, "-inf"), (np.inf, "inf"), (np.nan, "nan")):
        count = np.count_nonzero(np.isnan(values) if np.isnan(other) else values == other)
        text += f" ({count} of {len(values)}: {name})" if count else ""
    return text


def p_cell(p_value: float) -> str:
    """Formats a p-value with three digits, NaN as a dash."""
    return "–" if math.isnan(p_value) else f"{p_value:.3g}"


def latex_table(rows: Rows) -> str:
    """Returns a LaTeX tabular, for the package booktabs."""
    header, *body = (
        [re.sub("[%&#_]", r"\\\g<0>", cell).replace("±", r"$\pm$") for cell in row] for row in rows
    )
    lines = [f"  {' & '.join(row)} \\\\" for row in (header, *body)]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}"
    rules = (begin, r"  \toprule", lines[0], r"  \midrule", *lines[1:], r"  \bottomrule")
    return "\n".join((*rules, r"\end{tabular}"))


def publish_table(
    directory: pathlib.Path,
    name: str,
    rows: Rows,
    num_names: int = 1,
    notes: Sequence[str] = (),
    printed: str | None = None,
) -> None:
    """Prints a table with notes below, and writes it as `name`.md and .tex.

    Args:
        directory: The folder.
        name: The files' name, without suffix.
        rows: The table.
        num_names: See `markdown_table`.
        notes: Sentences; in LaTeX, comments.
        printed: What is printed instead of the Markdown.

    Raises:
        OSError: If a file cannot be written.
    """
    markdown = "\n\n".join(
        [markdown_table(rows, num_names), *([" ".join(notes)] if notes else [])]
    )
    latex = "\n".join([latex_table(rows), *(f"% {note}" for note in notes)])
    print(f"\n{printed or markdown}")
    for suffix, text in (("md", markdown), ("tex", latex)):
        write_text(directory / f"{name}.{suffix}", text + "\n")
    print(f"\nIt is in {directory / name}.md and .tex.")
