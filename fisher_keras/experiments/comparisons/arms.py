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
# Without ReLU's jumps, as with GELU or in the limit of small alpha, R is weaker.
SMOOTH_STRENGTHS = (*STRENGTHS, 16.0)
RHOS = (0.02, 0.1, 0.2, 0.5, 1.0)  # Of SAM, beside its default 0.05.
M_RHOS = (0.1, 0.2, 0.5)  # Of m-SAM.


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
    **{
        f"fisher, {p:g} of parity": Arm(_FISHER, _M, p, usual=p in STRENGTHS)
        for p in SMOOTH_STRENGTHS
    },
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
        for p in SMOOTH_STRENGTHS
    },
    "sam": Arm({"method": "sam"}, usual=True),
    **{f"sam, rho {rho:g}": Arm({"method": "sam", "rho": rho}) for rho in RHOS},
    "m-sam": Arm({"method": "sam"}, "sub_batches"),
    **{f"m-sam, rho {rho:g}": Arm({"method": "sam", "rho": rho}, "sub_batches") for rho in M_RHOS},
    "plain, batches of 16": Arm({"batch_size": 16}),
    # As much of the training images as strong regularizers leave is left unfitted.
    "plain, to 5 % train error": Arm({"target_error": 5.0}),
}
# Arms that differ in their strength alone, weak ones first.
_FISHER_ARMS = tuple(f"fisher, {p:g} of parity" for p in SMOOTH_STRENGTHS)
_USUAL_FISHER_ARMS = tuple(name for name in _FISHER_ARMS if ARMS[name].usual)
_UPHILL_ARMS = tuple(f"{name}, 0.05 uphill" for name in _USUAL_FISHER_ARMS)
_LIMIT_ARMS = tuple(f"{name}, limit of small alpha" for name in _FISHER_ARMS)
_SAM_ARMS = tuple(name for name in ARMS if name == "sam" or name.startswith("sam, rho"))
_M_SAM_ARMS = tuple(name for name in ARMS if name.startswith("m-sam"))
# Of each kind, the arm that is best by validation error has a row of its own.
TUNED = (_FISHER_ARMS, _UPHILL_ARMS, _LIMIT_ARMS, _SAM_ARMS, _M_SAM_ARMS)
CONTROLS = ("plain", "clipped", "ghost")


@dataclasses.dataclass(frozen=True)
class OtherNetwork:
    """A network beside that of the preset.

    Attributes:
        training: Fields of `TrainingConfig` that make it of the preset's network.
        arms: Names of its arms, all in `ARMS`.
    """

    training: Mapping[str, Any]
    arms: tuple[str, ...]


OTHER_NETWORKS = {
    # Without batch normalization, gradients are shared at no price, and ghost batch normalization
    # is nothing.
    "cnn": OtherNetwork(
        {"arch": "cnn", "depth": None, "width": None},
        (
            "plain",
            "clipped",
            *_USUAL_FISHER_ARMS,
            *_SAM_ARMS,
            *_M_SAM_ARMS,
            "plain, batches of 16",
        ),
    ),
    # Without ReLU, a finite step sees no jumps of gradients.
    "gelu": OtherNetwork({"activation": "gelu"}, ("plain", "ghost", *_FISHER_ARMS, *_LIMIT_ARMS)),
}
