"""Pages that have their place elsewhere in the repository, and links that leave the site.

A link of a page is relative to its file in the repository, so that it also works where Markdown is
shown without the site. Here it becomes a link within the site, one to the repository where that
has an address (`repo_url`), or else plain text. A link to a file that does not exist ends the
build.
"""

import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[2]
PAGES = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md"),
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "results").glob("**/README.md"))),
)
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_FENCE = re.compile(r"^(```.*?^```)$", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and the images that they show."""
    for name in PAGES:
        _add(files, config, name)
        folder = posixpath.dirname(name)
        for match in _LINK.finditer((ROOT / name).read_text(encoding="utf-8")):
            if match["image"]:
                _add(files, config, posixpath.normpath(posixpath.join(folder, match["target"])))
    return files


def _add(files: Files, config: MkDocsConfig, name: str) -> None:
    if files.get_file_from_path(name) is None:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the links of a page from the repository's to the site's."""
    source = page.file.src_uri
    outside = source in PAGES or source.startswith("examples/")
    folder = posixpath.dirname(source if outside else f"docs/{source}")

    def turn(match: re.Match) -> str:
        target, hash_, anchor = match["target"].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        on_site = path.removeprefix("docs/")
        if files.get_file_from_path(on_site) is not None:
            relative = posixpath.relpath(on_site, posixpath.dirname(source))
            return f"{match['image']}[{match['text']}]({relative}{hash_}{anchor})"
        if not (ROOT / path).exists():
            raise PluginError(f"{source}: {match['target']} leads to {path}, which does not exist")
        if not config.repo_url:
            return match["text"]
        address = f"{config.repo_url.rstrip('/')}/blob/main/{path}{hash_}{anchor}"
        return f"[{match['text']}]({address})"

    # Python's x[i](y) is no link.
    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(turn, part) for part in parts)
