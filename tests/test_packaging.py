"""Tests of the metadata, and of the shell scripts in small fake checkouts."""

import configparser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from marks import nightly

from fisher_keras._version import __version__
from fisher_keras.experiments.command_line.table import COMMANDS, FORMER_NAMES

ROOT = pathlib.Path(__file__).parents[1]
BASH_SCRIPTS = ["bin/_environment.sh", "bin/quickstart", "bin/run_tests", ".ci/run"]
PYTHON_SCRIPTS = [
    f"bin/{path.name}"
    for path in sorted((ROOT / "bin").iterdir())
    if path.is_file() and re.match(r"#!.*python", path.read_text().partition("\n")[0])
]

# Stands in for python3, for the python of a virtual environment, and for ruff: it logs how it was
# called, makes "virtual environments", and fails if the call starts with $FAKE_FAILURE.
FAKE = """#!/bin/bash
call="$(basename "$0") $*"
printf '%s\\n' "$call" >>"$FAKE_LOG"
if [[ "$1 $2" == "-m venv" ]]; then
  mkdir -p "${@: -1}/bin"
  cp "$0" "${@: -1}/bin/python"
  cp "$0" "${@: -1}/bin/ruff"
fi
[[ -z ${FAKE_FAILURE:-} || $call != "$FAKE_FAILURE"* ]]
"""


TESTS = "python -m pytest"
QUICKSTART = "python -P -m fisher_keras.experiments.command_line.main quickstart"


def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def test_citation_names_the_version():
    versions = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert versions == [__version__]


def test_changelog_ends_at_the_version():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(heading for heading in headings if heading != "Unreleased") == __version__


def test_ruff_is_the_same_everywhere():
    (pinned,) = re.findall(r"ruff == (\S+)", setup_cfg()["options.extras_require"]["test"])
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"ruff-pre-commit\n +rev: v(\S+)", hooks) == [pinned]


def test_python_versions_are_the_same_everywhere():
    classified = re.findall(r"Python :: (3\.\d+)", setup_cfg()["metadata"]["classifiers"])
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    (tested,) = re.findall(r"python: \[(.+)\]", workflow)
    assert classified == re.findall(r"3\.\d+", tested)
    assert setup_cfg()["options"]["python_requires"] == f">={classified[0]}"


def test_python_scripts_are_the_commands_and_linted():
    # bin/quickstart installs first: it is no Python script.
    scripts = [*PYTHON_SCRIPTS, "bin/quickstart"]
    assert sorted(f"bin/{name}" for name in (*COMMANDS, *FORMER_NAMES)) == sorted(scripts)
    ruff = tomllib.loads((ROOT / "ruff.toml").read_text())
    assert ruff["extend-include"] == PYTHON_SCRIPTS


@pytest.mark.parametrize("script", PYTHON_SCRIPTS)
def test_python_script_launches_the_command_of_its_name(script):
    assert os.access(ROOT / script, os.X_OK)
    name = script.removeprefix("bin/")
    assert f'launch("{name}")\n' in (ROOT / script).read_text()


@pytest.fixture
def clone(tmp_path):
    """A checkout under a path with a space, and a `python3` on PATH that lacks the package."""
    folder = tmp_path / "with space" / "clone"
    for name in ("bin", "fisher_keras"):
        shutil.copytree(ROOT / name, folder / name)
    (tmp_path / "path").mkdir()
    write_script(tmp_path / "path" / "python3", f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    return folder


def type_in_shell(clone, line, **environment):
    """Runs a line in a shell with no environment active, from another folder."""
    top = clone.parents[1]
    done = subprocess.run(
        [shutil.which("bash"), "-c", line],
        cwd=top,
        env={"PATH": f"{top}/path:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def make_venv(clone):
    """Makes the .venv that bin/quickstart would make, with the packages of this process."""
    paths = ":".join([str(clone), *filter(None, sys.path)])
    python = f'#!/bin/sh\nPYTHONPATH="{paths}" exec "{sys.executable}" "$@"\n'
    write_script(clone / ".venv" / "bin" / "python", python)


@pytest.mark.parametrize(
    "home", [nightly({}), nightly({"HOME": "/proc"}), {"HOME": "/nonexistent"}]
)
def test_a_script_goes_on_in_the_checkouts_environment(clone, home):
    make_venv(clone)
    script = "'with space/clone/bin/train_cifar'"
    flags = "--arch=densenet --dataset=digits --train_size=1401 --output_dir=run"
    status, output, errors = type_in_shell(clone, f"{script} {flags}", **home)
    assert (status, output) == (1, "")
    assert errors == (
        "train_cifar: --train_size=1401 and --validation_size=0 ask for more than the 1400 "
        "training images of digits\n"
    )


def test_a_script_refuses_another_backend_in_one_line(clone):
    make_venv(clone)
    line = "'with space/clone/bin/train_cifar' --help"
    status, output, errors = type_in_shell(clone, line, KERAS_BACKEND="torch")
    assert (status, output) == (1, "")
    assert errors.startswith("train_cifar: fisher_keras needs Keras on TensorFlow, but KERAS_BACK")
    assert errors.count("\n") == 1


def test_a_script_without_any_environment_says_what_to_run(clone):
    status, output, errors = type_in_shell(clone, "'with space/clone/bin/table1' --preset=smoke")
    assert (status, output) == (1, "")
    assert errors == (
        f"table1: fisher_keras is not installed: run '{clone}/bin/quickstart' once, which "
        "installs it into the checkout's .venv\n"
    )


def test_an_environment_without_the_package_is_not_tried_for_ever(clone):
    make = [sys.executable, "-m", "venv", "--without-pip", clone / ".venv"]
    subprocess.run(make, check=True)
    status, output, errors = type_in_shell(clone, "'with space/clone/bin/table1'")
    assert (status, output) == (1, "")
    assert errors.startswith("table1: fisher_keras is not installed: run ")


@pytest.mark.parametrize("script", BASH_SCRIPTS)
def test_bash_script_parses(script):
    subprocess.run(["bash", "-n", ROOT / script], check=True)
    assert os.access(ROOT / script, os.X_OK) == (not script.endswith(".sh"))


def find_python(path):
    return subprocess.run(
        [shutil.which("bash"), "-c", 'source "$0"; find_python', ROOT / "bin/_environment.sh"],
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
    )


def test_find_python_passes_over_stubs(tmp_path):
    # As version managers leave them: on PATH, but of a version that is not active.
    write_script(tmp_path / "python3", "#!/bin/sh\nexit 127\n")
    write_script(tmp_path / "python3.13", "#!/bin/sh\nexit 127\n")
    write_script(tmp_path / "python3.12", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    assert find_python(tmp_path).stdout == f"{tmp_path}/python3.12\n"


def test_find_python_without_any_is_one_clear_line(tmp_path):
    write_script(tmp_path / "python3", "#!/bin/sh\nexit 127\n")
    done = find_python(tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Found no Python 3.11, 3.12 or 3.13" in done.stderr


@pytest.fixture
def checkout(tmp_path):
    """A checkout under a path with a space: the scripts, what they read, and fakes on PATH."""
    folder = tmp_path / "with space" / "checkout"
    metadata = ["setup.cfg", "setup.py", "pyproject.toml", "fisher_keras/_version.py"]
    for name in [*BASH_SCRIPTS, *metadata]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    write_script(tmp_path / "fakes" / "python3", FAKE)
    return folder


def run_script(checkout, script, *arguments, **environment):
    """Runs a script of the fake checkout from another directory: its exit code, and the calls."""
    top = checkout.parents[1]
    log = top / "log"
    log.write_text("")
    environment = {
        "PATH": f"{top}/fakes:/usr/bin:/bin",
        "FAKE_LOG": str(log),
        "TMPDIR": str(top),
        **environment,
    }
    done = subprocess.run(
        [shutil.which("bash"), checkout / script, *arguments],
        cwd=top,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, log.read_text().splitlines()


def installations(calls):
    return [call.partition("--editable ")[2] for call in calls if "pip install" in call]


def test_quickstart_installs_once(checkout):
    job = f"{QUICKSTART} --output_dir={checkout}/results/quickstart"
    code, calls = run_script(checkout, "bin/quickstart", "--seeds=3")
    assert code == 0
    assert f"python3 -m venv --clear {checkout}/.venv" in calls
    assert installations(calls) == [f"{checkout}[experiments]"]
    assert calls[-1] == f"{job} --seeds=3"

    code, calls = run_script(checkout, "bin/quickstart")
    assert code == 0
    assert installations(calls) == []
    assert not any("venv --clear" in call for call in calls)
    assert calls[-1] == job


def test_quickstart_installs_again_after_a_change(checkout):
    run_script(checkout, "bin/quickstart")
    with (checkout / "setup.cfg").open("a") as file:
        file.write("# another line\n")
    assert installations(run_script(checkout, "bin/quickstart")[1]) == [f"{checkout}[experiments]"]


def test_quickstart_installs_again_after_a_failure(checkout):
    code, calls = run_script(checkout, "bin/quickstart", FAKE_FAILURE="python -m pip install")
    assert code != 0
    assert not any("quickstart" in call.split() for call in calls)
    assert installations(run_script(checkout, "bin/quickstart")[1]) == [f"{checkout}[experiments]"]


def test_quickstart_fails_as_its_job_does(checkout):
    assert run_script(checkout, "bin/quickstart", FAKE_FAILURE=QUICKSTART)[0] != 0


def test_run_tests_passes_arguments_on(checkout):
    code, calls = run_script(checkout, "bin/run_tests", "-k", "two words")
    assert code == 0
    assert installations(calls) == [f"{checkout}[test]"]
    assert calls[-1] == "python -m pytest -k two words"


def test_run_tests_uses_the_active_environment(checkout):
    active = checkout.parents[1] / "active"
    write_script(active / "bin" / "python", FAKE)
    code, calls = run_script(checkout, "bin/run_tests", VIRTUAL_ENV=str(active))
    assert code == 0
    assert not any("-m venv" in call for call in calls)
    assert not (checkout / ".venv").exists()


def test_ci_lints_and_tests_in_a_new_environment(checkout):
    code, calls = run_script(checkout, ".ci/run")
    assert code == 0
    assert len(installations(calls)) == 1
    assert [call.split()[:3] for call in calls if call.startswith("ruff")] == [
        ["ruff", "check", "--no-cache"],
        ["ruff", "format", "--check"],
    ]
    # The site has the pages of the examples, which the tests have executed.
    assert [call for call in calls if call.startswith("python")][-3:] == [
        f"{TESTS} -n 2 --dist loadfile",
        "python docs/generate",
        "python -m zensical build --clean --strict",
    ]
    assert not list(checkout.parents[1].glob("tmp.*")), "its folder is still there"


@pytest.mark.parametrize(
    "failure",
    [
        "ruff check",
        "ruff format",
        "python docs/generate",
        "python -m zensical",
        "python -m pytest",
    ],
)
def test_ci_fails_if_any_part_fails(checkout, failure):
    code, calls = run_script(checkout, ".ci/run", FAKE_FAILURE=failure)
    assert code != 0
    assert any(call.startswith(TESTS) for call in calls)
