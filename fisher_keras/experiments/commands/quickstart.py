"""Both halves of the paper in minutes, on handwritten digits."""

from fisher_keras.experiments.quickstart import GROUP, define_flags, main

__all__ = ["FLAG_GROUPS", "RESUME_FLAG", "define_flags", "run"]

FLAG_GROUPS = [GROUP]
RESUME_FLAG = None


def run() -> None:
    """Compares, and reports."""
    main()
