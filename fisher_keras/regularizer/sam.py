r"""Sharpness-aware minimization (SAM), the baseline of the regularizer, as a Keras model.

P. Foret, A. Kleiner, H. Mobahi and B. Neyshabur, "Sharpness-Aware Minimization for Efficiently
Improving Generalization", ICLR 2021; its adaptive form (ASAM): J. Kwon, J. Kim, H. Park and
I. K. Choi, "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep
Neural Networks", ICML 2021.
"""

from typing import Any

import keras
import tensorflow as tf

from fisher_keras.arguments import real_number
from fisher_keras.classifier import stateless
from fisher_keras.regularizer.logs import MeanOfKnown
from fisher_keras.regularizer.losses import Batch, Objective, prepare
from fisher_keras.regularizer.replicas import ReplicatedModel, overrides, replica_logs

RHO = {False: 0.05, True: 0.5}  # By `adaptive`: the papers' defaults, for CIFAR-10.
_ETA = 0.01  # ASAM's, which keeps weights of 0 from standing still.
_LOG_NAME = "sharpness"


@keras.saving.register_keras_serializable(package="fisher_keras")
class SharpnessAwareModel(ReplicatedModel):
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

    training_logs = (_LOG_NAME,)

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
        self.adaptive = bool(adaptive)
        self.rho = real_number("rho", RHO[self.adaptive] if rho is None else rho, above=0)
        self._sharpness = MeanOfKnown(name=_LOG_NAME)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that make this model again."""
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "rho": self.rho,
            "adaptive": self.adaptive,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SharpnessAwareModel":
        """Makes a model from what `get_config` returned."""
        model = keras.saving.deserialize_keras_object(config["model"])
        return cls(**{**config, "model": model})

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Does one step and returns the logs."""
        batch = Batch(*keras.utils.unpack_x_y_sample_weight(data))
        prepare(self, batch, own_loss=overrides(self.model, "compute_loss"))
        objective = Objective.of(self, None, batch)
        replica = objective.replica
        # Before the first pass moves it: the second is to see the same seeds.
        state = stateless.values(self.model.non_trainable_variables)
        statistics = replica.statistics(self.model)
        before = stateless.values(statistics)
        weights = stateless.values(stateless.weights(self.model))
        here = objective.unscaled(objective.whole_batch())
        loss, gradient = replica.add_up((here.loss, here.gradient))
        there = objective.loss_at(sharpest(weights, gradient, self.rho, self.adaptive), state)
        highest, gradient_there = replica.add_up((there.loss, there.gradient))
        gradient = [
            None if g is None else t for g, t in zip(gradient, gradient_there, strict=True)
        ]
        if objective.shares is not None:
            replica.agree(statistics, before, objective.shares.examples)
        gradient = objective.with_overwrites(objective.scaled(gradient), here)
        replica.apply(self.optimizer, gradient, self.trainable_weights)
        self._sharpness.update_state(highest - loss)
        tracker = next(metric for metric in self.metrics if metric.name == "loss")
        tracker.update_state(loss, sample_weight=batch.size())
        outputs = here.outputs[: batch.size()] if replica.count > 1 else here.outputs
        logs = self.compute_metrics(batch.x, batch.y, outputs, sample_weight=batch.sample_weight)
        return replica_logs(logs)


def sharpest(
    weights: list[tf.Tensor], gradient: list[tf.Tensor | None], rho: float, adaptive: bool
) -> list[tf.Tensor]:
    """Returns w + epsilon: to first order, where the loss is highest nearby.

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
