"""The products of all pairs of per-example gradients, which are never stored all at once."""

from collections.abc import Sequence

import tensorflow as tf

from fisher_keras.fisher.gradients import Factored, Gradients, for_new_graph

# How many products are added up in float32 before float64 takes over. Convolutions mostly have a
# multiple of as many columns: their kernels have 3 * 3 entries, and often 16 K channels.
_BLOCK = 768
# Columns are collected up to this many entries before they are multiplied: 16 MiB in float32.
_COLLECTED_ENTRIES = 2**22


def products_of_groups(groups: Sequence[list[Gradients]], float64: tf.Tensor) -> tf.Tensor:
    """Computes the `sum_of_products` of groups of weights, each in its own precision.

    Args:
        groups: The gradients of the weights of each of G groups, for the same N examples.
        float64: For each group, whether all its products are in float64, bool, shape (G,).

    Returns:
        Shape (G, N, N), float64.
    """
    products = []
    # The last layer's gradients are there first. One group after another, so that the blocks of
    # one are in memory at a time.
    for index, group in reversed(list(enumerate(groups))):
        with tf.control_dependencies(products[-1:]):
            # Branches are graphs inside of this one: what is made in one branch is unknown in
            # the other, hence `for_new_graph`.
            products.append(
                tf.cond(
                    float64[index],
                    lambda group=group: sum_of_products(for_new_graph(group), float64=True),
                    lambda group=group: sum_of_products(for_new_graph(group), float64=False),
                )
            )
    return tf.stack(products[::-1])


def sum_of_products(gradients: list[Gradients], float64: bool) -> tf.Tensor:
    """Adds up G G^T over the weights, where G has the per-example gradients of a weight.

    Args:
        gradients: The gradients of each weight, for the same N examples.
        float64: Whether all products are in float64. Otherwise, the products of float32 gradients
            are in float32, and added up in float64 after every 768. Cosines then have errors of
            about 1e-7 (less for many weights), and the time is halved.

    Returns:
        J J^T, shape (N, N), float64.
    """
    products = _Products(float64)
    # The last layer's gradients are there first.
    for part in reversed(gradients):
        if isinstance(part, Factored) and part.size[1] == 1:
            products.add(_product_of_factors(part))
            continue
        for block in part.blocks():
            # Blocks are made one after another, so that one is in memory at a time.
            with tf.control_dependencies(products.last):
                products.collect(block())
    return products.total()


def squared_norms(gradients: list[Gradients]) -> tf.Tensor:
    """Adds up the squared norms of per-example gradients over the weights.

    Args:
        gradients: The gradients of each weight, for the same N examples.

    Returns:
        The diagonal of J J^T, shape (N,), float64.
    """
    squares = []
    for part in reversed(gradients):
        if isinstance(part, Factored) and part.size[1] == 1:
            # The norm of x d^T is the product of the norms of x and d.
            x, delta = (_squares(tf.squeeze(factor, 1)) for factor in part.factors)
            squares.append(x * delta)
            continue
        for block in part.blocks():
            with tf.control_dependencies(squares[-1:]):
                squares.append(_squares(block()))
    return tf.add_n(squares)


def _squares(rows: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.square(tf.cast(rows, tf.float64)), axis=1)


class _Products:
    """Collects columns, and multiplies them as soon as there are enough."""

    def __init__(self, float64: bool) -> None:
        self._float64 = float64
        self._products = []
        self._collected = []
        self.last: list[tf.Tensor] = []  # What the next block waits for.

    def collect(self, columns: tf.Tensor) -> None:
        self.last = [columns]
        if columns.shape[1] % _BLOCK == 0:  # There is nothing to fill up with others.
            self._add_product(columns)
            return
        self._collected.append(columns)
        if sum(columns.shape.num_elements() for columns in self._collected) >= _COLLECTED_ENTRIES:
            self._multiply()

    def add(self, product: tf.Tensor) -> None:
        self._products.append(product)

    def total(self) -> tf.Tensor:
        if self._collected:
            self._multiply()
        return tf.add_n(self._products)

    def _multiply(self) -> None:
        # Variables may differ in dtype.
        for dtype in dict.fromkeys(columns.dtype for columns in self._collected):
            part = [columns for columns in self._collected if columns.dtype == dtype]
            part = tf.concat(part, axis=1) if len(part) > 1 else part[0]
            self._add_product(part)
        self._collected = []

    def _add_product(self, columns: tf.Tensor) -> None:
        float64 = self._float64 or columns.dtype == tf.float64
        self.add(_float64_product(columns) if float64 else _blocked_product(columns))
        self.last = self._products[-1:]


def _float64_product(columns: tf.Tensor) -> tf.Tensor:
    columns = tf.cast(columns, tf.float64)
    return tf.matmul(columns, columns, transpose_b=True)


def _blocked_product(columns: tf.Tensor) -> tf.Tensor:
    rows, count = columns.shape
    missing = -count % _BLOCK
    if missing:
        columns = tf.pad(columns, [[0, 0], [0, missing]])
    # One product in float32 for each block of shape (N, 768); their sum is in float64.
    blocks = tf.reshape(columns, [rows, (count + missing) // _BLOCK, _BLOCK])
    blocks = tf.transpose(blocks, [1, 0, 2])
    products = tf.matmul(blocks, blocks, transpose_b=True)
    return tf.reduce_sum(tf.cast(products, tf.float64), axis=0)


def _product_of_factors(part: Factored) -> tf.Tensor:
    """Computes <x_i d_i^T, x_j d_j^T> = <x_i, x_j> <d_i, d_j>, without any gradient."""
    x, delta = (tf.cast(tf.squeeze(t, 1), tf.float64) for t in part.factors)
    return tf.matmul(x, x, transpose_b=True) * tf.matmul(delta, delta, transpose_b=True)
