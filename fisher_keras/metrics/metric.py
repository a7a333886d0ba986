r"""The table of metrics: a metric is a function of a `Sample`, the examples of one trial.

To add a metric, add an entry to `METRICS`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from fisher_keras.classifier import stateless
from fisher_keras.classifier.classifier import Classifier
from fisher_keras.classifier.labels import LabelledData
from fisher_keras.classifier.likelihood import Likelihood
from fisher_keras.fisher.gram import FisherGram
from fisher_keras.metrics import gram_metrics, margins
from fisher_keras.metrics.layer_table import log_norm


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """The examples of one trial, with the quantities that metrics are computed from.

    Attributes:
        classifier: The classifier whose minimum is evaluated.
        rows: Rows of the N' examples in the data, shape (N',), integers.
        examples: The examples.
        gram: Their Gram matrix, with their logits; None if no metric needs it.
        jacobian_norms: Their squared input-output Jacobian norms, shape (N',), float64; None if no
            metric needs them.
    """

    classifier: Classifier
    rows: np.ndarray
    examples: LabelledData
    gram: FisherGram | None = None
    jacobian_norms: np.ndarray | None = None

    @property
    def margins(self) -> np.ndarray:
        """The margins of the examples, from the logits that the losses use, shape (N',)."""
        # Samples are in several threads at once, so that nothing here may hold a lock: a
        # `functools.cached_property` of Python 3.11 does.
        logits, counted = self.gram.logits.numpy(), self.gram.counted.numpy()
        data, likelihood = self.examples, Likelihood(logits.shape[1:-1], logits.shape[-1])
        labels = likelihood.hard_labels(data.y, data.weights)
        return margins.margins(logits, labels, self.classifier.normalize_logits, counted)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of a local minimum.

    Attributes:
        function: Takes a `Sample`; returns the value of the metric for it.
        label: Name of the metric in figures, in which LaTeX may stand between `$`.
        needs: The quantity of a `Sample` that it is a function of, "gram" or "jacobian_norms";
            None if it needs neither.
    """

    function: Callable[[Sample], float]
    label: str
    needs: str | None = "gram"


def _of_gram(function: Callable[[FisherGram], float], label: str) -> Metric:
    return Metric(lambda sample: function(sample.gram), label)


METRICS: dict[str, Metric] = {
    "log_determinant": _of_gram(gram_metrics.log_determinant, r"log-determinant $\hat\gamma$"),
    "log_squared_norms": _of_gram(gram_metrics.log_squared_norms, r"$2\,\sum \ln \|g_i\|$"),
    "log_determinant_cosines": _of_gram(gram_metrics.log_determinant_cosines, r"$\ln \det C$"),
    "spectral_radius": _of_gram(gram_metrics.spectral_radius, "spectral radius"),
    "frobenius_norm": _of_gram(gram_metrics.frobenius_norm, "Frobenius norm"),
    "sample_frobenius_norm": _of_gram(gram_metrics.sample_frobenius_norm, r"$\|I\|_F^2$"),
    "trace": _of_gram(gram_metrics.trace, "trace"),
    "effective_rank": _of_gram(gram_metrics.effective_rank, "effective rank"),
    "log_determinant_margins": Metric(
        lambda sample: margins.log_determinant_margins(sample.gram, sample.margins),
        r"$\ln \det \Xi$",
    ),
    "log_residuals": Metric(
        lambda sample: margins.log_residuals(sample.margins), r"$2\,\sum \ln(1 - p_i)$"
    ),
    "mean_margin": Metric(lambda sample: float(np.mean(sample.margins)), "mean margin"),
    "log_determinant_shifted": _of_gram(
        gram_metrics.log_determinant_shifted, r"$\ln \det(\xi / N' + \delta I)$"
    ),
    "soft_rank": _of_gram(gram_metrics.soft_rank, "soft rank"),
    "renyi_entropy": _of_gram(gram_metrics.renyi_entropy, "Rényi entropy"),
    "log_weight_norm": Metric(
        lambda sample: log_norm(stateless.weights(sample.classifier.model)),
        "ln norm of the weights",
        needs=None,
    ),
    "robustness": Metric(
        lambda sample: float(np.mean(sample.jacobian_norms)),
        "robustness",
        needs="jacobian_norms",
    ),
}
# All that cost one backward pass together; robustness costs K more.
DEFAULT_METRICS = tuple(n for n, metric in METRICS.items() if metric.needs != "jacobian_norms")
