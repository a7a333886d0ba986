"""The networks of the paper's Appendix E with their recipes, and the regularizer's settings."""

from fisher_keras.models.architectures import ARCHITECTURES, RECIPES, build_model
from fisher_keras.models.recipe import (
    Recipe,
    build_optimizer,
    learning_rate_at,
    learning_rate_falls,
)
from fisher_keras.models.settings import (
    RegularizerSettings,
    regularizer_settings,
    write_regularizer_settings,
)

__all__ = [
    "ARCHITECTURES",
    "RECIPES",
    "Recipe",
    "RegularizerSettings",
    "build_model",
    "build_optimizer",
    "learning_rate_at",
    "learning_rate_falls",
    "regularizer_settings",
    "write_regularizer_settings",
]
