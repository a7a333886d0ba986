"""Checks of the options of a training that do not go together."""

import math
from typing import TYPE_CHECKING

from fisher_keras.experiments.names import ARCHITECTURES

if TYPE_CHECKING:
    from fisher_keras.experiments.training.config import TrainingConfig

NETWORK_OPTIONS = ("depth", "width", "l2_penalty", "activation")  # Of the package's own networks.
REGULARIZER_OPTIONS = (
    "alpha",
    "beta",
    "num_sub_batches",
    "clip_norm",
    "gradient",
    "share_gradients",
    "strength",
    "step_length",
    "direction",
    "interval",
)
_OF_METHOD = {
    "clipped": {"settings_file"},
    "ghost": {"settings_file", "num_sub_batches"},
}  # Beside `clip_norm`, which is for all.


def check_together(config: "TrainingConfig") -> None:
    """Raises a ValueError if options of a training contradict each other."""
    _check_arch(config)
    if not config.regularize:
        # A plain training can be clipped, too.
        names = {*REGULARIZER_OPTIONS, "beta_phases", "settings_file"} - {"clip_norm"}
        names -= _OF_METHOD.get(config.method, set())
        given = sorted(name for name in names if getattr(config, name) is not None)
        if given:
            remedy = (
                f"is not for --method={config.method}: leave it out"
                if config.method in ("ghost", "sam")
                else "has no effect without --regularize: add it, or --method=fisher"
            )
            raise ValueError(f"--{given[0]} {remedy}")
    if config.target_loss is not None and config.target_error is not None:
        raise ValueError("--target_loss and --target_error both end a training: give one")
    if config.beta is not None and config.strength is not None:
        raise ValueError("--beta and --strength say the same: give one of them")
    if config.gradient == "hessian_vector_product" and (config.step_length or config.direction):
        raise ValueError(
            "--step_length and --direction are not for --gradient=hessian_vector_product, "
            "which takes no difference: leave them out"
        )
    if config.beta_phases is not None:
        _check_beta_phases(config)


def _check_arch(config: "TrainingConfig") -> None:
    if ":" not in config.arch and config.arch not in ARCHITECTURES:
        raise ValueError(
            f"--arch must be one of {', '.join(ARCHITECTURES)}, keras.applications:NAME or "
            f"package.module:function, got {config.arch!r}"
        )
    given = [name for name in NETWORK_OPTIONS if getattr(config, name) is not None]
    if ":" in config.arch and given:
        raise ValueError(f"--{given[0]} is not for --arch={config.arch}: leave it out")


def _check_beta_phases(config: "TrainingConfig") -> None:
    if config.schedule != "recipe":
        raise ValueError(
            "--beta_phases needs --schedule=recipe, whose learning rate falls at known epochs"
        )
    from fisher_keras.experiments.training.arch import recipe_of  # As --help comes first.

    falls = len(recipe_of(config.arch).schedule)
    factors = phase_factors(config.beta_phases)
    if len(factors) != falls + 1 or not all(0 <= factor < math.inf for factor in factors):
        raise ValueError(
            f"--beta_phases must be {falls + 1} numbers, 0 or greater: the learning rate of "
            f"{config.arch} falls {falls} times. Given: {config.beta_phases}"
        )


def phase_factors(beta_phases: str) -> list[float]:
    """Returns the factors of `beta_phases`; NaN for non-numbers."""
    factors = []
    for part in beta_phases.split(","):
        try:
            factors.append(float(part))
        except ValueError:
            factors.append(math.nan)
    return factors
