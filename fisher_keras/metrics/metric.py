r"""The table of metrics: a metric is a function of a `Sample`, the examples of one trial.

To add a metric, add an entry to `METRICS`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from fisher_keras.classifier import stateless
from fisher_keras.classifier.classifier import Classifier
from fisher_keras.classifier.inputs import ExamplesError
from fisher_keras.classifier.labels import LabelledData
from fisher_keras.classifier.likelihood import Likelihood
from fisher_keras.fisher.gram import FisherGram, loss_gradient_gram
from fisher_keras.metrics import gram_metrics, margins
from fisher_keras.metrics.layer_table import log_norm
from fisher_keras.metrics.robustness import squared_jacobian_norms


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

    @classmethod
    def evaluate(
        cls,
        classifier: Classifier,
        rows: np.ndarray,
        examples: LabelledData,
        needs: set[str],
        chunk_size: int | None = None,
        by_layer: bool = False,
        unit: str = "example",
    ) -> "Sample":
        """Computes the quantities of a sample, on the device of the moment.

        Args:
            classifier: See `Sample`.
            rows: See `Sample`.
            examples: See `Sample`.
            needs: Names of the quantities to compute, out of `_QUANTITIES`.
            chunk_size: How many examples to evaluate at a time; None for all N' at once.
            by_layer: Whether the Gram matrix comes with those of the layers.
            unit: What the rows are of, for errors: "example" or "position".

        Returns:
            The sample.

        Raises:
            ExamplesError: If examples have no finite derivative; it names their rows in the data.
        """
        try:
            quantities = {
                name: _QUANTITIES[name](classifier, examples, chunk_size, by_layer)
                for name in sorted(needs)
            }
        except ExamplesError as error:
            raise error.renamed(rows, unit) from error
        return cls(classifier, rows, examples, **quantities)

    @property
    def margins(self) -> np.ndarray:
        """The margins of the examples, of the logits that the losses are of, shape (N',)."""
        logits, counted = self.gram.logits.numpy(), self.gram.counted.numpy()
        data, likelihood = self.examples, Likelihood(logits.shape[1:-1], logits.shape[-1])
        labels = likelihood.hard_labels(data.y, data.weights)
        return margins.margins(logits, labels, self.classifier.normalize_logits, counted)


# The quantities of a sample that are worth a device, by the names of their attributes: functions
# of classifier, examples, chunk size and whether by layer. They run in several threads at once, so
# that nothing here may hold a lock: a `functools.cached_property` of Python 3.11 does.
_QUANTITIES: dict[str, Callable[[Classifier, LabelledData, int | None, bool], Any]] = {
    "gram": lambda c, data, size, by_layer: loss_gradient_gram(
        c, data.x, data.y, chunk_size=size, sample_weight=data.weights, by_layer=by_layer
    ),
    "jacobian_norms": lambda c, data, size, _: c.cached(squared_jacobian_norms)(
        data.x, size or len(data)
    ),
}


def count_parameters(model: keras.Model) -> int:
    """Returns the number W of trainable parameters of a built model."""
    return sum(int(np.prod(v.shape)) for v in stateless.weights(model))


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of a local minimum.

    Attributes:
        needs: The quantities of a `Sample` that it is a function of: "gram", "jacobian_norms".
        function: Takes a `Sample`; returns the value of the metric for it.
        label: Name of the metric in figures, in which LaTeX may stand between `$`.
    """

    needs: frozenset[str]
    function: Callable[[Sample], float]
    label: str


def _of_gram(function: Callable[[FisherGram], float], label: str) -> Metric:
    return Metric(frozenset({"gram"}), lambda sample: function(sample.gram), label)


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
        frozenset({"gram"}),
        lambda sample: margins.log_determinant_margins(sample.gram, sample.margins),
        r"$\ln \det \Xi$",
    ),
    "log_residuals": Metric(
        frozenset({"gram"}),
        lambda sample: margins.log_residuals(sample.margins),
        r"$2\,\sum \ln(1 - p_i)$",
    ),
    "mean_margin": Metric(
        frozenset({"gram"}), lambda sample: float(np.mean(sample.margins)), "mean margin"
    ),
    "log_determinant_shifted": _of_gram(
        gram_metrics.log_determinant_shifted, r"$\ln \det(\xi / N' + \delta I)$"
    ),
    "soft_rank": _of_gram(gram_metrics.soft_rank, "soft rank"),
    "renyi_entropy": _of_gram(gram_metrics.renyi_entropy, "Rényi entropy"),
    "log_weight_norm": Metric(
        frozenset(),
        lambda sample: log_norm(stateless.weights(sample.classifier.model)),
        "ln norm of the weights",
    ),
    "robustness": Metric(
        frozenset({"jacobian_norms"}),
        lambda sample: float(np.mean(sample.jacobian_norms)),
        "robustness",
    ),
}
# All that cost one backward pass together; robustness costs K more.
DEFAULT_METRICS = tuple(n for n, metric in METRICS.items() if "jacobian_norms" not in metric.needs)
