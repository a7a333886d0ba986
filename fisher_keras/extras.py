"""Packages that not every user has: those of the extra `experiments`."""

import importlib.util


def require(*modules: str) -> None:
    """Checks that packages of the extra are there, before they are imported.

    Args:
        *modules: Their names, as one imports them.

    Raises:
        ImportError: If one is not there.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"no package {', '.join(missing)}: run pip install 'fisher_keras[experiments]'"
        )
