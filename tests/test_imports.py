"""Imports point one way, and the core needs what the core installs."""

import ast
import configparser
import pathlib
import re
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "fisher_keras"
# What each part may import, beside itself and the leaves.
BELOW = {
    "graph": set(),
    "classifier": {"graph"},
    "fisher": {"graph", "classifier"},
    "metrics": {"graph", "classifier", "fisher"},
    "regularizer": {"graph", "classifier", "fisher"},
    "callbacks": {"classifier", "fisher", "metrics"},
    "classifier_check": {"graph", "classifier", "fisher", "metrics", "regularizer"},
    "bound": set(),
    "models": set(),
    "datasets": {"classifier"},
    "experiments": {
        *("graph", "classifier", "fisher", "metrics", "regularizer"),
        *("callbacks", "bound", "models", "datasets"),
    },
}
LEAVES = {"_backend", "_version", "arguments", "devices", "extras", "files", "tables"}
CORE = set(BELOW) - {"experiments", "models", "datasets"} | LEAVES
MODULE_OF = {"scikit-learn": "sklearn", "dask[distributed]": "distributed"}


def part_of(module):
    """Returns the part of the package that a module belongs to; None for the package itself."""
    return module.split(".")[1] if "." in module else None


def imports_of(text, module):
    """Returns (module, line, inside a function that requires it) of all imports at run time."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            child.parent = node
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            # `from package import module` imports the module, too.
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        above = []
        parent = node
        while parent := getattr(parent, "parent", None):
            above.append(parent)
        if any(isinstance(a, ast.If) and ast.unparse(a.test) == "TYPE_CHECKING" for a in above):
            continue
        functions = [a for a in above if isinstance(a, ast.FunctionDef)]
        required = any(f"require('{names[0].split('.')[0]}" in ast.unparse(f) for f in functions)
        found += [(name, node.lineno, required) for name in names]
    return found


def extra_modules():
    """Returns the names by which the packages of the extra `experiments` are imported."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options.extras_require"]["experiments"].splitlines()
    packages = [re.split(r"\s*[<>=!]", line)[0] for line in lines if line and line[0] != "#"]
    return {MODULE_OF.get(package, package.replace("-", "_")) for package in packages}


def faults(text, module):
    """Returns what is wrong with a module's imports, a line each."""
    part = part_of(module)
    lines = []
    for name, line, required in imports_of(text, module):
        top = name.split(".")[0]
        if top == "fisher_keras" and part_of(name) in BELOW:
            if part in LEAVES or part_of(name) not in {part, *BELOW.get(part, ())}:
                lines.append(f"{module}:{line}: {part} imports {name}")
        elif part in CORE and top in extra_modules() and not required:
            lines.append(f"{module}:{line}: {part} imports {name}, of the extra experiments")
    return lines


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module != "fisher_keras.__init__":
            yield path, module.removesuffix(".__init__")


def test_imports_point_one_way():
    assert [line for path, module in modules() for line in faults(path.read_text(), module)] == []


def test_every_part_has_its_place():
    assert {part_of(module) for _, module in modules()} == set(BELOW) | LEAVES


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("fisher_keras.classifier.logits", "from fisher_keras.fisher import FisherGram"),
        ("fisher_keras.classifier.logits", "import fisher_keras.fisher.gram"),
        ("fisher_keras.metrics.trials", "from fisher_keras.regularizer.fisher import GRADIENTS"),
        ("fisher_keras.regularizer.fisher", "from fisher_keras import metrics"),
        ("fisher_keras.fisher.gram", "def f():\n    from fisher_keras import experiments"),
        ("fisher_keras.arguments", "from fisher_keras.classifier import labels"),
        ("fisher_keras.metrics.report", "from matplotlib.figure import Figure"),
        ("fisher_keras.bound", "def f():\n    import optuna.trial"),
        ("fisher_keras.fisher.gram", "import sklearn.datasets"),
    ],
)
def test_faults_are_found(module, text):
    found = faults(text, module)
    assert found
    assert all(line.startswith(f"{module}:") for line in found)


def test_what_is_required_first_may_be_imported():
    text = """
    from typing import TYPE_CHECKING

    if TYPE_CHECKING:
        from matplotlib.axes import Axes

    def plot():
        require("matplotlib")
        from matplotlib.figure import Figure
    """
    assert faults(textwrap.dedent(text), "fisher_keras.metrics.report") == []
