"""The metrics of local minima (Sections 5.3 and 7.1), under the names that users import."""

from fisher_keras.metrics.evaluation import evaluate_local_minimum
from fisher_keras.metrics.gram_metrics import (
    effective_rank,
    frobenius_norm,
    log_determinant,
    log_determinant_cosines,
    log_determinant_shifted,
    log_spectrum,
    log_squared_norms,
    renyi_entropy,
    sample_frobenius_norm,
    soft_rank,
    spectral_radius,
    spectrum,
    trace,
)
from fisher_keras.metrics.hessian import hessian, hessian_log_determinant
from fisher_keras.metrics.layer_table import LayerSummary, LayerTable
from fisher_keras.metrics.loss_and_errors import DataLoss
from fisher_keras.metrics.margins import log_determinant_margins, log_residuals
from fisher_keras.metrics.metric import DEFAULT_METRICS, METRICS
from fisher_keras.metrics.notes import MAX_TRAIN_LOSS
from fisher_keras.metrics.report import LocalMinimumReport
from fisher_keras.metrics.robustness import robustness
from fisher_keras.metrics.singular import LinearDependence, SingularGramWarning, find_dependence
from fisher_keras.metrics.summaries import MetricSummary

# Their names in version 0.2.
Fit, Dependence = DataLoss, LinearDependence

__all__ = [
    "DEFAULT_METRICS",
    "MAX_TRAIN_LOSS",
    "METRICS",
    "DataLoss",
    "LayerSummary",
    "LayerTable",
    "LinearDependence",
    "LocalMinimumReport",
    "MetricSummary",
    "SingularGramWarning",
    "effective_rank",
    "evaluate_local_minimum",
    "find_dependence",
    "frobenius_norm",
    "hessian",
    "hessian_log_determinant",
    "log_determinant",
    "log_determinant_cosines",
    "log_determinant_margins",
    "log_determinant_shifted",
    "log_residuals",
    "log_spectrum",
    "log_squared_norms",
    "renyi_entropy",
    "robustness",
    "sample_frobenius_norm",
    "soft_rank",
    "spectral_radius",
    "spectrum",
    "trace",
]
