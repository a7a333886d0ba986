"""Names that flags accept, and how they are written in the names of folders.

They repeat what the core defines, and a test compares the two: importing the core takes seconds,
for which --help and a typo in a flag should not have to wait.
"""

import re

ACTIVATIONS = ("gelu", "silu", "softplus")
ARCHITECTURES = ("cnn", "resnet", "wide_resnet", "densenet")
AUGMENTATIONS = ("no-aug", "flip-only", "1-crop-f", "4-crop-f")
DATASETS = ("cifar10", "cifar100", "digits", "folder", "tfds:NAME")
DIRECTIONS = ("descent", "ascent", "central")
GRADIENTS = ("finite_difference", "hessian_vector_product")
METRICS = (
    *("log_determinant", "log_squared_norms", "log_determinant_cosines"),
    *("spectral_radius", "frobenius_norm", "sample_frobenius_norm", "trace", "effective_rank"),
    *("log_determinant_margins", "log_residuals", "mean_margin"),
    *("log_determinant_shifted", "soft_rank", "renyi_entropy", "log_weight_norm"),
    "robustness",
)

# The experiments' own.
NUM_SEEDS = 2**32  # Of NumPy's global generator, which is seeded, too.
PRESETS = ("paper", "laptop", "smoke")
STRATEGIES = ("none", "mirrored", "multi_worker")


def folder_name(name: str) -> str:
    """Returns the name of a network or a data set as a part of the name of a folder."""
    # Of a function its name alone. A colon or a slash cannot stand in names of all systems.
    name = name if name.startswith("tfds:") else name.rpartition(":")[2]
    return re.sub(r"[^\w.-]", "_", name)
