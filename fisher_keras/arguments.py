"""Checks of what a user gives; NumPy's numbers are as good as Python's."""

import math
import numbers
from collections.abc import Sequence
from typing import Any


def whole_number(name: str, value: Any, least: int, below: int | None = None) -> int:
    """Returns a whole number as Python's int.

    Args:
        name: What the number is, for the message.
        value: The number to check; 1e6 is one, booleans and fractions are none.
        least: The smallest number allowed.
        below: The smallest number that is too large, if there is one.

    Returns:
        The number.

    Raises:
        ValueError: If it is no whole number, too small or too large.
    """
    whole = _is_number(value) and value == math.floor(value)
    if not whole or value < least or (below is not None and value >= below):
        bounds = bounds_in_words(least, None, below)
        raise ValueError(f"{name} must be a whole number{bounds}. Given: {value!r}.")
    return int(value)


def real_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Returns a finite number as Python's float.

    Args:
        name: What the number is, for the message.
        value: The number to check; booleans are none.
        least: The smallest number allowed, if there is one.
        above: The largest number that is too small, if there is one.
        below: The smallest number that is too large, if there is one.

    Returns:
        The number.

    Raises:
        ValueError: If it is no finite number, too small or too large.
    """
    inside = (
        _is_number(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    if not inside:
        infinite = isinstance(value, numbers.Real) and math.isinf(value)
        number = "finite number" if infinite else "number"
        bounds = bounds_in_words(least, above, below)
        raise ValueError(f"{name} must be a {number}{bounds}. Given: {value!r}.")
    return float(value)


def bounds_in_words(least: float | None, above: float | None, below: float | None = None) -> str:
    """Returns the bounds of a number in words, as they follow the word "number"."""
    bounds = [f", {least} or greater"] if least is not None else []
    bounds += [f" greater than {above}"] if above is not None else []
    bounds += [f", less than {below}"] if below is not None else []
    return "".join(bounds)


def one_of(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """Returns the choice that a value is equal to: True for 1 or NumPy's True.

    Raises:
        ValueError: If it is none of them.
    """
    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {listed}. Given: {value!r}.")
    return choices[choices.index(value)]


def _is_number(value: Any) -> bool:
    known = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return known and math.isfinite(value)
