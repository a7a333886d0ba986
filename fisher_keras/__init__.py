"""Fisher-information metric and regularizer of local minima, for Keras classifiers.

Both rest on one quantity, the observed Fisher information. `check_classifier` tells which of the
names below work with a model and its data. By section of the paper:

- Section 5.2: `generalization_bound`, Theorem 1; `extrapolate_log_determinant`, Equation 5.
- Section 3: `Classifier`, a Keras model with what was found out about it and traced of it.
- Sections 4 and 5.3: `loss_gradient_gram` and its `FisherGram`, Equations 4 and 5;
  `example_gradient_norms`, the norms of the gradients alone.
- Sections 5.3 and 7.1: `evaluate_local_minimum` and its `LocalMinimumReport`, gamma-hat and the
  older metrics; `FisherMetrics`, the same during `fit`.
- Section 6: `FisherRegularizedModel`, Equation 6 and Algorithm 1; `SharpnessAwareModel`, the
  baseline SAM; `compare`, methods side by side on your own model.
- Appendix E: `build_model` and its `ARCHITECTURES`.

Names are imported when they are used first: `import fisher_keras` loads neither TensorFlow nor
Keras.
"""

import importlib
from typing import TYPE_CHECKING, Any

import wrapt

from fisher_keras._backend import check_backend
from fisher_keras._version import __version__

if TYPE_CHECKING:
    from fisher_keras.bound import extrapolate_log_determinant, generalization_bound
    from fisher_keras.callbacks import FisherMetrics
    from fisher_keras.classifier import Classifier
    from fisher_keras.classifier_check import check_classifier
    from fisher_keras.experiments.comparisons.compare import compare
    from fisher_keras.fisher import FisherGram, example_gradient_norms, loss_gradient_gram
    from fisher_keras.metrics import LocalMinimumReport, evaluate_local_minimum
    from fisher_keras.models import ARCHITECTURES, build_model
    from fisher_keras.regularizer import FisherRegularizedModel, SharpnessAwareModel

__all__ = [
    "ARCHITECTURES",
    "Classifier",
    "FisherGram",
    "FisherMetrics",
    "FisherRegularizedModel",
    "LocalMinimumReport",
    "SharpnessAwareModel",
    "__version__",
    "build_model",
    "check_classifier",
    "compare",
    "evaluate_local_minimum",
    "example_gradient_norms",
    "extrapolate_log_determinant",
    "generalization_bound",
    "loss_gradient_gram",
]

_NAMES = {
    "bound": ("extrapolate_log_determinant", "generalization_bound"),
    "callbacks": ("FisherMetrics",),
    "classifier": ("Classifier",),
    "classifier_check": ("check_classifier",),
    "experiments.comparisons.compare": ("compare",),
    "fisher": ("FisherGram", "example_gradient_norms", "loss_gradient_gram"),
    "metrics": ("LocalMinimumReport", "evaluate_local_minimum"),
    "models": ("ARCHITECTURES", "build_model"),
    "regularizer": ("FisherRegularizedModel", "SharpnessAwareModel"),
}

check_backend()
# Keras looks for the class of a saved model among those that were registered, wherever
# `keras.saving.load_model` is called: when Keras is there, the classes are.
wrapt.register_post_import_hook(
    lambda _: importlib.import_module(f"{__name__}.regularizer"), "keras"
)


def __getattr__(name: str) -> Any:
    for module, names in _NAMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
