"""The help of all commands, on the page that has %COMMANDS%."""

import pathlib
import subprocess
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

_PLACE = "%COMMANDS%"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts the help where it belongs."""
    if _PLACE not in markdown:
        return markdown
    script = pathlib.Path(__file__).with_name("print_help.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    if done.returncode:
        raise PluginError(f"The help of the commands failed:\n{done.stderr}")
    return markdown.replace(_PLACE, done.stdout)
