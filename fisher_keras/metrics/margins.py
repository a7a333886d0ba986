r"""The part of the log-determinant that is the training loss, and the part that is free of it.

With the margin $m_i = z_{y_i} - \ln \sum_{k \ne y_i} e^{z_k}$ the hard-label loss of an example is
$\ln(1 + e^{-m_i})$, and its gradient is $-(1 - p_i)$ times that of the margin, $p_i$ being the
probability of the label. So

$$\ln |\xi| = 2 \sum_i \ln(1 - p_i) + \ln |\Xi|,$$

$\Xi$ being the Gram matrix of the margins' gradients: it costs no further pass.
"""

import numpy as np
from scipy.special import log_expit, logsumexp

from fisher_keras.fisher.gram import FisherGram
from fisher_keras.metrics.gram_metrics import log_determinant


def margins(logits: np.ndarray, labels: np.ndarray, normalize_logits: float | None) -> np.ndarray:
    """Returns the margins of examples.

    Args:
        logits: Shape (N', K), float64.
        labels: The class of each example, shape (N',), integers.
        normalize_logits: c, where the losses are those of the logits z / (c ||z||); else None.

    Returns:
        Shape (N',), float64; inf where all other classes have the probability 0.
    """
    if normalize_logits is not None:
        # The gradients are those of losses of normalized logits, and so must the margins be.
        logits = logits / (normalize_logits * np.linalg.norm(logits, axis=1, keepdims=True))
    rows = np.arange(len(labels))
    others = logits.copy()
    # e^-inf is 0: the label itself drops out of the sum over the classes.
    others[rows, labels] = -np.inf
    return logits[rows, labels] - logsumexp(others, axis=1)


def log_residuals(margins: np.ndarray) -> float:
    r"""Returns $2 \sum_i \ln(1 - p_i)$: the part of $\ln |\xi|$ that follows the training loss.

    Args:
        margins: Of N' examples.

    Returns:
        The logarithm, at most 0; -inf where a probability is 1 exactly.
    """
    # ln(1 - p) from p would be lost in rounding near p = 1.
    return float(2.0 * np.sum(log_expit(-margins)))


def log_determinant_margins(gram: FisherGram, margins: np.ndarray) -> float:
    r"""Returns $\ln |\Xi|$: $\ln |\xi|$ without the part that is the training loss.

    Args:
        gram: The Gram matrix of N' examples.
        margins: Of the same examples.

    Returns:
        The natural logarithm; -inf where $\xi$ is singular, with the warning of
        `log_determinant`.
    """
    value = log_determinant(gram)
    # -inf stays as it is: less another -inf, of a probability that is exactly 1, it would be NaN.
    return value if value == -np.inf else value - log_residuals(margins)
