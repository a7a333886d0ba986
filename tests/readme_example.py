"""Runs the README's Python example, also of the installed wheel: tests/readme_example.py."""

import contextlib
import pathlib
import re
import tempfile

README = pathlib.Path(__file__).parents[1] / "README.md"


def run(text: str) -> dict:
    """Runs the example of a README with a small classifier and data, for two epochs.

    Args:
        text: The README.

    Returns:
        The names that the example leaves behind.
    """
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    (example,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert "epochs=200" in example
    rng = np.random.default_rng(0)
    names = {
        "classifier": keras.Sequential(
            [keras.Input((20,)), keras.layers.Dense(50, "relu"), keras.layers.Dense(3)]
        ),
        **{
            f"x_{part}": rng.normal(size=(256, 20)).astype("float32") for part in ("train", "test")
        },
        **{f"y_{part}": rng.integers(3, size=256) for part in ("train", "test")},
    }
    exec(example.replace("epochs=200", "epochs=2, verbose=0"), names)
    assert np.isfinite(names["gamma_hat"])
    return names


if __name__ == "__main__":
    import fisher_keras

    text = README.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run(text)
    print(fisher_keras.__version__, fisher_keras.__file__)
