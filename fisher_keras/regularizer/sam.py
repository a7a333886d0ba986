r"""Sharpness-aware minimization (SAM), the baseline of the regularizer, as a Keras model.

P. Foret, A. Kleiner, H. Mobahi and B. Neyshabur, "Sharpness-Aware Minimization for Efficiently
Improving Generalization", ICLR 2021; its adaptive form (ASAM): J. Kwon, J. Kim, H. Park and
I. K. Choi, "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep
Neural Networks", ICML 2021.
"""

import keras
import tensorflow as tf

from fisher_keras.regularizer.losses import BatchLosses
from fisher_keras.regularizer.options import Option, positive
from fisher_keras.regularizer.step import TrainingMethod
from fisher_keras.regularizer.step_types import Step

RHO = {False: 0.05, True: 0.5}  # By `adaptive`: the papers' defaults, for CIFAR-10.
_ETA = 0.01  # ASAM's, which keeps weights of 0 from standing still.


@keras.saving.register_keras_serializable(package="fisher_keras")
class SharpnessAwareModel(TrainingMethod):
    r"""A Keras classifier trained by sharpness-aware minimization.

    Wraps any Keras classifier, as `FisherRegularizedModel` does; `compile`, `fit`,
    `train_on_batch`, `evaluate` and `predict` are Keras' own. A training step follows

    $$\nabla_w L(B, w + \epsilon), \qquad
        \epsilon = \rho\, \frac{\nabla_w L(B, w)}{\|\nabla_w L(B, w)\|},$$

    the gradient of $\max_{\|\epsilon\| \le \rho} L(B, w + \epsilon)$ to first order, with
    $\epsilon$ held constant: two gradients a step. The adaptive form measures $\epsilon$ in units
    of the weights, $T = \mathrm{diag}(|w_k| + 0.01)$: $\epsilon = \rho\, T^2 g / \|T g\|$.

    L is the compiled loss, any of Keras', with all penalties of the model. At both weights the
    same examples are dropped out, and BatchNormalization takes its moments from the batch; its
    moving statistics, like the seeds of dropout, end a step as they would without SAM. The logs
    are of w, and have `sharpness`, $L(B, w + \epsilon) - L(B, w)$, as a mean over the epoch's
    steps.

    Under a `tf.distribute.MirroredStrategy` or `MultiWorkerMirroredStrategy` epsilon is that of
    the whole batch, the same on all replicas; see docs/several_devices.md.

    Attributes:
        model: The plain Keras classifier, to be saved, evaluated or served without this class.

    Examples:
        >>> classifier = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> model = SharpnessAwareModel(classifier, rho=0.05)
        >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> history = model.fit(np.ones((32, 8)), np.arange(32) % 3, verbose=0)
        >>> model.model.save("classifier.keras")
    """

    training_logs = ("sharpness",)
    rho = Option(positive)
    adaptive = Option(lambda _, value: bool(value))

    def __init__(
        self,
        model: keras.Model,
        rho: float | None = None,
        adaptive: bool = False,
        name: str | None = None,
    ) -> None:
        """Wraps a classifier.

        Args:
            model: A Keras classifier with one output.
            rho: Length of the step to w + epsilon (rho), > 0; by default 0.05, SAM's for CIFAR-10
                and CIFAR-100, or 0.5 if it is adaptive, ASAM's for CIFAR-10.
            adaptive: Whether it is ASAM.
            name: Name of the model.

        Raises:
            ValueError: If an argument is out of range; the message says what was expected.
        """
        super().__init__(model, name)
        self.adaptive = adaptive
        self.rho = RHO[self.adaptive] if rho is None else rho

    def step(self, losses: BatchLosses) -> Step:
        """Returns the gradient at w + epsilon."""
        here = losses.whole_batch_sum()
        there = losses.at(
            perturbed_weights(losses.weights, here.gradient, self.rho, self.adaptive)
        )
        # Keras warns of a weight that the loss does not depend on, and leaves it alone.
        gradient = [
            None if g is None else t for g, t in zip(here.gradient, there.gradient, strict=True)
        ]
        logs = {"sharpness": there.loss - here.loss}
        return Step(here.loss, gradient, here.outputs, logs)


def perturbed_weights(
    weights: list[tf.Tensor], gradient: list[tf.Tensor | None], rho: float, adaptive: bool
) -> list[tf.Tensor]:
    """Returns w + epsilon: to first order, the weights of the highest loss nearby.

    Args:
        weights: w.
        gradient: That of the loss at w; None where it does not depend on a weight.
        rho: Length of epsilon.
        adaptive: Whether that is measured in units of the weights.

    Returns:
        The other weights; w itself where the gradient is zero.
    """
    units = [tf.abs(w) + _ETA if adaptive else tf.ones_like(w) for w in weights]
    directions = [None if g is None else t * g for g, t in zip(gradient, units, strict=True)]
    norm = tf.linalg.global_norm(directions)
    return [
        w if d is None else w + tf.math.divide_no_nan(rho * t * d, tf.cast(norm, d.dtype))
        for w, d, t in zip(weights, directions, units, strict=True)
    ]
