"""The traced function behind the Gram matrix: per-example gradients, and their products."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from fisher_keras.classifier import stateless
from fisher_keras.classifier.logits import FromLogits, check_outputs, find_logits
from fisher_keras.classifier.model_functions import concrete_function
from fisher_keras.fisher.gram_product import sum_of_products
from fisher_keras.fisher.per_example import Batch
from fisher_keras.fisher.rules import Gradients, Sum

# Per-example gradients that agree with reverse mode to within rounding differ by about 1e-5 of
# the largest entry in float32 and 1e-2 in half precision; a wrong one by about 1.
_TOLERANCE = 0.05


class GramFunction:
    """Products of the per-example loss gradients of one model, traced once a shape of its data.

    The first call verifies the structured gradients (`structured`) against reverse mode, for a
    random combination of the examples; weights for which they fail take the general way from then
    on: a backward pass for each example (`vectorized`).

    Attributes:
        num_classes: K of the outputs, known once there was a call.
        general_weights: Indices of the weights whose structured gradients failed.
        exact: Whether all products are taken in float64, see `sum_of_products`.
    """

    def __init__(
        self,
        model: keras.Model,
        from_logits: FromLogits,
        training: bool,
        normalize_logits: float | None,
    ) -> None:
        """Prepares the function; the arguments are those of `loss_gradient_gram`."""
        self._model = model
        self._from_logits = from_logits
        self._training = training
        self._normalize_logits = normalize_logits
        self.general_weights: set[int] = set()
        self._verified = False
        self._function = None
        self.num_classes = None
        self.exact = False

    def take_general_way(self, indices: Iterable[int]) -> None:
        """Takes the gradients of some weights, by their index, example by example."""
        self.general_weights |= set(indices)
        self._function = None

    def make_exact(self) -> None:
        """Takes all products in float64 from now on."""
        self.exact = True
        self._function = None

    def __call__(
        self, chunks: Sequence[Any], labels_of: Callable[[int], Sequence[tf.Tensor]]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the Gram matrix.

        Args:
            chunks: Inputs of the examples; each is evaluated as a batch of its own.
            labels_of: Takes K and returns each chunk's labels, int32, shape (n,).

        Returns:
            The products of all pairs of gradients without their scale, shape (N, N), and the
            scale's logarithms, shape (N,), both float64.

        Raises:
            ValueError: If outputs are not what `from_logits` and `normalize_logits` need.
        """
        count = sum(keras.tree.flatten(x)[0].shape[0] for x in chunks)
        # One example has no neighbour that its gradient could be mistaken for.
        if not (self._verified or self._training) and count > 1:
            errors = self._run(tf.function(self._errors, autograph=False), chunks, labels_of)
            self.take_general_way((errors.numpy() > _TOLERANCE).nonzero()[0].tolist())
            self._verified = True
        if self._function is None:
            self._function = tf.function(self._products, autograph=False)
        products, log_scale, are_logits, distance = self._run(self._function, chunks, labels_of)
        check_outputs(bool(are_logits), float(distance), self._normalize_logits)
        return products, log_scale

    def _run(self, function: Any, chunks: Sequence[Any], labels_of: Callable) -> Any:
        x = keras.tree.map_structure(_spec, list(chunks))
        sizes = [keras.tree.flatten(chunk)[0].shape[0] for chunk in chunks]
        labels = [tf.TensorSpec([size], tf.int32) for size in sizes]
        # A concrete function is a graph even where the user asked for eager functions.
        concrete = concrete_function(function, x, labels)
        return concrete(list(chunks), list(labels_of(self.num_classes)))

    def _products(self, chunks: list, labels: list[tf.Tensor]) -> tuple:
        batches, weights = self._batches(chunks, labels)
        gradients = self._gradients(batches, weights)
        log_scale = tf.concat([batch.log_scale for batch in batches], axis=0)
        are_logits = tf.reduce_all(tf.stack([batch.are_logits for batch in batches]))
        distance = tf.reduce_max(tf.stack([batch.distance for batch in batches]))
        return sum_of_products(gradients, self.exact), log_scale, are_logits, distance

    def _errors(self, chunks: list, labels: list[tf.Tensor]) -> tf.Tensor:
        (batch,), weights = self._batches(chunks, labels)
        return batch.errors(batch.structured_gradients(weights), weights)

    def _batches(
        self, chunks: list, labels: list[tf.Tensor]
    ) -> tuple[list[Batch], list[tf.Tensor]]:
        model = self._model
        weights = stateless.values(model.trainable_variables)
        state = stateless.values(model.non_trainable_variables)

        def logits_of(x: Any, weights: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            with stateless.scope(model, weights, state):
                outputs = stateless.apply(model, x, self._training)
            return find_logits(outputs, self._from_logits, self._normalize_logits)

        batches = [
            Batch(logits_of, x, y, weights, self._normalize_logits)
            for x, y in zip(chunks, labels, strict=True)
        ]
        self.num_classes = max(2, batches[0].logits.shape[-1])
        return batches, weights

    def _gradients(self, batches: list[Batch], weights: list[tf.Tensor]) -> list[Gradients]:
        if self._training:
            per_batch = [batch.coupled_gradients(weights) for batch in batches]
            return [Sum(tf.concat(parts, axis=0)) for parts in zip(*per_batch, strict=True)]
        (batch,) = batches
        gradients = batch.structured_gradients(weights)
        general = [
            index
            for index, found in enumerate(gradients)
            if found is None or index in self.general_weights
        ]
        for index, found in zip(general, batch.general_gradients(weights, general), strict=True):
            gradients[index] = Sum(found)
        return gradients


def _spec(values: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec(values.shape, values.dtype)
