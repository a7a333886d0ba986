import gc
import os
import pathlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, settings
from tensorflow.python.framework import config

# Models are traced, which takes seconds. The suite draws the same ones each time; others, and
# more: pytest --hypothesis-profile=weekly --hypothesis-seed=1 -k properties ("long" for hours)
_SLOW = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("suite", max_examples=6, derandomize=True, database=None, **_SLOW)
settings.register_profile("weekly", max_examples=100, **_SLOW)
settings.register_profile("long", max_examples=1000, **_SLOW)
settings.load_profile("suite")

# A numeric environment: a dtype policy, "eager" or "deterministic". See bin/run_environments.
ENVIRONMENT = os.environ.get("FISHER_KERAS_ENVIRONMENT", "float32")


def set_environment():
    """Sets what the tests compute in unless they say otherwise."""
    is_policy = ENVIRONMENT not in ("eager", "deterministic")
    keras.config.set_floatx("float64" if ENVIRONMENT == "float64" else "float32")
    keras.config.set_dtype_policy(ENVIRONMENT if is_policy else "float32")
    tf.config.run_functions_eagerly(ENVIRONMENT == "eager")
    if ENVIRONMENT == "deterministic":
        tf.config.experimental.enable_op_determinism()
        keras.utils.set_random_seed(0)


set_environment()
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the processors, as do the processes that they start: further threads of
    # theirs only wait for one another.
    os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
# Graphs are large: by default, what a trace makes is searched for garbage some thousand times.
gc.set_threshold(50_000)


def pytest_configure(config):
    """Keeps the order below: pytest-xdist's own is that of the files' numbers of tests."""
    config.option.loadscopereorder = False


# Files of more than half a minute.
LONGEST = (
    "test_workers.py",
    "test_examples.py",
    "test_replicas.py",
    "test_training.py",
    "test_preconditions.py",
)


def pytest_collection_modifyitems(items):
    """Begins with what takes longest, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="module", autouse=True)
def _graphs_are_searched_once():
    """TensorFlow keeps all graphs, and each later collection would go through them."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _determinism_ends():
    """A training by the command's code makes all operations deterministic, and XLA unused."""
    yield
    if ENVIRONMENT != "deterministic":
        config.disable_op_determinism()


@pytest.fixture(scope="session")
def cifar10_dir():
    """The TFDS data_dir that holds CIFAR-10; skips where there is none."""
    beside_the_checkout = pathlib.Path(__file__).parents[2] / "shared" / "tfds"
    data_dir = os.environ.get("FISHER_KERAS_TFDS", str(beside_the_checkout))
    if not os.path.isdir(os.path.join(data_dir, "cifar10")):
        pytest.skip(f"no cifar10/ in {data_dir}: set FISHER_KERAS_TFDS to a prepared TFDS folder")
    return data_dir


def _computing_in(dtype):
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    yield
    set_environment()


@pytest.fixture
def float64():
    """Keras computes in float64."""
    yield from _computing_in("float64")


@pytest.fixture
def float32():
    """Keras computes in float32, whatever the environment is."""
    yield from _computing_in("float32")


@pytest.fixture
def set_policy():
    """Sets Keras' dtype policy, to the end of the test."""
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def few_trials(monkeypatch):
    """An evaluation has two trials unless it asks for others."""
    from fisher_keras import evaluate_local_minimum

    num_samples, _, *others = evaluate_local_minimum.__defaults__
    monkeypatch.setattr(evaluate_local_minimum, "__defaults__", (num_samples, 2, *others))


@pytest.fixture
def image_folder(tmp_path):
    """A folder of 8x6 images of cats and dogs: 3 of each for training, 2 for testing.

    Every pixel of an image holds the image's number: 0..5 for training, 6..9 for testing; the
    cats come first.
    """
    root = tmp_path / "images"
    number = 0
    for split, count in (("train", 3), ("test", 2)):
        for animal in ("cat", "dog"):
            for index in range(count):
                write_png(root / split / animal / f"{index}.png", np.full((8, 6, 3), number))
                number += 1
    return root


def write_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(pixels.astype(np.uint8)).numpy())


@pytest.fixture
def run_command(capsys):
    """Runs `fisher-keras NAME FLAGS` in this process: its exit code, output and errors."""

    def run(*arguments):
        from fisher_keras.experiments.command_line.main import main

        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        output, errors = capsys.readouterr()
        code = exit_.value.code
        if isinstance(code, str):
            code, errors = 1, f"{errors}{code}\n"
        return code or 0, output, errors

    return run


@pytest.fixture
def replace_function(monkeypatch):
    """Has a command call another function with its options."""
    from fisher_keras.experiments.command_line.table import Command

    def replace(function):
        def called(*arguments):
            return function(arguments[-1])

        monkeypatch.setattr(Command, "load_function", lambda self: called)

    return replace


@pytest.fixture
def generator(monkeypatch):
    """The modules of docs/generate can be imported."""
    folder = pathlib.Path(__file__).parents[1] / "docs" / "generate"
    monkeypatch.syspath_prepend(folder)
    yield
    for path in folder.glob("[a-z]*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture(scope="session")
def light_package(tmp_path_factory):
    """A folder for PYTHONPATH: the package without its __init__.py, which loads TensorFlow."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "fisher_keras").mkdir()
    init = f"__path__ = [{str(pathlib.Path(__file__).parents[1] / 'fisher_keras')!r}]\n"
    (folder / "fisher_keras" / "__init__.py").write_text(init)
    return folder


@pytest.fixture
def assert_understood(run_command, replace_function):
    """A function that takes the words of a command of ours as pages have it; returns its name."""

    def check(words):
        program, *flags = words
        name = program.removeprefix("bin/") if program.startswith("bin/") else flags.pop(0)
        done = []
        replace_function(done.append)  # What the flags ask for takes too long here.
        assert run_command(name, *flags)[0::2] == (0, "")
        assert len(done) == 1
        return name

    return check
