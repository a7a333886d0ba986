"""Checks of the numbers that describe an architecture."""

import operator
from typing import Any


def whole_number(name: str, value: Any, minimum: int) -> int:
    """Returns `value` as an int, if it is a whole number of at least `minimum`.

    Args:
        name: what the number is, for the message.
        value: the number to check; NumPy integers are welcome, booleans and fractions are not.
        minimum: the smallest number allowed.

    Returns:
        The number as a Python int.

    Raises:
        ValueError: if it is not a whole number or too small.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, got {value!r}.")
    return number


def blocks_per_stage(arch: str, depth: int, remainder: int) -> int:
    """Returns n of a network of three stages whose depth is 6n + `remainder`.

    Args:
        arch: the architecture's name, for the message.
        depth: number of layers with weights, counted as in the architecture's paper.
        remainder: the layers outside the three stages.

    Returns:
        The number n of two-layer blocks in each stage.

    Raises:
        ValueError: if no n >= 1 gives this depth; the message names the nearest depths.
    """
    depth = whole_number(f"The depth of {arch}", depth, minimum=1)
    blocks, rest = divmod(depth - remainder, 6)
    if blocks < 1 or rest:
        below = 6 * max(blocks, 1) + remainder
        raise ValueError(
            f"The depth of {arch} must be 6n+{remainder} with n >= 1, got {depth}; "
            f"use {below} or {below + 6}, for example."
        )
    return blocks
