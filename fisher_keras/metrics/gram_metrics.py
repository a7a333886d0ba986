r"""Metrics of a Gram matrix: those of Section 7.1 that need only $\xi = J J^T$.

J is the Jacobian of the hard-label losses of N' examples. Its row i is the gradient g_i of one
example. A `FisherGram` holds $\xi$ as $D C D$. C has the cosines between the gradients, and D is
the diagonal matrix of their norms, stored as logarithms: near a minimum, the norms span hundreds
of decades, and C does not. Each function divides by the largest norm before it computes. Therefore
only a result that float64 cannot hold is lost. It is then 0.0 or inf, as each docstring says.
"""

import contextlib
import weakref

import numpy as np
import tensorflow as tf
from scipy.linalg import lapack
from scipy.special import expit
from threadpoolctl import ThreadpoolController

from fisher_keras.fisher.gram import FisherGram
from fisher_keras.metrics.singular import rank_tolerance, warn_if_singular

# The shift of xi / N', in the unit of the trace, if none is given.
DELTA = 1e-3
_LIBRARIES = ThreadpoolController()
# Several metrics use the same spectrum, which takes longer than all else about a large sample.
_LOG_SPECTRA: weakref.WeakKeyDictionary[FisherGram, np.ndarray] = weakref.WeakKeyDictionary()


def log_determinant(gram: FisherGram) -> float:
    r"""Returns $\ln |\xi|$: the paper's metric for one sample $S^t$ (Section 5.3, Equation 5).

    The mean over T samples is $\hat\gamma$. Gradients have the rounding of float32, whose relative
    size is $\epsilon = 2^{-23}$, or the rounding of half precision or TensorFloat-32 if the model
    computes in it (`FisherGram.epsilon`). The eigenvalues of C are squares of the singular values
    of the matrix of unit gradients. An eigenvalue of $N' \epsilon^2$ (1.4e-12 for N' = 100 in
    float32, 1e-4 in float16, 6e-3 in bfloat16) or less is therefore rounding and says nothing
    about the network. $\xi$ is then singular. The logarithm of a larger eigenvalue $\lambda$ of C
    has an error of about $\epsilon \sqrt{N' / \lambda}$.

    Args:
        gram: The Gram matrix of N' examples.

    Returns:
        The natural logarithm. If $\xi$ is singular, it is -inf, and a `SingularGramWarning` names
        the examples that make it so.
    """
    if warn_if_singular(gram):
        return -np.inf
    # Only C is factored: its entries are at most 1, where those of xi may underflow.
    return log_squared_norms(gram) + _log_determinant_of_unit_matrix(gram)


def log_squared_norms(gram: FisherGram) -> float:
    r"""Returns $2 \sum_i \ln \|g_i\|$, the part of $\ln |\xi|$ from the gradients' lengths.

    $\xi = D C D$ gives $\ln |\xi| = \ln |D^2| + \ln |C|$, with the norms in D and the cosines in
    C. In the same way, the log-determinant of a covariance matrix is the sum of those of its
    variances and of its correlations. Near a minimum, the lengths follow the training loss, and
    the cosines do not.

    Args:
        gram: The Gram matrix of N' examples.

    Returns:
        The natural logarithm of $\prod_i \|g_i\|^2$, at least `log_determinant` (Hadamard); -inf
        for a zero gradient.
    """
    return float(2.0 * np.sum(gram.log_scale))


def log_determinant_cosines(gram: FisherGram) -> float:
    r"""Returns $\ln |C|$ of the cosines C, the part of $\ln |\xi|$ from the gradients' directions.

    It is 0 for gradients at right angles to each other. See also `log_squared_norms`.

    Args:
        gram: The Gram matrix of N' examples.

    Returns:
        The natural logarithm, at most 0; -inf as for `log_determinant`, with the same warning.
    """
    if warn_if_singular(gram):
        return -np.inf
    return _log_determinant_of_unit_matrix(gram)


def spectral_radius(gram: FisherGram) -> float:
    r"""Returns $\|J\|_2^2 = \rho(\xi)$, N' times the spectral radius of $I$ (Appendix D).

    Args:
        gram: The Gram matrix of N' examples.

    Returns:
        The largest eigenvalue of $\xi$; 0.0 below 5e-324, inf above 1.8e308.
    """
    xi, log_unit = _scaled(gram)
    return _times_exp(np.linalg.eigvalsh(xi)[-1], log_unit)


def frobenius_norm(gram: FisherGram) -> float:
    r"""Returns the paper's estimate of $\|I\|_F^2$: the mean of $\|g_i g_i^T\|_F^2$ (Appendix D).

    The paper samples entries of $g_i g_i^T$. The sum of their squares over all entries is exactly
    $\|g_i\|^4$. `sample_frobenius_norm` is the squared norm of the sample's $I$ itself.

    Args:
        gram: The Gram matrix of N' examples.

    Returns:
        $\frac{1}{N'} \sum_i \|g_i\|^4$; 0.0 below 5e-324, inf above 1.8e308.
    """
    xi, log_unit = _scaled(gram)
    # Squares of entries are in units of e^log_unit squared, hence the 2.
    return _times_exp(np.mean(np.diag(xi) ** 2), 2.0 * log_unit)


def sample_frobenius_norm(gram: FisherGram) -> float:
    r"""Returns $\|I\|_F^2$ of the sample, $I = \frac{1}{N'} J^T J$, cross terms included.

    Args:
        gram: The Gram matrix of N' examples.

    Returns:
        $\frac{1}{N'^2} \sum_{ij} \xi_{ij}^2$; 0.0 below 5e-324, inf above 1.8e308.
    """
    xi, log_unit = _scaled(gram)
    return _times_exp(np.mean(xi**2), 2.0 * log_unit)


def trace(gram: FisherGram) -> float:
    r"""Returns $\mathrm{tr}(I)$ of the sample, $I = \frac{1}{N'} J^T J$ (Section 6).

    Args:
        gram: The Gram matrix of N' examples.

    Returns:
        $\mathrm{tr}(\xi) / N'$, the mean of $\|g_i\|^2$; 0.0 below 5e-324, inf above 1.8e308.
    """
    xi, log_unit = _scaled(gram)
    return _times_exp(np.mean(np.diag(xi)), log_unit)


def effective_rank(gram: FisherGram) -> float:
    r"""Returns the effective rank of $\xi$ as Roy & Vetterli (2007) define it.

    It is $\exp(-\sum_k p_k \ln p_k)$ with $p_k = \lambda_k / \sum_j \lambda_j$: the number of
    directions in weight space that share the sample's Fisher information. O. Roy and M. Vetterli,
    "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.

    Args:
        gram: The Gram matrix of N' examples.

    Returns:
        Between 1 and N'; 0.0 if all gradients are zero.
    """
    xi, _ = _scaled(gram)
    if not xi.any():
        return 0.0
    # The unit that is divided out of xi drops out of the shares, too.
    shares = np.linalg.eigvalsh(xi) / np.trace(xi)
    # p ln p goes to 0 with p: eigenvalues that rounding leaves at 0 or below add nothing.
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))))


def log_determinant_shifted(gram: FisherGram, delta: float = DELTA) -> float:
    r"""Returns $\ln |\xi / N' + \delta I|$, which is finite for singular matrices, too.

    Directions with less Fisher information than $\delta$ hardly count.

    Args:
        gram: The Gram matrix of N' examples.
        delta: $\delta$, greater than 0, in the unit of the trace.

    Returns:
        The natural logarithm, at least $N' \ln \delta$.
    """
    # An eigenvalue of zero has the logarithm -inf, and adds ln(delta).
    return float(np.sum(np.logaddexp(_log_information(gram), np.log(delta))))


def soft_rank(gram: FisherGram, delta: float = DELTA) -> float:
    r"""Returns $\mathrm{tr}[\xi / N' (\xi / N' + \delta I)^{-1}]$.

    It counts the directions with more Fisher information than $\delta$.

    Args:
        gram: The Gram matrix of N' examples.
        delta: $\delta$, greater than 0, in the unit of the trace.

    Returns:
        Between 0 and N'.
    """
    # x / (x + delta) is the logistic function of ln x - ln(delta), which cannot overflow.
    return float(np.sum(expit(_log_information(gram) - np.log(delta))))


def renyi_entropy(gram: FisherGram) -> float:
    r"""Returns the Rényi entropy of order 2 of the spectrum of $\xi$, in nats.

    It is $-\ln \sum_k p_k^2$ with $p_k = \lambda_k / \sum_j \lambda_j$. It is at most the
    logarithm of the `effective_rank`, which uses the entropy of order 1.

    Args:
        gram: The Gram matrix of N' examples.

    Returns:
        Between 0 and $\ln N'$; -inf if all gradients are zero.
    """
    xi, _ = _scaled(gram)
    if not xi.any():
        return -np.inf
    # Squared eigenvalues add up to the squared entries of xi: there is no need for a spectrum.
    return float(2.0 * np.log(np.trace(xi)) - np.log(np.sum(xi**2)))


def spectrum(gram: FisherGram) -> np.ndarray:
    r"""Returns the eigenvalues of $\xi$.

    Args:
        gram: The Gram matrix of N' examples.

    Returns:
        Shape (N',), float64, in descending order; 0.0 below 5e-324, inf above 1.8e308. Their
        logarithms are `log_spectrum`.
    """
    with np.errstate(over="ignore"):
        return np.exp(log_spectrum(gram))


def log_spectrum(gram: FisherGram) -> np.ndarray:
    r"""Returns the logarithms of the eigenvalues of $\xi$, whose sum is `log_determinant`.

    Each eigenvalue is as precise as those of C, even if the scales of the gradients are far apart:
    a root R of $C = R R^T$ is scaled to $D R$, whose singular values come from LAPACK's
    preconditioned Jacobi method (dgejsv, made for such graded matrices).

    Args:
        gram: The Gram matrix of N' examples.

    Returns:
        Shape (N',), float64, in descending order. -inf for the eigenvalues that are zero to
        rounding (see `log_determinant`) and for those less than e^-1400 times the largest.
    """
    if gram not in _LOG_SPECTRA:
        _LOG_SPECTRA[gram] = _log_spectrum(gram)
    return _LOG_SPECTRA[gram].copy()


def _log_spectrum(gram: FisherGram) -> np.ndarray:
    log_scale = np.asarray(gram.log_scale)
    result = np.full(len(log_scale), -np.inf)
    # A zero gradient has a log_scale of -inf, and a zero eigenvalue: -inf in the result.
    nonzero = np.isfinite(log_scale)
    if not nonzero.any():
        return result
    log_scale = log_scale[nonzero]
    with one_thread():
        values, vectors = np.linalg.eigh(np.asarray(gram.matrix)[np.ix_(nonzero, nonzero)])
        # What is dropped here is rounding. R then has fewer columns than rows, and the eigenvalues
        # that are missing stay -inf as well.
        kept = values > rank_tolerance(gram)
        root = vectors[:, kept] * np.sqrt(values[kept])
        # Only ratios of the scales are numbers here: the largest one comes back as a logarithm.
        graded = np.exp(log_scale - log_scale.max())[:, None] * root
        # joba=2 pivots rows, too ("F"); 3: no singular vectors; jobr=0: no small value is cut.
        sigma, _, _, scales, _, _ = lapack.dgejsv(graded, joba=2, jobu=3, jobv=3, jobr=0)
    with np.errstate(divide="ignore"):
        # LAPACK may scale against overflow: the singular values are sigma scales[0] / scales[1].
        log_sigma = np.log(sigma) + np.log(scales[0] / scales[1])
    result[: len(sigma)] = np.sort(2.0 * (log_sigma + log_scale.max()))[::-1]
    return result


def one_thread() -> contextlib.AbstractContextManager:
    """Makes a scope in which NumPy and SciPy factorize matrices in one thread.

    Threads for matrices this small wait for each other, on a busy machine for a second.
    """
    return _LIBRARIES.limit(limits=1, user_api="blas")


def _log_information(gram: FisherGram) -> np.ndarray:
    """Returns the logarithms of the eigenvalues of xi / N', the nonzero eigenvalues of I."""
    return log_spectrum(gram) - np.log(len(gram.log_scale))


def _log_determinant_of_unit_matrix(gram: FisherGram) -> float:
    return float(tf.linalg.slogdet(gram.matrix).log_abs_determinant)


def _scaled(gram: FisherGram) -> tuple[np.ndarray, float]:
    """Returns xi divided by its largest diagonal entry, and the logarithm of this entry."""
    log_scale = np.asarray(gram.log_scale)
    log_largest = log_scale.max()
    # All gradients are zero: there is no scale to divide by.
    if log_largest == -np.inf:
        return np.zeros_like(np.asarray(gram.matrix)), 0.0
    # Cosines and relative norms are at most 1, and so is then every entry.
    scale = np.exp(log_scale - log_largest)
    return scale[:, None] * np.asarray(gram.matrix) * scale, 2.0 * log_largest


def _times_exp(value: float, exponent: float) -> float:
    """Returns value * e^exponent where e^exponent alone might not be a float64."""
    with np.errstate(divide="ignore", over="ignore"):
        return float(np.exp(np.log(value) + exponent))
