"""The style of docstrings: each opens with a noun phrase or a verb."""

import ast
import pathlib
import re

PACKAGE = pathlib.Path(__file__).parents[1] / "fisher_keras"
OPENING = re.compile(r"(What|How|Which|Where|When|Who|Why|Whether)\b")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def riddles(text):
    """Returns the first lines of all docstrings of a module that open with a question word."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, DOCUMENTED)]
    docstrings = [ast.get_docstring(node) or "" for node in nodes]
    return [text.splitlines()[0] for text in docstrings if OPENING.match(text)]


def test_no_docstring_opens_with_a_question_word():
    found = {
        str(path.relative_to(PACKAGE)): riddles(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_what_is_found():
    text = '"""What it is."""\nclass A:\n    """A class."""\n    def b():\n        """How to."""'
    assert riddles(text) == ["What it is.", "How to."]
