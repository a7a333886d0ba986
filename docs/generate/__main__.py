"""Writes the pages of the site as plain Markdown into build/docs, for any site builder.

python docs/generate: copies docs/ and the pages that stand elsewhere in the repository, executes
the examples, and writes the help of the commands. Formulas become MathML, which browsers draw
without a script, and links lead within the site. A link that leads nowhere, a formula that is no
LaTeX, and an example that fails are errors.
"""

import os
import pathlib
import shutil

import commands
import formulas
import gallery
import links

ROOT = pathlib.Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "docs"


def main() -> None:
    """Collects the files by their places on the site, and writes them."""
    files = _from(ROOT / "docs", "*.md", "api/*.md", "assets/**/*")
    files |= _from(ROOT, "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/*.md")
    files |= _from(ROOT, "results/**/README.md")
    for name in [name for name in files if name.endswith(".md")]:
        files |= links.images(ROOT, files[name])
    repository = os.environ.get("REPOSITORY_URL", "")
    files |= gallery.pages(ROOT, repository)
    texts = commands.pages()
    for name in [name for name in files if name.endswith(".md")]:
        texts[name] = files.pop(name).read_text(encoding="utf-8")
    # Only what there is now: a page that was renamed would stay.
    shutil.rmtree(OUTPUT, ignore_errors=True)
    for name in files.keys() | texts.keys():
        (OUTPUT / name).parent.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        shutil.copyfile(path, OUTPUT / name)
    for name, text in texts.items():
        on_site = links.turn(text, name, ROOT, files.keys() | texts.keys(), repository)
        (OUTPUT / name).write_text(formulas.draw(on_site, name), encoding="utf-8")


def _from(folder: pathlib.Path, *patterns: str) -> dict[str, pathlib.Path]:
    """Finds files: their places on the site, and where they are."""
    found = (path for pattern in patterns for path in sorted(folder.glob(pattern)))
    return {path.relative_to(folder).as_posix(): path for path in found if path.is_file()}


if __name__ == "__main__":
    main()
