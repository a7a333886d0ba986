"""Provenance of a result: versions, the checkout's git revision, the device."""

import importlib.metadata
import pathlib
import platform
import subprocess

from fisher_keras._version import __version__

_PACKAGE = pathlib.Path(__file__).parents[1]


def provenance() -> dict:
    """Returns `versions`, `git_revision` (None outside of a checkout) and `device`, for JSON."""
    # Only now, as the commit is asked for in processes that need nothing else.
    import keras
    import numpy as np
    import tensorflow as tf

    return {
        "versions": {
            "python": platform.python_version(),
            "fisher_keras": __version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
            "tensorflow_datasets": _tfds_version(),
        },
        "git_revision": git_revision(),
        "device": device(),
    }


def _tfds_version() -> str | None:
    """Returns the version of TensorFlow Datasets, which not all that is recorded needs."""
    try:
        return importlib.metadata.version("tensorflow-datasets")
    except importlib.metadata.PackageNotFoundError:
        return None


def git_revision(package: pathlib.Path = _PACKAGE) -> str | None:
    """Returns the commit of the checkout that holds a package.

    Args:
        package: The package's directory.

    Returns:
        The commit's hash, with "-dirty" appended if files differ from it; None if the package is
        not in a git checkout, or there is no git.
    """
    try:
        # An installed package may lie in an unrelated checkout, which does not track it.
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        revision = _git(package, "rev-parse", "HEAD")
        # Records of results are not code: they change while their experiment is at work.
        changes = _git(package, "status", "--porcelain", "--", ":/", ":(exclude,top)results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{revision}-dirty" if changes else revision


def check_commit(what: str, remedy: str = "") -> None:
    """Checks that a commit has the code that results would be of.

    Args:
        what: Is only for results, in the message.
        remedy: Another thing to do than to commit.

    Raises:
        ValueError: If the checkout has uncommitted changes.
    """
    if (git_revision() or "").endswith("-dirty"):
        raise ValueError(
            f"{what} is for results, and the checkout has uncommitted changes: commit "
            f"them (git status lists them){remedy}"
        )


def device() -> str:
    """Returns the name of the GPU that TensorFlow uses, or "CPU" and its number of cores."""
    import tensorflow as tf
    from dask.system import cpu_count  # As os.sched_getaffinity is on Linux alone.

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    return f"CPU, {cpu_count()} cores, {platform.machine()}"


def _git(directory: pathlib.Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
