"""Runs the README's Python example, also of the installed wheel: tests/readme_example.py."""

import contextlib
import pathlib
import re
import tempfile

README = pathlib.Path(__file__).parents[1] / "README.md"


def run(text: str) -> dict:
    """Runs the example of a README as it stands there, but for two epochs.

    Args:
        text: The README.

    Returns:
        The names that the example leaves behind.
    """
    (example,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert "epochs=200" in example
    names = {}
    exec(example.replace("epochs=200", "epochs=2"), names)
    assert names["gamma_hat"] == names["report"].metrics["log_determinant"].mean
    return names


if __name__ == "__main__":
    import fisher_keras

    text = README.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run(text)
    print(fisher_keras.__version__, fisher_keras.__file__)
