"""Marks of single members of a parametrized test, and tolerances for numeric environments."""

import itertools

import pytest

from fisher_keras.classifier.precision import rounding_of_products


def of_products(tolerance):
    """A tolerance for float32, or the rounding of this machine's products if it is coarser."""
    rounding = rounding_of_products()
    return max(tolerance, rounding) if rounding > 2.0**-23 else tolerance


def nightly(*values):
    """Takes long, and differs from its neighbors in a way that they have, too."""
    return pytest.param(*values, marks=pytest.mark.nightly)


def each_value(*axes):
    """All members of a product: in CI as few as have each value, the others nightly.

    Axes are lists, or dictionaries whose keys are the ids.
    """
    axes = [
        axis if isinstance(axis, dict) else {getattr(v, "__name__", str(v)): v for v in axis}
        for axis in axes
    ]
    keys = [list(axis) for axis in axes]
    in_ci = {tuple(of[i % len(of)] for of in keys) for i in range(max(map(len, keys)))}
    return [
        pytest.param(
            *(axis[key] for axis, key in zip(axes, member, strict=True)),
            id="-".join(member),
            marks=() if member in in_ci else pytest.mark.nightly,
        )
        for member in itertools.product(*keys)
    ]
