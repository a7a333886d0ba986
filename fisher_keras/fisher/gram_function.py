"""The traced function behind the Gram matrix: per-example gradients, and their products."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from fisher_keras.classifier import Classifier, stateless
from fisher_keras.classifier.batch_axis import interaction
from fisher_keras.classifier.inputs import ExamplesError, fitting, rows_of
from fisher_keras.classifier.labels import LabelledData
from fisher_keras.classifier.precision import rounding_of
from fisher_keras.fisher import verification
from fisher_keras.fisher.gradients import Explicit, Gradients, for_new_graph
from fisher_keras.fisher.gram_product import products_of_groups
from fisher_keras.fisher.layer_weights import weights_by_layer
from fisher_keras.fisher.per_example import TracedBatch
from fisher_keras.graph.tracing import concrete_function, signature, specs


class GramFunction:
    """Products of the per-example loss gradients of one classifier, traced once per data shape.

    The first call for each number and shape of examples verifies the gradients (`verification`).
    If the graph does not show that examples are independent, this may depend on their values, and
    each call verifies. If the structured gradients of a weight are wrong, the weight takes the
    fallback from then on: a backward pass for each example (`vectorized`). If this is wrong, too,
    the examples interact.

    Attributes:
        fallback_weights: Indices of the weights whose structured gradients failed.
        needed_float64: For each of G groups of weights, whether the last examples needed products
            in float64 (see `loss_gradient_gram`), shape (G,). It decides which precision is tried
            first, and changes no result.
    """

    def __init__(self, classifier: Classifier, training: bool, by_layer: bool = False) -> None:
        """Prepares the function.

        Args:
            classifier: A built classifier.
            training: See `loss_gradient_gram`.
            by_layer: Whether each layer's weights are a group, rather than all weights.
        """
        self._classifier = classifier
        self._training = training
        self._verified: set[str] = set()
        self._sequential = False
        self.fallback_weights: set[int] = set()
        model = classifier.model
        all_weights = [range(len(stateless.weights(model)))]
        self._groups = list(weights_by_layer(model).values()) if by_layer else all_weights
        self.needed_float64 = np.zeros(len(self._groups), bool)
        self._trace_anew()

    def take_fallback(self, indices: Iterable[int]) -> None:
        """Sets weights, by their index, whose gradients are taken example by example."""
        self.fallback_weights |= set(indices)
        self._trace_anew()

    def _trace_anew(self) -> None:
        self._traced = tf.function(self._evaluate, autograph=False)

    def __call__(
        self, data: LabelledData, chunk_size: int, float64: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Computes the products of all pairs of gradients.

        Args:
            data: N examples, the inputs a structure of tensors; labels in any form.
            chunk_size: The number of examples at a time, in pairs of chunks.
            float64: For each group, whether all products are taken in float64 (see
                `sum_of_products`), shape (G,), bool.

        Returns:
            The products of each group without the gradients' scale, shape (G, N, N), the scale's
            logarithms, shape (N,), and the logits, shape (N, *P, K), all float64. Also whether
            each position counts, shape (N, *P), booleans.

        Raises:
            ValueError: If labels or outputs are not valid.
        """
        count = len(data)
        chunks = [
            np.arange(first, min(first + chunk_size, count))
            for first in range(0, count, chunk_size)
        ]
        products = np.zeros([len(self._groups), count, count])
        log_scale = np.zeros([count])
        predictions = {}
        # Products within a chunk come with each pair that it is part of, and are the same.
        for pair in list(itertools.combinations(chunks, 2)) or [(chunks[0],)]:
            where = np.concatenate(pair)
            # In training mode each chunk is a batch; in inference mode examples do not interact.
            batches = pair if self._training else [where]
            xi, log_scale[where], *found = self._pair(data, batches, float64)
            products[:, where[:, np.newaxis], where] = xi
            predictions.update(zip(where, zip(*found, strict=True), strict=True))
        logits, counted = zip(*(predictions[row] for row in range(count)), strict=True)
        return products, log_scale, np.stack(logits), np.stack(counted)

    def _pair(
        self, data: LabelledData, batches: Sequence[np.ndarray], float64: np.ndarray
    ) -> tuple[tf.Tensor, tf.Tensor, np.ndarray, np.ndarray]:
        x = data.x
        # What a trace depends on. Each kind has a graph of its own, which is verified by itself.
        kind = repr((list(map(len, batches)), signature(x)))
        # In training mode gradients come from reverse mode itself: there is nothing to verify.
        verify = not (self._training or kind in self._verified)
        with fitting(self._classifier.model):
            found = self._run(data, batches, float64, verify)
        xi, log_scale, logits, counted, are_logits, distance, established, *errors = found
        self._classifier.check_values(are_logits, distance)
        if verify:
            wrong = set(verification.wrong_weights(errors[0].numpy()))
            independent = established and self._classifier.call_graph(x).independent
            same = independent or self._same_among_others(rows_of(x, batches[0]))
            # The fallback evaluates each example alone. If it is wrong within the batch, others
            # have a part in the example's gradient.
            if wrong & self.fallback_weights or not same:
                raise interaction(self._classifier.model, verification.DIFFERS_AMONG_FEWER)
            if wrong:  # Of an operation that is not used as its rule takes for granted.
                self.take_fallback(wrong)
                # A weight falls back once at most, so that this comes to an end.
                return self._pair(data, batches, float64)
            # What is zero everywhere agrees with everything.
            if established and errors[1].numpy().all():
                self._verified.add(kind)
        return xi, log_scale, logits.numpy(), counted.numpy()

    def _same_among_others(self, x: Any) -> bool:
        def logits(part: Any) -> list[np.ndarray]:
            return [self._classifier.predictions(part)[0].numpy()]

        rounding = rounding_of(self._classifier.model)
        return verification.same_among_others(logits, x, logits(x), rounding)

    def _run(self, data: LabelledData, batches: Sequence[np.ndarray], *options: Any) -> Any:
        chunks = [rows_of(data.x, rows) for rows in batches]
        # What positions there are is known once the model's call has been traced.
        labels, weights = ([tf.TensorSpec(None, t)] * len(batches) for t in (tf.int32, tf.bool))
        flags = list(map(tf.constant, options))
        concrete = concrete_function(self._traced, specs(chunks), labels, weights, *specs(flags))
        likelihood = self._classifier.likelihood(chunks[0])
        classes = likelihood.hard_labels(data.y, data.weights)
        counted = likelihood.counted(len(data), data.weights)
        try:
            return concrete(
                chunks,
                [tf.constant(classes[rows]) for rows in batches],
                [tf.constant(counted[rows]) for rows in batches],
                *flags,
            )
        except tf.errors.OpError:
            # What TensorFlow has vectorized may fail only when it runs: examples then take turns.
            if self._sequential:  # Then it is the model's own error.
                raise
            self._sequential = True
            self._trace_anew()
            return self._run(data, batches, *options)

    def _evaluate(
        self,
        chunks: list,
        labels: list[tf.Tensor],
        weights: list[tf.Tensor],
        float64: tf.Tensor,
        verify: tf.Tensor,
    ) -> list[tf.Tensor]:
        """Computes the products and, if they are verified, the errors of the gradients.

        One trace is used for both, because tracing a large network takes seconds.
        """
        batches = [
            TracedBatch(self._classifier, self._training, *part, self._sequential)
            for part in zip(chunks, labels, weights, strict=True)
        ]
        gradients = self._gradients(batches)
        results = [
            self._reduced(gradients, float64),
            tf.concat([batch.log_scale for batch in batches], axis=0),
            tf.concat([batch.logits.in_float64() for batch in batches], axis=0),
            tf.concat([batch.counted for batch in batches], axis=0),
            tf.reduce_all(tf.stack([batch.logits.are_logits for batch in batches])),
            tf.reduce_max(tf.stack([batch.distance for batch in batches])),
            tf.constant(all(batch.established for batch in batches)),
        ]
        if not self._training:
            rounding, number = rounding_of(self._classifier.model), len(gradients)
            results += tf.cond(
                verify,
                lambda: verification.relative_errors(
                    batches[0], for_new_graph(gradients), rounding
                ),
                lambda: (tf.zeros([number], tf.float64), tf.zeros([number], tf.bool)),
            )
        return results

    def _reduced(self, gradients: list[Gradients], float64: tf.Tensor) -> tf.Tensor:
        groups = [[gradients[index] for index in group] for group in self._groups]
        return products_of_groups(groups, float64)

    def _gradients(self, batches: list[TracedBatch]) -> list[Gradients]:
        if self._training:
            per_batch = [batch.with_interactions() for batch in batches]
            return [Explicit(tf.concat(parts, axis=0)) for parts in zip(*per_batch, strict=True)]
        # In inference mode a pair of chunks is a single batch.
        (batch,) = batches
        gradients = batch.structured()
        missing = [
            index
            for index, found in enumerate(gradients)
            if found is None or index in self.fallback_weights
        ]
        for index, found in zip(missing, batch.by_vectorized_map(missing), strict=True):
            gradients[index] = Explicit(found)
        return gradients


def check_finite(finite: np.ndarray, rows: np.ndarray) -> None:
    """Raises an ExamplesError unless the gradients of examples are finite.

    Args:
        finite: Whether the gradient of each example is finite, booleans, shape (n,).
        rows: The rows of the examples, shape (n,).
    """
    if not finite.all():
        raise ExamplesError(
            f"The losses of {np.sum(~finite)} of {len(rows)} {{units}} have no finite gradient, "
            "the first at {rows}. Look for NaN in those inputs, in the weights (a diverged "
            "training), and for labels of probability 0.",
            rows[~finite],
        )
