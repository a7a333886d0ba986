r"""The generalization bound and information criteria of Section 5, as functions of numbers.

All of them take or give $\gamma(w_0) = \ln|\mathcal{I}(w_0)|$ (Equation 3), in nats. They compute
with logarithms up to the last step, so that $W = 10^8$ parameters and $\gamma = -10^9$ are no
trouble. The counts $W$, $N$ and $N'$ are whole numbers; every other number may be an array, and
arrays broadcast. Everything is computed in float64.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fisher_keras.arguments import one_of, whole_number

# Scalars in, a scalar out; arrays in, an array out.
Floats = np.float64 | np.ndarray


def neighborhood_height(
    log_determinant: ArrayLike,
    num_parameters: int,
    *,
    volume: ArrayLike | None = None,
    log_volume: ArrayLike | None = None,
    gamma_function: Literal["stirling", "exact"] = "stirling",
) -> Floats:
    r"""Rise of the training loss within the neighborhood of a minimum (Section 5.2).

    The neighborhood $\mathcal{M}(w_0)$ is the region of volume $V$ around the minimum in which the
    loss is at most $h$ (Section 5.1). Where the loss is quadratic (Assumption 2) it is an
    ellipsoid, and Appendix B finds how far above the minimum that is,
    $\mathcal{A} = h - \mathcal{L}_0$:

    $$\mathcal{A}_\text{exact} = \frac{\left(V \, \Gamma(\frac{W}{2} + 1)\right)^{2/W}
        |\mathcal{I}(w_0)|^{1/W}}{2 \pi}, \qquad
    \mathcal{A}_\text{stirling} = \frac{W V^{2/W} \pi^{1/W} e^{\gamma(w_0) / W}}{4 \pi e}$$

    The second is $\mathcal{A}$ as Theorem 1 prints it. Both of the steps that lead to it,
    Stirling's approximation and $W^{(W + 1)/W} \approx W$, make it smaller:

    $$\mathcal{A}_\text{exact} / \mathcal{A}_\text{stirling} = W^{1/W} e^{1/(3 W^2) - \dots} > 1$$

    This ratio is largest, 1.53, at $W = 2$; it is 1.047 at $W = 100$ and 1.000014 at $W = 10^6$.
    So "stirling" gives the paper's numbers, and "exact" the height that the proof holds for at
    every W.

    Args:
        log_determinant: $\gamma(w_0)$, of all W eigenvalues; -inf, for a singular Fisher
            information, gives 0.
        num_parameters: W, 1 or greater.
        volume: V, greater than 0. Give either this or `log_volume`.
        log_volume: The logarithm ln V, for a volume beyond the range of float64.
        gamma_function: "stirling" or "exact", as above.

    Returns:
        $\mathcal{A}$, 0 or greater, in the loss's unit (nats); inf where it exceeds float64.

    Raises:
        ValueError: An argument is NaN or out of range, or not exactly one volume was given.

    Examples:
        A loss $\frac{1}{2} w^T w$ in the plane reaches 1/2 on the circle of radius 1, the area of
        which is pi.

        >>> A = neighborhood_height(0.0, 2, volume=np.pi, gamma_function="exact")
        >>> print(f"{A:.6f}")
        0.500000
    """
    gamma = _log_determinant(log_determinant)
    W = whole_number("num_parameters", num_parameters, 1)
    log_V = _log_volume(volume, log_volume)
    if one_of("gamma_function", gamma_function, ("stirling", "exact")) == "stirling":
        # The 1 is the logarithm of e in 4 pi e.
        log_height = math.log(W / (4 * math.pi)) - 1 + (2 * log_V + math.log(math.pi) + gamma) / W
    else:
        # The gamma function itself is beyond float64 from W = 342 on.
        log_height = (2 * (log_V + math.lgamma(W / 2 + 1)) + gamma) / W - math.log(2 * math.pi)
    with np.errstate(over="ignore", under="ignore"):
        return np.exp(log_height)


def generalization_bound(
    training_loss: ArrayLike,
    log_determinant: ArrayLike,
    num_parameters: int,
    num_samples: int,
    delta: ArrayLike,
    *,
    volume: ArrayLike | None = None,
    log_volume: ArrayLike | None = None,
    gamma_function: Literal["stirling", "exact"] = "stirling",
) -> Floats:
    r"""Bounds the expected loss around a local minimum (Theorem 1, Section 5.2).

    With probability at least $1 - \delta$ over the training set,

    $$\mathbb{E}_{w \sim \mathcal{Q}}[\mathcal{L}(\mathcal{D}, w)] \leq
        \mathcal{L}_0 + \mathcal{A}
        + 2 \sqrt{\frac{2 \mathcal{L}_0 + 2 \mathcal{A} + \ln \frac{2 N}{\delta}}{N - 1}}$$

    where $\mathcal{A}$ is `neighborhood_height`. Its docstring says how $\mathcal{A}$ as printed
    in Theorem 1 ("stirling") differs from the exact one of Appendix B: it is smaller, noticeably
    so only for small W.

    Read the number as the paper's theorem, for comparing minima. The PAC-Bayes theorem that it
    rests on (Theorem 2) asks for a loss in [0, 1], which cross-entropy may exceed, and for a prior
    chosen without the training set, while $\mathcal{M}(w_0)$ depends on it.

    Args:
        training_loss: $\mathcal{L}_0$, the mean training loss at the minimum, 0 or greater.
        log_determinant: $\gamma(w_0)$, of all W eigenvalues: what `extrapolate_log_determinant`
            makes of the estimate $\hat\gamma$. -inf, for a singular Fisher information, gives
            the limit, in which $\mathcal{A} = 0$.
        num_parameters: W, 1 or greater.
        num_samples: N, the size of the training set, 2 or greater.
        delta: The probability at which the bound may fail, in (0, 1].
        volume: V, the volume of the neighborhood, greater than 0. Give either this or
            `log_volume`.
        log_volume: The logarithm ln V, for a volume beyond the range of float64.
        gamma_function: "stirling", for Theorem 1 as printed, or "exact".

    Returns:
        The right-hand side, in nats; inf where it exceeds float64.

    Raises:
        ValueError: An argument is NaN or out of range, or not exactly one volume was given.

    Examples:
        Two minima of a network of 270,000 parameters with the same training loss. Nearly all
        that differs is how sharp they are.

        >>> gamma = [-3.6e6, -3.4e6]
        >>> flat, sharp = generalization_bound(0.01, gamma, 270_000, 50_000, 0.05, log_volume=0.0)
        >>> print(f"{flat:.4f} {sharp:.4f}")
        0.0569 0.0710
    """
    L0 = _not_negative("training_loss", training_loss)
    N = whole_number("num_samples", num_samples, 2)
    delta = _number("delta", delta, "in (0, 1]", lambda d: (d > 0) & (d <= 1))
    height = L0 + neighborhood_height(
        log_determinant,
        num_parameters,
        volume=volume,
        log_volume=log_volume,
        gamma_function=gamma_function,
    )
    with np.errstate(over="ignore"):
        return height + 2 * np.sqrt((2 * height + math.log(2 * N) - np.log(delta)) / (N - 1))


def extrapolate_log_determinant(
    log_determinant: ArrayLike, num_parameters: int, num_samples: int
) -> Floats:
    r"""Estimates $\gamma(w_0)$ from the log-determinants of samples (Equation 5, Section 5.3).

    $$\gamma(w_0) \approx \frac{W}{N'} \hat\gamma(w_0) + W \ln \frac{1}{W}, \qquad
    \hat\gamma(w_0) = \frac{1}{T} \sum_{t=1}^T \ln |\xi^t(w_0)|$$

    With all W examples of the imagined training set S' in the sample it is an equality. With
    fewer, drawn from S' at random, its limit as $T \rightarrow \infty$ is not $\gamma(w_0)$ but an
    upper bound of it: the mean of $\ln|\xi^t| / N'$ over all principal submatrices of one size
    never grows with that size (Szász's inequality).

    Args:
        log_determinant: $\hat\gamma(w_0)$, the mean of $\ln|\xi^t(w_0)|$ over the trials, where
            $\xi^t = \mathbf{J}_w \mathbf{J}_w^T$ is not divided by $N'$ or W; -inf gives -inf.
        num_parameters: W, 1 or greater.
        num_samples: N', the examples in a trial, from 1 to W: with more than W of them $\xi^t$ is
            always singular.

    Returns:
        The estimate of $\gamma(w_0)$, in nats.

    Raises:
        ValueError: An argument is NaN or out of range.

    Examples:
        >>> print(f"{extrapolate_log_determinant(-350.0, 270_000, 100):.4e}")
        -4.3217e+06
    """
    gamma = _log_determinant(log_determinant)
    W = whole_number("num_parameters", num_parameters, 1)
    N = whole_number("num_samples", num_samples, 1)
    if N > W:
        raise ValueError(
            "num_samples must be at most num_parameters, for with more examples than parameters "
            f"xi is singular. Given: num_samples={num_samples!r}, "
            f"num_parameters={num_parameters!r}."
        )
    return W * (gamma / N - math.log(W))


def fisher_information_approximation(
    training_loss: ArrayLike,
    log_determinant: ArrayLike,
    num_parameters: int,
    num_samples: int,
    *,
    volume: ArrayLike | None = None,
    log_volume: ArrayLike | None = None,
) -> Floats:
    r"""The FIA criterion of a local minimum, lower is better (Section 5.1.1).

    $$\text{FIA} = -\sum_{(x, y) \in \mathcal{S}} \mathbb{E}_{c_x \sim y} \ln p(x, c_x; w_0)
        + \frac{W}{2} \ln \frac{N}{2 \pi} + \ln V + \frac{\gamma(w_0)}{2}$$

    The last two terms are what $\ln \int_{\mathcal{M}(w_0)} \sqrt{|\mathcal{I}_w|} \, dw$ becomes
    where the loss is quadratic. The first is $N (\mathcal{L}_0 + \ln N)$, since
    $p(x, c_x; w) = p(c_x | x; w) / N$ (Section 4).

    Args:
        training_loss: $\mathcal{L}_0$, the mean training loss at the minimum, 0 or greater.
        log_determinant: $\gamma(w_0)$, of all W eigenvalues; -inf gives -inf.
        num_parameters: W, 1 or greater.
        num_samples: N, the size of the training set, 1 or greater.
        volume: V, the volume of the neighborhood, greater than 0. Give either this or
            `log_volume`.
        log_volume: The logarithm ln V, for a volume beyond the range of float64.

    Returns:
        The criterion, in nats.

    Raises:
        ValueError: An argument is NaN or out of range, or not exactly one volume was given.

    Examples:
        >>> fia = fisher_information_approximation(0.01, -20.0, 3, 1000, volume=0.001)
        >>> print(f"{fia:.3f}")
        6908.452
    """
    L0 = _not_negative("training_loss", training_loss)
    gamma = _log_determinant(log_determinant)
    W = whole_number("num_parameters", num_parameters, 1)
    N = whole_number("num_samples", num_samples, 1)
    log_V = _log_volume(volume, log_volume)
    return N * (L0 + math.log(N)) + W / 2 * math.log(N / (2 * math.pi)) + log_V + gamma / 2


def trace_upper_bound(trace: ArrayLike, num_parameters: int) -> Floats:
    r"""Bounds $\gamma(w_0)$ by the trace, which the regularizer lowers (Section 6).

    $$\gamma(w_0) = \ln |\mathcal{I}(w_0)| \leq
        W \left( \ln \text{tr}(\mathcal{I}(w_0)) - \ln W \right)$$

    This is the inequality of the arithmetic and the geometric mean of the eigenvalues, an equality
    where all of them are the same.

    Args:
        trace: $\text{tr}(\mathcal{I}(w_0))$, the mean over the examples of the squared gradient
            norm, 0 or greater; 0 gives -inf.
        num_parameters: W, 1 or greater.

    Returns:
        The upper bound of $\gamma(w_0)$, in nats.

    Raises:
        ValueError: An argument is NaN or out of range.

    Examples:
        The matrix diag(1, 3) has the logarithmic determinant ln 3 = 1.0986.

        >>> print(f"{trace_upper_bound(4.0, 2):.4f}")
        1.3863
    """
    trace = _not_negative("trace", trace)
    W = whole_number("num_parameters", num_parameters, 1)
    with np.errstate(divide="ignore"):
        return W * (np.log(trace) - math.log(W))


def _not_negative(name: str, value: ArrayLike) -> np.ndarray:
    return _number(name, value, "a finite number, 0 or greater", lambda v: (v >= 0) & (v < np.inf))


def _log_determinant(value: ArrayLike) -> np.ndarray:
    return _number(
        "log_determinant",
        value,
        "a finite number, or -inf for a singular matrix",
        lambda gamma: gamma < np.inf,
    )


def _log_volume(volume: ArrayLike | None, log_volume: ArrayLike | None) -> Floats:
    if (volume is None) == (log_volume is None):
        raise ValueError(
            "Give exactly one of volume and log_volume. "
            f"Given: volume={volume!r}, log_volume={log_volume!r}."
        )
    if volume is None:
        return _number("log_volume", log_volume, "a finite number", np.isfinite)
    return np.log(
        _number(
            "volume",
            volume,
            "a finite number greater than 0 (log_volume takes those beyond float64)",
            lambda v: (v > 0) & (v < np.inf),
        )
    )


def _number(
    name: str, value: Any, expected: str, holds: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.asarray(np.nan)  # which holds for nothing
    if not np.all(holds(array)):
        raise ValueError(f"{name} must be {expected}. Given: {name}={value!r}.")
    return array
