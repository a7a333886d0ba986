"""Tests of the checks of arguments."""

import math
from fractions import Fraction

import numpy as np
import pytest

from fisher_keras.arguments import one_of, real_number, whole_number


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), 3.0, np.float32(3), Fraction(3)])
def test_whole_numbers_become_ints(value):
    number = whole_number("size", value, least=3)
    assert type(number) is int
    assert number == 3


@pytest.mark.parametrize(
    "value", [2, 3.5, True, np.True_, None, "3", [3], math.inf, math.nan, 3j, np.float32(2.999)]
)
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ValueError, match=r"^size must be a whole number, 3 or greater. Given: "):
        whole_number("size", value, least=3)


def test_a_whole_number_may_be_too_large():
    assert whole_number("seed", 9, least=0, below=10) == 9
    with pytest.raises(
        ValueError, match=r"^seed must be .*, 0 or greater, less than 10. Given: 10"
    ):
        whole_number("seed", 10, least=0, below=10)


@pytest.mark.parametrize("value", [0.5, np.float16(0.5), np.float64(0.5), Fraction(1, 2)])
def test_real_numbers_become_floats(value):
    number = real_number("alpha", value, above=0)
    assert type(number) is float
    assert number == 0.5


@pytest.mark.parametrize(
    "value", [0, -1.0, True, None, "0.5", math.inf, math.nan, np.array([1.0])]
)
def test_what_is_no_number_above_is_refused(value):
    with pytest.raises(ValueError, match=r"^alpha must be a .*number greater than 0\. Given: "):
        real_number("alpha", value, above=0)


def test_bounds_of_real_numbers():
    assert real_number("beta", 0, least=0) == 0
    with pytest.raises(ValueError, match=r"^beta must be a number, 0 or greater. Given: -0.1"):
        real_number("beta", -0.1, least=0)
    assert real_number("shift", -5) == -5
    with pytest.raises(ValueError, match=r"^shift must be a number. Given: nan"):
        real_number("shift", math.nan)


def test_choices():
    assert one_of("unit", "position", ("example", "position")) == "position"
    with pytest.raises(ValueError, match=r"^unit must be one of 'a', True. Given: 'b'\.$"):
        one_of("unit", "b", ("a", True))
