"""The scripts of examples/ as pages: their text, code, what it printed, and its figures.

Each is executed in a process of its own, unless neither it nor the package has changed since the
last build. One that fails ends the build.
"""

import concurrent.futures
import hashlib
import pathlib
import shutil
import subprocess
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[2]
BUILT = ROOT / "build" / "examples"
EXECUTE = pathlib.Path(__file__).parent / "execute.py"
_AT_ONCE = 2


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each script, with its figures."""
    scripts = sorted((ROOT / "examples").glob("*.py"))
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        for folder in pool.map(_execute, scripts):
            for path in sorted([*folder.glob("*.md"), *folder.glob("figure-*.png")]):
                name = f"examples/{path.relative_to(BUILT)}"
                if path.suffix == ".md":
                    name = f"examples/{path.name}"
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def _execute(script: pathlib.Path) -> pathlib.Path:
    """Executes a script: the folder with its page."""
    folder = BUILT / script.stem
    stamp, wanted = folder / "stamp", _fingerprint(script)
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, EXECUTE, script], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise PluginError(f"{script.relative_to(ROOT)} failed:\n{done.stderr}")
    stamp.write_text(wanted)
    return folder


def _fingerprint(script: pathlib.Path) -> str:
    digest = hashlib.sha256()
    for path in (script, EXECUTE, *sorted((ROOT / "fisher_keras").rglob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()
