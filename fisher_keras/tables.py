"""Tables as text, from rows of cells whose first is the header."""

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def markdown_table(rows: Rows, num_names: int = 1) -> str:
    """Returns a Markdown table; all but its first `num_names` columns are aligned to the right."""
    header, *body = rows
    rule = ["---"] * num_names + ["---:"] * (len(header) - num_names)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *body))


def aligned_table(rows: Rows) -> str:
    """Returns a table for the terminal: the first column aligned to the left, others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])])
        for name, *cells in rows
    )
