"""What the training logs show of an epoch's steps."""

import keras
import tensorflow as tf


class MeanOfKnown(keras.metrics.Mean):
    """Mean of the values that are not NaN; NaN if there is none."""

    def update_state(self, value: tf.Tensor) -> None:
        """Adds the value of a step."""
        known = ~tf.math.is_nan(value)
        super().update_state(tf.where(known, value, 0), sample_weight=tf.cast(known, value.dtype))

    def result(self) -> tf.Tensor:
        """Returns the mean so far."""
        return self.total / self.count
