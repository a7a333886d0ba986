"""Makes the README's links absolute, for pages that show it outside of the repository.

python .github/absolute_links.py README.md https://github.com/OWNER/NAME v0.2.0
"""

import pathlib
import re
import sys

_LINK = re.compile(r"(!?)(\[(?:[^\[\]]|!?\[[^\]]*\]\([^)]*\))*\])\((?!https?:|#)([^)\s]+)\)")


def absolute(text: str, repository: str, revision: str) -> str:
    """Returns the text with absolute links.

    Args:
        text: Markdown, links relative to the repository's top.
        repository: Address of the repository.
        revision: Tag or commit.
    """

    def link(match: re.Match) -> str:
        image, label, target = match.groups()
        label = absolute(label, repository, revision) if "](" in label else label
        if target.startswith("../../"):  # Pages of the repository, such as those of its workflows.
            return f"{image}{label}({repository}/{target.removeprefix('../../')})"
        kind = "raw" if image else "blob"
        return f"{image}{label}({repository}/{kind}/{revision}/{target})"

    return _LINK.sub(link, text)


if __name__ == "__main__":
    readme, repository, revision = sys.argv[1:]
    path = pathlib.Path(readme)
    text = path.read_text(encoding="utf-8")
    path.write_text(absolute(text, repository, revision), encoding="utf-8")
