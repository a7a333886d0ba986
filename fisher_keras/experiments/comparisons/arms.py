"""The arms of the comparison of training methods, as data.

Strengths are multiples of parity, where the regularizer is as strong as the implicit one of SGD:
`explicit_to_implicit`, 2 alpha beta M (1 - m) / learning rate with m the momentum, is 1.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

ALPHA = 1e-4  # In all of the paper's experiments.
CLIP_NORM = 10.0  # tau.
STRENGTHS = (0.25, 1.0, 4.0)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to train networks.

    Attributes:
        training: Fields of `TrainingConfig`, beside those that all arms share.
        sub_batches: The field that gets the number of sub-batches of 16 images, if there is one.
        parity: The multiple of parity, at the first learning rate, that beta makes; None for no
            beta.
        usual: Whether it is trained where not all arms are asked for.
    """

    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sub_batches: str | None = None
    parity: float | None = None
    usual: bool = False


_CLIPPED = {"clip_norm": CLIP_NORM}
_FISHER = {"method": "fisher", "alpha": ALPHA, **_CLIPPED, "share_gradients": True}
_AHEAD = {"step_length": 0.05, "direction": "ascent"}
_M = "num_sub_batches"

# In the order of the table.
ARMS = {
    "plain": Arm(usual=True),
    "clipped": Arm({"method": "clipped", **_CLIPPED}, usual=True),
    "ghost": Arm({"method": "ghost", **_CLIPPED}, _M, usual=True),
    **{f"fisher, {p:g} of parity": Arm(_FISHER, _M, p, usual=True) for p in STRENGTHS},
    **{
        f"fisher, {p:g} of parity, not shared": Arm(_FISHER | {"share_gradients": False}, _M, p)
        for p in (0.25, 1.0)
    },
    # beta falls with the learning rate: at parity, it stays there.
    **{
        f"fisher, {s:g} of parity at any rate": Arm(_FISHER | {"strength": s}, _M)
        for s in (0.25, 1.0)
    },
    **{f"fisher, {p:g} of parity, 0.05 uphill": Arm(_FISHER | _AHEAD, _M, p) for p in STRENGTHS},
    **{
        f"fisher, {p:g} of parity, limit of small alpha": Arm(
            _FISHER | {"gradient": "hessian_vector_product"}, _M, p
        )
        for p in STRENGTHS
    },
    "sam": Arm({"method": "sam"}, usual=True),
    **{f"sam, rho {rho:g}": Arm({"method": "sam", "rho": rho}) for rho in (0.02, 0.1, 0.2, 0.5)},
    "m-sam": Arm({"method": "sam"}, "sub_batches"),
    "plain, batches of 16": Arm({"batch_size": 16}),
    # As much of the training images as strong regularizers leave is left unfitted.
    "plain, to 5 % train error": Arm({"target_error": 5.0}),
}
# Of the network without batch normalization: there, gradients are shared at no price, and ghost
# batch normalization is nothing.
CNN_ARMS = (
    "plain",
    "fisher, 0.25 of parity",
    "fisher, 1 of parity",
    "sam",
    "m-sam",
    "plain, batches of 16",
)
# The best of these by validation error has a row of its own.
SAM_ARMS = tuple(name for name in ARMS if name == "sam" or name.startswith("sam, rho"))
CONTROLS = ("plain", "clipped", "ghost")
