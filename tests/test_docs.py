"""The code of the documentation's pages runs, and what they name exists."""

import ast
import contextlib
import importlib
import pathlib
import re
import shlex

import keras
import numpy as np
import pytest
import tensorflow as tf

import fisher_keras
from fisher_keras import FisherRegularizedModel

ROOT = pathlib.Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
BLOCK = re.compile(r"^``` ?(\w*).*?\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
# Programs of others, which the tests of what they are for start, if they can.
OTHERS = {"dask", "export", "helm", "kubectl"}


def blocks(page, language):
    text = page.read_text(encoding="utf-8")
    return [code for name, code in BLOCK.findall(text) if name == language]


def command_lines(page):
    """Returns the words of each command of the shell blocks, continued lines joined."""
    commands, unfinished = [], ""
    for line in "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines(keepends=True):
        unfinished += line
        try:
            words = shlex.split(unfinished, comments=True)
        except ValueError:  # A quotation that goes on in the next line.
            continue
        unfinished = ""
        commands += [words] if words else []
    assert not unfinished, page
    return commands


def what_the_page_speaks_of(page):
    """Returns what a page takes for given: its blocks are to be put into a program."""
    if page.stem != "several_devices":
        return {}
    return {
        **{"tf": tf, "keras": keras, "FisherRegularizedModel": FisherRegularizedModel},
        "make_classifier": lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]),
        **{"x": np.ones((512, 4), "float32"), "y": np.arange(512) % 3},
    }


def is_script(code):
    """True if the block is a file that the page names, such as one that submits jobs."""
    return re.match(r"# \w+\.py: ", code) is not None


PAGES_WITH_CODE = [page for page in DOCS if any(not is_script(c) for c in blocks(page, "python"))]
COMMANDS = [
    (page.stem, *words)
    for page in PAGES
    for words in command_lines(page)
    if words[0] == "fisher-keras" or words[0].startswith("bin/")
]


def test_all_languages_are_known():
    languages = {name for page in DOCS for name, _ in BLOCK.findall(page.read_text())}
    assert languages <= {"bash", "python", "text", "yaml"}
    assert len(PAGES_WITH_CODE) >= 4


MOST = {"epochs=": 5, "num_trials=": 2, "seed in range(": 1}


def shortened(code):
    """Has trainings and evaluations end early: that a page's code runs does not depend on it."""

    def at_most(given):
        return f"{given[1]}{min(int(given[2]), MOST[given[1]])}"

    code = re.sub(rf"\b({'|'.join(map(re.escape, MOST))})(\d+)", at_most, code)
    return code.replace("standard_error=1.0", "standard_error=100.0")


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=lambda page: page.stem)
def test_python_blocks_run_one_after_the_other(page, tmp_path, monkeypatch, few_trials):
    monkeypatch.chdir(tmp_path)
    names = what_the_page_speaks_of(page)
    for code in blocks(page, "python"):
        if not is_script(code):
            exec(compile(shortened(code), str(page), "exec"), names)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_scripts_that_pages_name_are_python(page):
    for code in filter(is_script, blocks(page, "python")):
        ast.parse(code)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_is_understood(words, assert_understood):
    _, *command = words
    assert (ROOT / "bin" / assert_understood(command)).is_file()


def test_other_commands_install_or_are_programs_of_others():
    assert sum(name == "README" for name, *_ in COMMANDS) >= 6
    for page in PAGES:
        for words in command_lines(page):
            ours = words[0] == "fisher-keras" or words[0].startswith("bin/")
            assert ours or words[:2] == ["pip", "install"] or words[0] in OTHERS, words


def test_installations_name_extras_that_exist():
    metadata = (ROOT / "setup.cfg").read_text()
    for page in PAGES:
        for extra in re.findall(r"(?:\.|fisher_keras)\[(\w+)\]", page.read_text()):
            assert re.search(rf"^{extra} =$", metadata, flags=re.MULTILINE)


def test_faults_name_tests_that_exist():
    """The site's build checks that the files do."""
    page = (ROOT / "docs" / "reliability.md").read_text()
    named = re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)", page)
    assert len(named) >= 40
    for name, file in named:
        assert f"\ndef {name}(" in (ROOT / file).read_text(), name


def test_every_public_name_is_in_the_api_reference():
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    modules = re.findall(r"^::: (fisher_keras[\w.]*)", pages, flags=re.MULTILINE)
    documented = {name.rpartition(".")[2] for name in modules}
    for module in modules:
        with contextlib.suppress(ImportError):
            documented |= set(vars(importlib.import_module(module)))
    assert set(fisher_keras.__all__) - {"__version__"} <= documented
    metrics = importlib.import_module("fisher_keras.metrics")
    assert set(metrics.__all__) - {"DEFAULT_METRICS", "MAX_TRAIN_LOSS", "METRICS"} <= documented


def literals():
    """Returns all texts of the package, with a space for each value that is put in."""
    for path in (ROOT / "fisher_keras").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    part.value if isinstance(part, ast.Constant) else " " for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_of_the_faq_are_those_of_the_code():
    page = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    messages = re.findall(r'^\| "(.+?)" \|', page, flags=re.MULTILINE)
    assert len(messages) >= 20
    texts = "\n".join(literals())
    for message in messages:
        pattern = ".*".join(map(re.escape, message.split(" ... ")))
        assert re.search(pattern, texts), message
