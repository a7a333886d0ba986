"""The site's build fails at what would be wrong on a page. CI builds the site itself."""

import importlib.util
import pathlib
import types

import pytest
from mkdocs.exceptions import PluginError

HOOKS = pathlib.Path(__file__).parents[1] / "docs" / "hooks"


def hook(name):
    spec = importlib.util.spec_from_file_location(name, HOOKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Files:
    """Those of the site."""

    def get_file_from_path(self, path):
        return path if path in ("index.md", "theory.md", "results/README.md") else None


def page(source):
    return types.SimpleNamespace(file=types.SimpleNamespace(src_uri=source))


def draw(latex):
    content = f'<p>1 <span class="arithmatex">\\({latex}\\)</span></p>'
    return hook("formulas").on_page_content(content, page("theory.md"), None, None)


def test_formulas_are_mathml():
    drawn = draw("a &lt; b")
    assert drawn.startswith("<p>1 <math>")
    assert "arithmatex" not in drawn


def test_a_formula_that_is_no_latex_is_an_error():
    with pytest.raises(PluginError, match=r"theory\.md: no LaTeX: \\frac\{a"):
        draw(r"\frac{a")


def turn(source, markdown, repo_url=""):
    config = types.SimpleNamespace(repo_url=repo_url)
    return hook("repository_pages").on_page_markdown(markdown, page(source), config, Files())


@pytest.mark.parametrize(
    ("source", "link", "on_the_site"),
    [
        ("index.md", "[a](theory.md#the-bound)", "[a](theory.md#the-bound)"),
        ("index.md", "[a](../results/README.md)", "[a](results/README.md)"),
        ("results/README.md", "[a](../docs/theory.md)", "[a](../theory.md)"),
        ("examples/transformer.md", "[a](../docs/theory.md)", "[a](../theory.md)"),
        ("index.md", "[a](https://b)", "[a](https://b)"),
        ("index.md", "[`a`](../LICENSE)", "`a`"),
        ("index.md", "```python\nx[0](LICENSE)\n```", "```python\nx[0](LICENSE)\n```"),
    ],
)
def test_links_of_the_repository_are_those_of_the_site(source, link, on_the_site):
    assert turn(source, link) == on_the_site


def test_files_that_are_no_pages_are_the_repositorys():
    address = "https://host/owner/name"
    assert turn("index.md", "[a](../LICENSE)", address) == f"[a]({address}/blob/main/LICENSE)"


def test_a_link_that_leads_nowhere_is_an_error():
    with pytest.raises(PluginError, match=r"index\.md: \.\./NOWHERE\.md leads to NOWHERE\.md"):
        turn("index.md", "[a](../NOWHERE.md)")
