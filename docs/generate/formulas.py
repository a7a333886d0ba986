"""Formulas as MathML, which browsers draw without a script, on pages and in docstrings.

A formula that is no LaTeX is an error.
"""

import re

import griffe
import math_core

# Code is found, too, so that no dollar in it begins a formula.
_FORMULA = re.compile(
    r"^ *```.*?^ *```$|``.*?``|`[^`]*`"
    r"|\$\$(?P<display>.+?)\$\$|(?<![\\$])\$(?P<inline>[^\s$](?:[^$]*?[^\s$\\])?)\$(?!\d)",
    re.DOTALL | re.MULTILINE,
)
_SPECIAL = re.compile(r"[*_|`\\{}\[\]]|(?<=>)[ \n]+(?=<)")
_converter = math_core.LatexToMathML()


def draw(markdown: str, source: str) -> str:
    """Replaces the LaTeX between dollars by MathML.

    Args:
        markdown: The text.
        source: Where it is from, for messages.

    Returns:
        The text, in which a formula is HTML without line breaks.

    Raises:
        SystemExit: If a formula is no LaTeX.
    """

    def replace(match: re.Match) -> str:
        display, latex = match["display"], match["display"] or match["inline"]
        if latex is None:
            return match[0]
        try:
            mathml = _converter.convert_with_local_state(latex, displaystyle=bool(display))
        except math_core.LatexError as error:
            raise SystemExit(f"{source}: no LaTeX: {latex}\n{error}") from error
        # Markdown must not see its own signs in a formula, a table's | among them.
        mathml = re.sub(r">[^<]+<", lambda text: _SPECIAL.sub(_escape, text[0]), mathml)
        mathml = " ".join(mathml.split())
        return f'<div class="formula">{mathml}</div>' if display else f"<span>{mathml}</span>"

    return _FORMULA.sub(replace, markdown)


def _escape(match: re.Match) -> str:
    return "" if match[0].isspace() else f"&#{ord(match[0])};"


class Docstrings(griffe.Extension):
    """Draws the formulas of the docstrings that the API's pages show."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Draws those of one object."""
        if obj.docstring:
            obj.docstring.value = draw(obj.docstring.value, obj.path)
