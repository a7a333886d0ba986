r"""The likelihood of an example's labels, of which losses, errors and the labels' form follow.

A classifier gives an example one prediction, or one at each of several positions p: the words of
a text, the pixels of an image. Given the example these are independent, so that

$$-\ln p(y | x) = \sum_p -\ln \mathrm{softmax}(z_p)_{y_p},$$

over the positions that count. K labels that are yes or no each, as sigmoids give them (Bernoulli),
are K positions of two classes with the logits (0, z).
"""

import dataclasses
import math
from typing import Any

import numpy as np

_ROUNDING = 1e-3  # Of sums of labels that are distributions.


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The distribution of an example's labels, given its logits.

    Attributes:
        positions: Sizes of the axes of positions (*P); empty for one prediction an example.
        num_classes: C, the number of classes at each position.
        bernoulli: Whether the last of these axes are the labels of sigmoids.
    """

    positions: tuple[int, ...]
    num_classes: int
    bernoulli: bool = False

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the positions in arrays of N examples."""
        return tuple(range(1, 1 + len(self.positions)))

    def hard_labels(self, y: Any, weights: Any = None, what: str = "Labels") -> np.ndarray:
        """Returns the most probable class of each label (the paper's y-bar).

        Args:
            y: Classes, shape (N, *P) or (N, *P, 1), or distributions, shape (N, *P, C).
            weights: See `counted`; where a position does not count, neither does its label.
            what: Name of the labels, for errors.

        Returns:
            Shape (N, *P), int32.

        Raises:
            ValueError: If y does not fit.
        """
        y = self._checked(y, weights, what)
        classes = y if y.ndim == 1 + len(self.positions) else np.argmax(y, axis=-1)
        return classes.astype(np.int32)

    def distributions(
        self, y: Any, label_smoothing: float = 0.0, weights: Any = None
    ) -> np.ndarray:
        """Returns labels as distributions over the classes.

        Args:
            y: See `hard_labels`.
            label_smoothing: Share of each label that is spread evenly over the classes.
            weights: See `hard_labels`.

        Returns:
            Shape (N, *P, C), float64.

        Raises:
            ValueError: If y does not fit.
        """
        y = self._checked(y, weights)
        if y.ndim == 1 + len(self.positions):
            classes, y = y[..., np.newaxis], np.zeros([*y.shape, self.num_classes])
            np.put_along_axis(y, classes, 1, axis=-1)
        smooth = label_smoothing / self.num_classes
        return (1.0 - label_smoothing) * y.astype(np.float64) + smooth

    def counted(self, count: int, weights: Any = None, mask: Any = None) -> np.ndarray:
        """Returns which positions of N examples count.

        Args:
            count: N.
            weights: Sample weights of the positions, 0 or 1, shape (N, *P), of which trailing
                axes may be left out; None if all are 1. Those of whole examples are ignored.
            mask: Keras' mask of the model's outputs, shape (N, *P), likewise; None for none.

        Returns:
            Shape (N, *P), booleans.

        Raises:
            ValueError: If weights do not fit, or are others than 0 and 1.
        """
        result = np.ones([count, *self.positions], bool)
        if self.positions or (weights is not None and math.prod(np.shape(weights)[1:]) > 1):
            result &= self._over_positions(weights, count, check=True)
        return result & self._over_positions(mask, count)

    def check_weights(self, weights: Any) -> None:
        """Raises a ValueError if weights are those of whole examples, which `counted` ignores."""
        if weights is not None and (not self.positions or np.ndim(weights) < 2):
            raise ValueError(
                "sample_weight tells which positions count, 1 or 0, shape (N, *P): leave whole "
                f"examples out of x and y instead. Given: shape {np.shape(weights)}."
            )

    def _over_positions(self, values: Any, count: int, check: bool = False) -> np.ndarray:
        """Returns values (N, ...) as booleans that fit (N, *P) by broadcasting."""
        shape = (count, *self.positions)
        if values is None or (check and np.ndim(values) < 2):
            return np.ones([1] * len(shape), bool)
        values = np.asarray(values)
        if values.shape != shape[: values.ndim]:
            raise ValueError(
                f"Sample weights and masks of positions must be of shape {shape}, that of the "
                f"predictions. Given: {values.shape}."
            )
        if check and not np.isin(values, (0, 1)).all():
            other = values[~np.isin(values, (0, 1))][0]
            raise ValueError(
                "Sample weights of positions must be 1, or 0 for one that is left out: other "
                f"weights make no likelihood of labels. Given: a weight of {other}."
            )
        return values.astype(bool).reshape(values.shape + (1,) * (len(shape) - values.ndim))

    def _checked(self, y: Any, weights: Any, what: str = "Labels") -> np.ndarray:
        """Returns labels as classes (N, *P), integers, or as distributions (N, *P, C)."""
        y = np.asarray(y)
        rank = 1 + len(self.positions)
        if y.ndim == rank + 1 and y.shape[-1] == 1:
            y = y[..., 0]
        elif self.positions and y.ndim == rank - 1 and self.positions[-1] == 1:
            y = y[..., np.newaxis]
        counted = self.counted(len(y), weights)
        problem = label_problem(y, (len(y), *self.positions), self.num_classes, counted)
        if problem:
            raise ValueError(f"{what} must be {self._form()}. Given: {problem}.{self._hint(y)}")
        if y.ndim > rank:
            return y
        # What does not count may have any label, of which no index is to be made.
        return np.where(counted, y, 0).astype(np.int64)

    def _form(self) -> str:
        sizes = "".join(f"{size}, " for size in self.positions)
        return (
            f"classes 0..{self.num_classes - 1} of the model, shape "
            f"(N, {sizes.removesuffix(', ')}), or distributions over them, shape "
            f"(N, {sizes}{self.num_classes})"
        ).replace("(N, )", "(N,)")

    def _hint(self, y: np.ndarray) -> str:
        if not self.positions and y.ndim == 2 and np.isin(y, (0, 1)).all():
            return (
                " If these are labels that are yes or no each, give "
                "Classifier(model, likelihood='bernoulli')."
            )
        if not self.bernoulli or y.ndim > len(self.positions):
            return ""
        count = self.positions[-1]
        return (
            f" The model gives {count} labels that are yes or no each, as by a sigmoid of {count} "
            "outputs: for one class, end it in a softmax."
        )


def check_some_count(counted: np.ndarray, name: str = "the data") -> None:
    """Raises a ValueError if no position counts.

    Args:
        counted: Whether each does.
        name: Name of the data.
    """
    if not counted.any():
        raise ValueError(
            f"No position of {name} counts: sample weights or Keras' mask leave out all of them. "
            f"Give others. Given: {counted.size} positions."
        )


def label_problem(
    y: np.ndarray, shape: tuple[int, ...], num_classes: int | None, counted: np.ndarray
) -> str | None:
    """Describes the first invalid label; None if all are valid.

    Args:
        y: Classes or distributions.
        shape: That of classes, (N, *P).
        num_classes: C; None if it is not known.
        counted: Whether each position counts, of that shape.
    """
    if y.dtype.kind not in "biuf":
        return f"dtype {y.dtype}; number the classes, as np.unique(y, return_inverse=True)[1] does"
    values = y.astype(np.float64)
    if y.shape == shape:
        limit = np.inf if num_classes is None else num_classes
        right = (values >= 0) & (values < limit) & (values == np.floor(values))
    elif y.shape[:-1] == shape and num_classes in (None, y.shape[-1]):
        right = (values >= 0).all(axis=-1) & (np.abs(values.sum(axis=-1) - 1) < _ROUNDING)
    else:
        return f"shape {y.shape}"
    if (right | ~counted).all():
        return None
    first, *position = np.argwhere(~right & counted)[0].tolist()
    at = f" at position {tuple(position)}" if position else ""
    return f"label {y[(first, *position)]} for example {first}{at}"
