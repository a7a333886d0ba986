"""The README's example works as it stands there; test_docs.py has its commands."""

import importlib
import pathlib
import re

import keras
import numpy as np
import readme_example

import fisher_keras

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_a_page():
    assert len(README.splitlines()) <= 120


def test_python_example_runs(tmp_path, monkeypatch, capsys, few_trials):
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
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("results/**/README.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            # The state of a workflow, beside the repository's files.
            if not target.startswith(("https://", "../../actions/workflows/ci.yml")):
                assert (page.parent / target.partition("#")[0]).exists(), target
