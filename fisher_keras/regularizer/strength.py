r"""Strength of the regularizer beside that which SGD has anyway.

With steps of a small learning rate $\eta$, SGD follows the gradient of
$L(w) + \frac{\eta}{4} \|g_B\|^2$, in the mean over mini-batches $B$ (S. L. Smith, B. Dherin,
D. G. T. Barrett and S. De, "On the Origin of Implicit Regularization in Stochastic Gradient
Descent", ICLR 2021, arXiv 2101.12176); $\beta R_\alpha$, its $g_i$ held constant, is
$\frac{\alpha \beta}{2}$ times the mean of $\|g_i\|^2$. Where noise dominates gradients, those of
$|B| / M$ examples are $\sqrt M$ times as long: the ratio of the two is
$2 \alpha \beta M / \eta$, with $R M$ for $M$ on $R$ replicas. It takes $|B|$ for larger than $M$,
and no momentum $m$: the learning rate is in effect $1 / (1 - m)$ times as large, the ratio smaller
by that. Far below 1, $\beta$ changes next to nothing.
"""

import tensorflow as tf


def explicit_to_implicit(
    alpha: float, beta: float | tf.Tensor, num_sub_batches: int, learning_rate: tf.Tensor
) -> tf.Tensor:
    """Returns the ratio of this regularizer's strength to that of SGD's own, float32 scalar.

    Args:
        alpha: Length of the steps along g_i.
        beta: Weight of the regularizer.
        num_sub_batches: M, of all replicas together.
        learning_rate: That of the step.
    """
    beta, learning_rate = tf.cast(beta, tf.float32), tf.cast(learning_rate, tf.float32)
    return 2 * alpha * beta * num_sub_batches / learning_rate
