"""Linear dependence among per-example gradients, which makes a Gram matrix singular."""

import dataclasses
import warnings
from collections.abc import Iterable

import numpy as np

from fisher_keras.fisher.gram import FisherGram

# An example takes part in a linear dependence from this share of the largest coefficient on.
_PARTICIPATION = 1e-2
_MAX_LISTED = 10


class SingularGramWarning(UserWarning):
    """The Gram matrix xi of a sample is singular: its log-determinant is -inf."""


@dataclasses.dataclass(frozen=True)
class LinearDependence:
    """The examples whose gradients make xi singular, by row. Its old name is `Dependence`.

    Attributes:
        zero: Examples whose gradient is zero.
        parallel: Groups of examples whose gradients have the same or the opposite direction, such
            as repeated examples.
        dependent: Examples whose gradients are linearly dependent in another way.
        epsilon: Relative rounding of the gradients (see `FisherGram`).
    """

    zero: tuple[int, ...]
    parallel: tuple[tuple[int, ...], ...]
    dependent: tuple[int, ...]
    epsilon: float = 2.0**-23

    @classmethod
    def of_all(cls, dependences: Iterable["LinearDependence"]) -> "LinearDependence":
        """Returns the union of several dependences."""
        several = list(dependences)
        return cls(
            tuple(sorted({row for d in several for row in d.zero})),
            tuple(sorted({group for d in several for group in d.parallel})),
            tuple(sorted({row for d in several for row in d.dependent})),
            max((d.epsilon for d in several), default=2.0**-23),
        )

    def __bool__(self) -> bool:
        """Returns whether there are any such examples."""
        return bool(self.zero or self.parallel or self.dependent)

    def __str__(self) -> str:
        """Returns a text with a clause for each kind of dependence."""
        return self.describe("example")

    def describe(self, unit: str) -> str:
        """Returns this text for rows of units, "example" or "position"."""
        clauses = []
        if self.zero:
            clauses.append(f"the gradient is zero for {_listed(self.zero, unit)}")
        for group in self.parallel[:_MAX_LISTED]:
            clauses.append(
                f"gradients are parallel (a repeated {unit}?) for {_listed(group, unit)}"
            )
        if len(self.parallel) > _MAX_LISTED:
            clauses.append(f"and for {len(self.parallel) - _MAX_LISTED} more groups")
        if self.dependent:
            clauses.append(f"gradients are linearly dependent for {_listed(self.dependent, unit)}")
        if self.epsilon > 2.0**-23:
            clauses.append(
                f"the model computes with a rounding of {self.epsilon:.2g}: in float32 (on a GPU "
                "with tf.config.experimental.enable_tensor_float_32_execution(False)) more can be "
                "told apart"
            )
        return "; ".join(clauses)


def rank_tolerance(gram: FisherGram) -> float:
    """Returns the largest eigenvalue of the cosines that may be rounding: N' eps^2.

    eps is the rounding of the gradients (see `log_determinant`).
    """
    return len(gram.log_scale) * gram.epsilon**2


def is_singular(gram: FisherGram) -> bool:
    """Returns whether xi is singular: a gradient is zero, or an eigenvalue may be rounding."""
    return bool(np.isneginf(gram.log_scale).any()) or not gram.eigenvalues_exceed(
        rank_tolerance(gram)
    )


def find_dependence(gram: FisherGram, examples: np.ndarray | None = None) -> LinearDependence:
    """Finds the examples whose gradients are zero or depend linearly on the others'.

    Args:
        gram: The Gram matrix of N' examples.
        examples: Their rows in the data, shape (N',), integers; None counts them from 0.

    Returns:
        The examples. If xi is regular, there are none, and the result is false.
    """
    matrix, log_scale = np.asarray(gram.matrix), np.asarray(gram.log_scale)
    names = np.arange(len(log_scale)) if examples is None else np.asarray(examples)
    if np.isnan(matrix).any() or np.isnan(log_scale).any():
        raise ValueError(
            "The Gram matrix holds NaN, because the model's outputs or gradients did. Check the "
            "inputs, and whether training has diverged."
        )
    if not is_singular(gram):  # The usual case.
        return LinearDependence((), (), ())
    tolerance = rank_tolerance(gram)
    zero = np.isneginf(log_scale)
    # One of each group stands for it below: what is dependent among these is so in another way.
    groups = _parallel_groups(matrix, np.flatnonzero(~zero), tolerance)
    first = np.array([group[0] for group in groups], dtype=int)
    values, vectors = np.linalg.eigh(matrix[np.ix_(first, first)])
    # The eigenvector of a zero eigenvalue holds the coefficients of a vanishing sum of gradients.
    coefficients = np.abs(vectors[:, values <= tolerance])
    # `initial` is for a matrix without rows, which is left where all gradients are zero.
    least = _PARTICIPATION * coefficients.max(axis=0, initial=0.0)
    taking_part = (coefficients > least).any(axis=1)
    return LinearDependence(
        tuple(names[zero].tolist()),
        tuple(tuple(names[group].tolist()) for group in groups if len(group) > 1),
        tuple(names[first[taking_part]].tolist()),
        gram.epsilon,
    )


def warn_if_singular(gram: FisherGram) -> bool:
    """Returns whether xi is singular, and warns of the examples that make it so."""
    dependence = find_dependence(gram)
    if dependence:
        warnings.warn(
            f"The Fisher information of this sample is singular, its log-determinant -inf: "
            f"{dependence} (rows of the sample, from 0).",
            SingularGramWarning,
            stacklevel=3,
        )
    return bool(dependence)


def _parallel_groups(matrix: np.ndarray, rows: np.ndarray, tolerance: float) -> list[list[int]]:
    """Splits rows into groups of parallel gradients, most of them of one."""
    groups = []
    left = list(rows)
    while left:
        # The smaller eigenvalue of two unit gradients with cosine c is 1 - |c|: the tolerance is
        # the one for the whole matrix.
        parallel = 1.0 - np.abs(matrix[left[0], left]) <= tolerance
        # Each turn must take a row away, or the loop would not end.
        parallel[0] = True
        groups.append([row for row, here in zip(left, parallel, strict=True) if here])
        left = [row for row, here in zip(left, parallel, strict=True) if not here]
    return groups


def _listed(rows: tuple[int, ...], unit: str) -> str:
    listed = ", ".join(map(str, rows[:_MAX_LISTED]))
    more = len(rows) - _MAX_LISTED
    return f"{unit}s {listed}" + (f" and {more} more" if more > 0 else "")
