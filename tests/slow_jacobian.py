"""The Jacobian of the losses by one slow backward pass an example, and what it is taken of."""

import numpy as np
import tensorflow as tf

IMAGES = (8, 8, 4)


def jacobian(model, x, y, batches=None, loss=None):
    """Returns J in float64: reverse mode for each loss alone, in eager mode."""
    rows = []
    for batch in batches if batches is not None else [[i] for i in range(len(y))]:
        for place, i in enumerate(batch):
            with tf.GradientTape() as tape:
                outputs = model(x[np.array(batch)], training=batches is not None)
                outputs = tf.cast(outputs, tf.float64)[place]
                value = loss(outputs, y[i]) if loss else -tf.nn.log_softmax(outputs)[y[i]]
            gradients = tape.gradient(
                value, model.trainable_variables, unconnected_gradients="zero"
            )
            rows.append(
                [np.ravel(tf.convert_to_tensor(g).numpy()).astype(np.float64) for g in gradients]
            )
    return np.stack([np.concatenate(row) for row in rows])


def xi(gram):
    scale = np.exp(gram.log_scale.numpy())
    return scale[:, np.newaxis] * gram.matrix.numpy() * scale


def shake(model, seed=0):
    """Gives weights and moving statistics values that no initializer has."""
    generator = np.random.default_rng(seed)
    for v in model.variables:
        if v.dtype.startswith("float"):
            positive = "var" in v.name or "gamma" in v.name
            values = generator.random(v.shape) if positive else generator.normal(size=v.shape)
            v.assign(0.3 + values if positive else 0.3 * values)
    return model


def images(count=5, shape=IMAGES, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, *shape)).astype(np.float32)
    return x, generator.integers(0, classes, count)
