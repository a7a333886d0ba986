"""The released wheel has the package and nothing else, and runs in a new environment."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
import readme_example

from fisher_keras._version import __version__

ROOT = pathlib.Path(__file__).parents[1]
NOT_PACKED = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "results", ".*_cache"
)


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder with wheel and source distribution, built by what is installed."""
    folder = tmp_path_factory.mktemp("release")
    shutil.copytree(ROOT, folder / "checkout", ignore=NOT_PACKED)
    run(sys.executable, "-m", "build", "--no-isolation", cwd=folder / "checkout")
    return folder / "checkout" / "dist"


def test_the_index_shows_the_readme(dist):
    assert len(list(dist.iterdir())) == 2
    run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir())


def test_the_wheel_has_all_of_the_package_and_nothing_else(dist):
    (wheel,) = dist.glob("*.whl")
    assert wheel.name == f"fisher_keras-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    info = f"fisher_keras-{__version__}.dist-info"
    packed = {name for name in names if not name.startswith(f"{info}/")}
    files = [path for path in (ROOT / "fisher_keras").rglob("*") if path.is_file()]
    package = {str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"}
    assert packed == package
    assert f"{info}/licenses/LICENSE" in names
    assert wheel.stat().st_size < 1e6


def test_the_source_distribution_has_no_tests(dist):
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        folders = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"fisher_keras", "examples", "LICENSE", "setup.cfg"} <= folders
    assert not folders & {"tests", "results", "build"}


@pytest.mark.nightly
def test_the_wheel_in_a_new_environment_runs_the_readmes_example(dist, tmp_path):
    """The requirements of the package are this environment's: to install them takes minutes."""
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    (site_packages,) = venv.glob("lib/python*/site-packages")
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site_packages)
    required = pathlib.Path(importlib.util.find_spec("keras").origin).parents[1]
    (site_packages / "required.pth").write_text(f"{required}\n")
    script = tmp_path / "tests" / "readme_example.py"
    script.parent.mkdir()
    shutil.copy(readme_example.__file__, script)
    shutil.copy(ROOT / "README.md", tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    output = run(venv / "bin" / "python", script, cwd=tmp_path, env=environment)
    assert output.splitlines()[-1].split() == [
        __version__,
        str(site_packages / "fisher_keras" / "__init__.py"),
    ]


def test_absolute_links():
    spec = importlib.util.spec_from_file_location(
        "absolute_links", ROOT / ".github" / "absolute_links.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (
        "[a](docs/a.md) ![b](b.png) [c](https://c) "
        "[![d](../../actions/d.svg)](../../actions/d) [![e](https://e)](LICENSE)"
    )
    top = "https://host/owner/name"
    assert module.absolute(text, top, "v1") == (
        f"[a]({top}/blob/v1/docs/a.md) ![b]({top}/raw/v1/b.png) [c](https://c) "
        f"[![d]({top}/actions/d.svg)]({top}/actions/d) [![e](https://e)]({top}/blob/v1/LICENSE)"
    )
    readme = module.absolute((ROOT / "README.md").read_text(encoding="utf-8"), top, "v1")
    assert "](docs/" not in readme
    assert "](../" not in readme
