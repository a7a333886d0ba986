"""Marks of single members of a parametrized test."""

import pytest


def nightly(*values):
    """Takes long, and differs from its neighbors in a way that they have, too."""
    return pytest.param(*values, marks=pytest.mark.nightly)
