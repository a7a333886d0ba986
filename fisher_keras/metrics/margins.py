r"""The part of the log-determinant that follows the training loss, and the part free of it.

The margin of an example is $m_i = z_{y_i} - \ln \sum_{k \ne y_i} e^{z_k}$, and $p_i$ is the
probability of its label. Its hard-label loss is $\ln(1 + e^{-m_i})$, and the gradient of the loss
is $-(1 - p_i)$ times that of the margin. Therefore

$$\ln |\xi| = 2 \sum_i \ln(1 - p_i) + \ln |\Xi|,$$

where $\Xi$ is the Gram matrix of the margins' gradients. It needs no further pass.

An example with several predictions has one of the $|C|^{|P|}$ joint labels. If $\ell$ is the sum
of its losses, the probability of this label is $p = e^{-\ell}$, and its margin is
$\ln p - \ln(1 - p)$. All of the above holds for this margin.
"""

import numpy as np
from scipy.special import log_expit, logsumexp

from fisher_keras.fisher.gram import FisherGram
from fisher_keras.metrics.gram_metrics import log_determinant


def margins(
    logits: np.ndarray,
    labels: np.ndarray,
    normalize_logits: float | None,
    counted: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the margins of examples.

    Args:
        logits: Shape (N', K) or (N', *P, K), float64.
        labels: The class of each example, shape (N',) or (N', *P), integers.
        normalize_logits: c, if the losses are those of the logits z / (c ||z||); otherwise None.
        counted: Whether each prediction counts, in the shape of the labels; None if all do.

    Returns:
        Shape (N',), float64. A margin is inf if all other classes have the probability 0, or if no
        position counts.
    """
    if normalize_logits is not None:
        # The gradients are those of losses of normalized logits, and so must the margins be.
        norms = np.linalg.norm(logits, axis=-1, keepdims=True)
        logits = logits / (normalize_logits * norms)
    others = logits.copy()
    # e^-inf is 0: the label itself drops out of the sum over the classes.
    np.put_along_axis(others, labels[..., np.newaxis], -np.inf, axis=-1)
    chosen = np.take_along_axis(logits, labels[..., np.newaxis], axis=-1)[..., 0]
    result = chosen - logsumexp(others, axis=-1)
    if counted is not None:
        result = np.where(counted, result, np.inf)
    return result if result.ndim == 1 else _joint(result.reshape(len(result), -1))


def _joint(margins: np.ndarray) -> np.ndarray:
    """Returns the margins (N',) of the joint labels of those at positions, shape (N', L)."""
    # The loss ln(1 + e^-m) may be below the smallest number, and its logarithm is not.
    with np.errstate(divide="ignore", over="ignore"):
        log_losses = np.where(margins > 30, -margins, np.log(np.logaddexp(0, -margins)))
        log_loss = logsumexp(log_losses, axis=1)
        loss = np.exp(log_loss)
        # -ln(e^l - 1): that of a small loss l is -ln l, and that of a large one -l.
        larger = -loss - np.log(-np.expm1(-loss))
        return np.where(loss < 1e-8, -log_loss, larger)


def log_residuals(margins: np.ndarray) -> float:
    r"""Returns $2 \sum_i \ln(1 - p_i)$: the part of $\ln |\xi|$ that follows the training loss.

    Args:
        margins: Margins of N' examples.

    Returns:
        The logarithm, at most 0; -inf if a probability is exactly 1.
    """
    # ln(1 - p) from p would be lost in rounding near p = 1.
    return float(2.0 * np.sum(log_expit(-margins)))


def log_determinant_margins(gram: FisherGram, margins: np.ndarray) -> float:
    r"""Returns $\ln |\Xi|$: $\ln |\xi|$ without the part that follows the training loss.

    Args:
        gram: The Gram matrix of N' examples.
        margins: Margins of the same examples.

    Returns:
        The natural logarithm. If $\xi$ is singular, it is -inf, with the warning of
        `log_determinant`.
    """
    value = log_determinant(gram)
    # -inf stays as it is: less another -inf, of a probability that is exactly 1, it would be NaN.
    return value if value == -np.inf else value - log_residuals(margins)
