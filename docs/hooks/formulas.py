"""Formulas of the pages as MathML, which browsers draw without a script.

A formula that is no LaTeX ends the build.
"""

import html
import re

import math_core
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

# What pymdownx.arithmatex leaves of $...$ and $$...$$.
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
_converter = math_core.LatexToMathML()


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: object) -> str:
    """Draws the formulas of a page.

    Raises:
        PluginError: If one is no LaTeX.
    """

    def draw(match: re.Match) -> str:
        latex = html.unescape(match["latex"])
        display = match["tag"] == "div"
        try:
            mathml = _converter.convert_with_local_state(latex, displaystyle=display)
        except math_core.LatexError as error:
            raise PluginError(f"{page.file.src_uri}: no LaTeX: {latex}\n{error}") from error
        return f'<div class="formula">{mathml}</div>' if display else mathml

    return _FORMULA.sub(draw, content)
