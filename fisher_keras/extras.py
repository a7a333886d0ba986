"""Packages that not every user has, such as those of the extra `experiments`."""

import importlib.util


def require(*modules: str, install: str = "fisher_keras[experiments]") -> None:
    """Checks that packages are there, before they are imported.

    Args:
        *modules: Their names, as one imports them.
        install: The requirement that brings them.

    Raises:
        ImportError: If one is not there.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"no package {', '.join(missing)}: run pip install '{install}'")
