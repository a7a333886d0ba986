"""Links of pages, from the repository's files to the site's pages.

A link of a page is relative to its file in the repository, so that it also works where Markdown is
shown without the site. Here it becomes a link within the site, one to the repository where that
has an address, or else plain text.
"""

import pathlib
import posixpath
import re
from collections.abc import Collection

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
# A large figure is too small on a narrow screen: it leads to itself.
_FIGURE = re.compile(r"^(!\[[^\]]*\]\(([^)\s]+)\))$", re.MULTILINE)
_INTERVAL = re.compile(r"(?<=\[)([−\d.]+,) ([−\d.]+)(?=\])")
_FENCE = re.compile(r"^(```.*?^```)$", re.DOTALL | re.MULTILINE)


def images(root: pathlib.Path, page: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the images that a page outside of docs/ shows, by their places on the site."""
    if page.is_relative_to(root / "docs"):
        return {}
    links = _LINK.finditer(page.read_text(encoding="utf-8"))
    paths = ((page.parent / match["target"]).resolve() for match in links if match["image"])
    return {path.relative_to(root.resolve()).as_posix(): path for path in paths if path.exists()}


def turn(
    markdown: str, name: str, root: pathlib.Path, on_site: Collection[str], repository: str
) -> str:
    """Turns the links of a page.

    Args:
        markdown: Its text.
        name: Its place on the site.
        root: The checkout.
        on_site: The places of all files of the site.
        repository: The address of the repository, or nothing.

    Returns:
        The text with other links.

    Raises:
        SystemExit: If a link leads to a file that does not exist.
    """
    # A page of docs/ has its place on the site without that folder, others have the repository's.
    source = f"docs/{name}" if (root / "docs" / name).exists() or name.startswith("api/") else name
    folder = posixpath.dirname(source)

    def replace(match: re.Match) -> str:
        target, hash_, anchor = match["target"].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if (place := path.removeprefix("docs/")) in on_site:
            relative = posixpath.relpath(place, posixpath.dirname(name))
            return f"{match['image']}[{match['text']}]({relative}{hash_}{anchor})"
        if not (root / path).exists():
            raise SystemExit(f"{name}: {match['target']} leads to {path}, which does not exist")
        if not repository:
            return match["text"]
        return f"[{match['text']}]({repository.rstrip('/')}/blob/main/{path}{hash_}{anchor})"

    # Python's x[i](y) is no link.
    parts = _FENCE.split(markdown)
    text = "".join(part if part.startswith("```") else _LINK.sub(replace, part) for part in parts)
    # The ends of an interval stay on one line.
    return _INTERVAL.sub("\\1\N{NO-BREAK SPACE}\\2", _FIGURE.sub(r"[\1](\2)", text))
