"""The README's commands and examples work as they stand there."""

import importlib
import pathlib
import re
import shlex

import keras
import numpy as np
import pytest
import readme_example

import fisher_keras

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def command_lines():
    """Returns the words of each command of the shell blocks, continued lines joined."""
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


SCRIPTS = [
    words for words in command_lines() if words[0].startswith("bin/") or words[0] == "fisher-keras"
]


def test_readme_is_a_page():
    assert len(README.splitlines()) <= 120


def test_shell_blocks_hold_scripts_and_installations():
    assert len(SCRIPTS) >= 6
    assert [w for w in command_lines() if w not in SCRIPTS and w[:2] != ["pip", "install"]] == []


@pytest.mark.parametrize("words", SCRIPTS, ids=" ".join)
def test_command_is_understood(words, assert_understood):
    assert (ROOT / "bin" / assert_understood(words)).is_file()


def test_installations_name_extras_that_exist():
    extras = set(re.findall(r"(?:\.|fisher_keras)\[(\w+)\]", README))
    metadata = (ROOT / "setup.cfg").read_text()
    assert all(re.search(rf"^{extra} =$", metadata, flags=re.MULTILINE) for extra in extras)


def test_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = readme_example.run(README)
    assert "log_determinant" in capsys.readouterr().out
    loaded = keras.saving.load_model("classifier.keras")
    assert not isinstance(loaded, fisher_keras.FisherRegularizedModel)
    outputs = [m.predict(names["test"][0], verbose=0) for m in (loaded, names["classifier"])]
    np.testing.assert_array_equal(*outputs)


def test_names_of_the_table_exist():
    table = README[README.index("## Where each formula lives") : README.index("## Reproduce")]
    for name in re.findall(r"`(fisher_keras\.[\w.]+)`", table):
        module, _, attribute = name.rpartition(".")
        if not hasattr(importlib.import_module(module), attribute):
            importlib.import_module(name)
    for name in re.findall(r"`bin/(\w+)`", table):
        assert (ROOT / "bin" / name).is_file()


def test_links_lead_somewhere():
    names = ("README.md", "results/README.md", "results/archive/README.md", "CONTRIBUTING.md")
    pages = [ROOT / name for name in names]
    for page in pages:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            # The state of a workflow, beside the repository's files.
            if not target.startswith(("https://", "../../actions/workflows/ci.yml")):
                assert (page.parent / target).exists(), target
