"""A training method in a few lines, as a user would add one."""

import keras
import tensorflow as tf

from fisher_keras.regularizer.arithmetic import global_norm
from fisher_keras.regularizer.options import Option, positive
from fisher_keras.regularizer.step import TrainingMethod
from fisher_keras.regularizer.step_types import Step


@keras.saving.register_keras_serializable(package="tests")
class GradientNormPenalty(TrainingMethod):
    """Descends L + strength ||grad L||, whose second part is differentiated by a difference.

    Y. Zhao, H. Zhang and X. Hu, "Penalizing Gradient Norm for Efficiently Improving
    Generalization in Deep Learning", ICML 2022.
    """

    training_logs = ("penalty",)
    strength = Option(positive)
    step_length = Option(positive)

    def __init__(self, model, strength=0.1, step_length=1e-2, name=None):
        super().__init__(model, name)
        self.strength, self.step_length = strength, step_length

    def step(self, losses):
        here = losses.whole_batch_sum()
        norm, r = global_norm(here.gradient), self.step_length
        there = losses.at(
            [
                w if g is None else w + r * tf.math.divide_no_nan(g, tf.cast(norm, g.dtype))
                for w, g in zip(losses.weights, here.gradient, strict=True)
            ]
        )
        gradient = [
            None if g is None else g + self.strength / r * (t - g)
            for g, t in zip(here.gradient, there.gradient, strict=True)
        ]
        return Step(here.loss, gradient, here.outputs, {"penalty": self.strength * norm})
