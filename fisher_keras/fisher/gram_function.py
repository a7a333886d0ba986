"""The traced function behind the Gram matrix: per-example gradients, and their products."""

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from fisher_keras.classifier import Classifier
from fisher_keras.classifier.labels import hard_labels
from fisher_keras.classifier.tracing import concrete_function, specs
from fisher_keras.fisher.gradients import Explicit, Gradients
from fisher_keras.fisher.gram_product import sum_of_products
from fisher_keras.fisher.per_example import Batch
from fisher_keras.fisher.verification import relative_errors, same_logits, wrong_weights


class GramFunction:
    """Products of the per-example loss gradients of one classifier, traced once a shape of data.

    The first call for each number and shape of examples verifies the gradients (`verification`).
    Weights whose structured ones are wrong take the fallback from then on: a backward pass for
    each example (`vectorized`). Where that is wrong, too, examples interact.

    Attributes:
        fallback_weights: Indices of the weights whose structured gradients failed.
        exact_was_needed: Whether it was for the last examples, see `loss_gradient_gram`. It tells
            what to try first, and changes no result.
    """

    def __init__(self, classifier: Classifier, training: bool) -> None:
        """Prepares the function.

        Args:
            classifier: A built classifier.
            training: See `loss_gradient_gram`.
        """
        self._classifier = classifier
        self._training = training
        self._verified: set[str] = set()
        self._traced: dict[bool, Any] = {}
        self.fallback_weights: set[int] = set()
        self.exact_was_needed = False

    def take_fallback(self, indices: Iterable[int]) -> None:
        """Takes the gradients of some weights, by their index, example by example."""
        self.fallback_weights |= set(indices)
        self._traced = {}

    def __call__(
        self, x: Any, y: Any, chunk_size: int, exact: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Computes the products of all pairs of gradients.

        Args:
            x: Inputs of N examples, a structure of tensors.
            y: Their labels, in any form.
            chunk_size: How many examples at a time, in pairs of chunks.
            exact: Whether all products are taken in float64, see `sum_of_products`.

        Returns:
            The products without the gradients' scale, shape (N, N), and the scale's logarithms,
            shape (N,), both float64.

        Raises:
            ValueError: If labels or outputs are not what they should be.
        """
        count = len(y)
        chunks = [
            np.arange(first, min(first + chunk_size, count))
            for first in range(0, count, chunk_size)
        ]
        products = np.zeros([count, count])
        log_scale = np.zeros([count])
        for pair in list(itertools.combinations(chunks, 2)) or [(chunks[0],)]:
            where = np.concatenate(pair)
            # In training mode each chunk is a batch; in inference mode examples do not interact.
            batches = pair if self._training else [where]
            xi, scale = self._pair(x, y, batches, exact)
            products[np.ix_(where, where)] = xi
            log_scale[where] = scale
        return products, log_scale

    def _pair(
        self, x: Any, y: Any, batches: Sequence[np.ndarray], exact: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if not self._training:
            self._verify(x, y, batches)
        traced = self._traced.get(exact)
        if traced is None:
            products = functools.partial(self._products, exact)
            traced = self._traced[exact] = tf.function(products, autograph=False)
        xi, log_scale, *to_check = self._run(traced, x, y, batches)
        self._classifier.check_values(*to_check)
        return xi, log_scale

    def _verify(self, x: Any, y: Any, batches: Sequence[np.ndarray]) -> None:
        """Makes sure of the gradients of this number of examples, or refuses to compute them."""
        (rows,) = batches
        kind = len(rows), *((leaf.shape[1:], leaf.dtype) for leaf in keras.tree.flatten(x))
        if repr(kind) in self._verified:
            return
        self._check_alone(x, rows)
        errors = tf.function(self._errors, autograph=False)
        off, seen = (result.numpy() for result in self._run(errors, x, y, batches))
        wrong = set(wrong_weights(off))
        if wrong & self.fallback_weights:
            raise ValueError(_interaction(self._classifier.model))
        if wrong:
            self.take_fallback(wrong)
            self._verify(x, y, batches)
        elif seen.all():  # What is zero everywhere agrees with everything.
            self._verified.add(repr(kind))

    def _check_alone(self, x: Any, rows: np.ndarray) -> None:
        """Raises a ValueError if an example from the middle is something else without others."""
        logits = self._classifier.logits
        middle = len(rows) // 2
        alone, together = logits(_rows(x, rows[[middle]])), logits(_rows(x, rows))[middle]
        if not same_logits(alone[0].numpy(), together.numpy()):
            raise ValueError(_interaction(self._classifier.model))

    def _run(self, function: Any, x: Any, y: Any, batches: Sequence[np.ndarray]) -> Any:
        chunks = [_rows(x, rows) for rows in batches]
        labels = [tf.TensorSpec([len(rows)], tf.int32) for rows in batches]
        concrete = concrete_function(function, specs(chunks), labels)
        classes = hard_labels(y, self._classifier.num_classes)  # Which the trace has found out.
        return concrete(chunks, [classes[rows] for rows in batches])

    def _products(self, exact: bool, chunks: list, labels: list[tf.Tensor]) -> tuple:
        batches = self._batches(chunks, labels)
        gradients = self._gradients(batches)
        log_scale = tf.concat([batch.log_scale for batch in batches], axis=0)
        are_logits = tf.reduce_all(tf.stack([batch.logits.are_logits for batch in batches]))
        distance = tf.reduce_max(tf.stack([batch.distance for batch in batches]))
        return sum_of_products(gradients, exact), log_scale, are_logits, distance

    def _errors(self, chunks: list, labels: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        (batch,) = self._batches(chunks, labels)
        return relative_errors(batch, self._gradients([batch]))

    def _batches(self, chunks: list, labels: list[tf.Tensor]) -> list[Batch]:
        return [
            Batch(self._classifier, self._training, x, y)
            for x, y in zip(chunks, labels, strict=True)
        ]

    def _gradients(self, batches: list[Batch]) -> list[Gradients]:
        if self._training:
            per_batch = [batch.coupled() for batch in batches]
            return [Explicit(tf.concat(parts, axis=0)) for parts in zip(*per_batch, strict=True)]
        (batch,) = batches
        gradients = batch.structured()
        missing = [
            index
            for index, found in enumerate(gradients)
            if found is None or index in self.fallback_weights
        ]
        for index, found in zip(missing, batch.one_by_one(missing), strict=True):
            gradients[index] = Explicit(found)
        return gradients


def _interaction(model: keras.Model) -> str:
    return (
        f"Examples of a batch interact in the model {model.name!r}, in inference mode, too, or it "
        "is random there: evaluated alone, an example gives something else than among others. "
        "Change the layer that does it, or use loss_gradient_gram(training=True), whose gradients "
        "take the effect on the others into account."
    )


def _rows(x: Any, rows: np.ndarray) -> Any:
    return keras.tree.map_structure(lambda values: tf.gather(values, rows), x)
