"""Bounds within which results are taken for the same: between rounding and another result."""

import numpy as np
import pytest

from fisher_keras.fisher.verification import same_values, wrong_weights

FLOAT32, BFLOAT16 = 2.0**-23, 2.0**-8
LOGITS = np.array([[100.0, -3.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("off", "rounding", "same"),
    [
        # 100 roundings of the largest logit, which deep networks have, and what no rounding is.
        (100 * 100 * FLOAT32, FLOAT32, True),
        (1.0, FLOAT32, False),
        (100 * 0.04, BFLOAT16, True),
        (100 * 0.06, BFLOAT16, False),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_are_the_same_to_within_rounding(off, rounding, same, sign):
    others = LOGITS.copy()
    others[1, 0] += sign * off
    assert same_values(others, LOGITS, rounding) is same


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_another_error(value):
    others = LOGITS.copy()
    others[0, 1] = value
    assert same_values(others, LOGITS, FLOAT32)
    assert same_values(LOGITS, others, FLOAT32)
    assert same_values(np.full((2, 2), value), LOGITS, FLOAT32)
    others[1, 1] += 1.0
    assert not same_values(others, LOGITS, FLOAT32)


def test_gradients_are_wrong_beyond_rounding():
    assert wrong_weights(np.array([0.04, 0.06, 0.0, 1.0])) == [1, 3]
