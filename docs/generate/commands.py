"""A page for each command, made of its --help, with an anchor for each flag."""

import html
import re

from fisher_keras.experiments.command_line.table import COMMANDS

_FLAG = re.compile(r"^  --(?P<no>\[no\])?(?P<name>\w+):\s(?P<text>.*?)(?=^  --|\Z)", re.M | re.S)
_GROUP = re.compile(r"^(\w[\w ]*):\n(?=  --)", re.MULTILINE)


def pages() -> dict[str, str]:
    """Returns the pages' Markdown by their places on the site, with that of the overview."""
    table = "".join(
        f"| [{name}](commands/{name}.md) | {command.summary} |\n"
        for name, command in COMMANDS.items()
    )
    overview = (
        "# Commands\n\n`fisher-keras COMMAND --help` lists the flags of a command. In a checkout "
        "of the repository,\n`bin/COMMAND` is the same.\n\n"
        f"| command | purpose |\n| --- | --- |\n{table}"
    )
    each = {f"api/commands/{name}.md": page(name, c.help()) for name, c in COMMANDS.items()}
    return {"api/commands.md": overview, **each}


def page(name: str, text: str) -> str:
    """Returns the Markdown of a command's help.

    Args:
        name: The command.
        text: What its --help prints.

    Returns:
        Its example as code, and a list of flags for each group.
    """
    introduction, *groups = _GROUP.split(text)
    # Indented lines are commands to copy.
    introduction = re.sub(r"\n\n((?:  .*\n)+)", r"\n\n```bash\n\1```\n", introduction + "\n")
    introduction = re.sub(rf"^  (?={name} )", "fisher-keras ", introduction, flags=re.MULTILINE)
    introduction = re.sub(r"^  (?=  )", "", introduction, flags=re.MULTILINE)
    blocks = [f"# {name}", introduction.strip()]
    for group, flags in zip(groups[::2], groups[1::2], strict=True):
        blocks += [f"## {group.capitalize()}", *map(_item, _FLAG.finditer(flags))]
    return "\n\n".join(blocks) + "\n"


def _item(match: re.Match) -> str:
    name, text = match["name"], " ".join(match["text"].split())
    # Escaped before the code marks of the choices are put in.
    choices, text = re.fullmatch(r"(?:<([^>]*)>: )?(.*)", text).groups()
    text = re.sub(r"([*_\\])", r"\\\1", html.escape(text, quote=False))
    # absl's own texts tell only what the sentence before does not.
    text = re.sub(r" \(default: '(.*?)'\)", lambda m: f" Default: {m[1]}." if m[1] else "", text)
    text = re.sub(r" \(((?:an? )[^()]*)\)$", r" Expected: \1.", text)
    if choices:
        text += f" One of `{choices.replace('|', '`, `')}`."
    no = f"`, `--no{name}" if match["no"] else ""
    return f'- <a id="{name}"></a>`--{name}{no}`<br>\n  {text}'
