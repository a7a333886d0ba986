"""The site's pages are plain Markdown; what would be wrong on one is an error. CI builds them."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("generator")


def draw(markdown):
    import formulas

    return formulas.draw(markdown, "theory.md")


def test_formulas_are_mathml():
    drawn = draw("Where $a < b_1$:\n\n$$\n\\sum_i |x_i|\n$$")
    assert re.fullmatch(
        r'Where <span><math>.*</math></span>:\n\n<div class="formula"><math display.*</div>', drawn
    )
    assert "&lt;" in drawn
    assert "|" not in drawn, "in a table, it would begin a cell"


@pytest.mark.parametrize("text", ["`$a$`", "```bash\necho $a $b\n```", "1 $ and 2 $", r"\$a$"])
def test_a_dollar_that_is_no_formula_stays(text):
    assert draw(text) == text


def test_a_formula_that_is_no_latex_is_an_error():
    with pytest.raises(SystemExit, match=r"theory\.md: no LaTeX: \\frac\{a"):
        draw(r"$\frac{a$")


def turn(source, markdown, repository=""):
    import links

    on_site = {"index.md", "theory.md", "results/README.md"}
    return links.turn(markdown, source, ROOT, on_site, repository)


@pytest.mark.parametrize(
    ("source", "link", "on_the_site"),
    [
        ("index.md", "[a](theory.md#the-bound)", "[a](theory.md#the-bound)"),
        ("index.md", "[a](../results/README.md)", "[a](results/README.md)"),
        ("results/README.md", "[a](../docs/theory.md)", "[a](../theory.md)"),
        ("examples/transformer.md", "[a](../docs/theory.md)", "[a](../theory.md)"),
        ("index.md", "[a](https://b)", "[a](https://b)"),
        ("index.md", "[`a`](../LICENSE)", "`a`"),
        ("index.md", "τ is 1 [−0.5, 2]", "τ is 1 [−0.5,\N{NO-BREAK SPACE}2]"),
        ("index.md", "![a](theory.md)", "[![a](theory.md)](theory.md)"),
        ("index.md", "```python\nx[0](LICENSE)\n```", "```python\nx[0](LICENSE)\n```"),
    ],
)
def test_links_of_the_repository_are_those_of_the_site(source, link, on_the_site):
    assert turn(source, link) == on_the_site


def test_files_that_are_no_pages_are_the_repositorys():
    address = "https://host/owner/name"
    assert turn("index.md", "[a](../LICENSE)", address) == f"[a]({address}/blob/main/LICENSE)"


def test_a_link_that_leads_nowhere_is_an_error():
    with pytest.raises(SystemExit, match=r"index\.md: \.\./NOWHERE\.md leads to NOWHERE\.md"):
        turn("index.md", "[a](../NOWHERE.md)")


HELP = """Does it.

For example

  it --to=a \\
    --fast

Runs.

how:
  --[no]fast: Be fast, as
    --to is.
    (default: 'true')
  --to: <a|b>: Where_to <go>.
    (a number)
"""
PAGE = """# it

Does it.

For example

```bash
fisher-keras it --to=a \\
  --fast
```

Runs.

## How

- <a id="fast"></a>`--fast`, `--nofast`<br>
  Be fast, as --to is. Default: true.

- <a id="to"></a>`--to`<br>
  Where\\_to &lt;go&gt;. Expected: a number. One of `a`, `b`.
"""


def test_a_command_has_a_page_with_an_anchor_for_each_flag():
    import commands

    assert commands.page("it", HELP) == PAGE


def test_all_flags_are_on_the_pages_of_the_commands():
    import commands

    for name, text in commands.pages().items():
        if command := commands.COMMANDS.get(pathlib.Path(name).stem):
            shown = re.findall(r"^  --(?:\[no\])?(\w+):", command.help(), flags=re.MULTILINE)
            assert re.findall(r'id="(\w+)"', text) == shown
            assert shown


def test_every_page_is_in_the_navigation():
    navigation = re.sub(r"#.*", "", (ROOT / "mkdocs.yml").read_text())
    import commands

    pages = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    assert [page for page in pages | commands.pages().keys() if page not in navigation] == []


def test_notebooks_are_their_scripts():
    import cells

    notebooks = sorted((ROOT / "examples").glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        script = path.with_suffix(".py")
        assert path.read_text(encoding="utf-8") == cells.notebook(script), (
            f"python docs/generate/cells.py {script} > {path}"
        )
        code = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        assert "".join(code[0]["source"]).startswith("%pip install")


def test_badges_are_for_repositories_on_github():
    import gallery

    assert gallery.badge("a.ipynb", "https://host/owner/name") == ""
    assert gallery.badge("a.ipynb", "https://github.com/owner/name").endswith(
        "(https://colab.research.google.com/github/owner/name/blob/main/examples/a.ipynb)"
    )
