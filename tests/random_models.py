"""Small random Keras classifiers with data, drawn by hypothesis."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st
from keras import layers

ACTIVATIONS = st.sampled_from(["relu", "tanh", "gelu", "softplus", "linear"])
# Few sizes, so that numbers of examples, positions, channels and classes often are the same.
SIZES = st.integers(2, 5)


@dataclasses.dataclass(frozen=True)
class Case:
    """A classifier in float64 that gives logits or probabilities, and labelled examples.

    Attributes:
        layers: What is between the inputs and the last layer: kinds out of `LAYERS`, options.
        shape: Of an example.
        classes: K.
        probabilities: Whether it ends in softmax.
        positions: Whether there is a prediction at each position that the layers leave.
        labels: "classes", "column", "one hot" or "soft".
        count: N.
        seed: Of the weights and the data.
    """

    layers: tuple[tuple[Any, ...], ...]
    shape: tuple[int, ...]
    classes: int
    probabilities: bool
    positions: bool
    labels: str
    count: int
    seed: int

    def model(self) -> keras.Model:
        """Returns the classifier, its weights and moving statistics unlike any initializer's."""
        inputs = keras.Input(self.shape, dtype="float64")
        h = inputs
        for kind, options in self.layers:
            h = LAYERS[kind](h, **options)
        h = h if self.positions else layers.Flatten(dtype="float64")(h)
        ends_in = "softmax" if self.probabilities else None
        model = keras.Model(inputs, layers.Dense(self.classes, ends_in, dtype="float64")(h))
        generator = np.random.default_rng(self.seed)
        for v in model.variables:
            if v.dtype == "float64":
                values = 0.4 * generator.normal(size=v.shape)
                v.assign(0.5 + np.abs(values) if "variance" in v.path else values)
        return model

    def examples(self, positions: Any = ()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns inputs, labels in their form, and the most probable class of each.

        Args:
            positions: The sizes P of the predictions of an example.
        """
        generator = np.random.default_rng(self.seed + 1)
        x = generator.normal(size=(self.count, *self.shape))
        if len(self.shape) > 1:  # Sequences of several lengths, the rest of which is 0.
            x[::2, -1] = 0
        soft = generator.dirichlet(np.ones(self.classes), (self.count, *positions))
        hard = np.argmax(soft, axis=-1)
        y = {
            "classes": hard,
            "column": hard[..., np.newaxis],
            "one hot": np.eye(self.classes)[hard],
            "soft": soft,
        }
        return x, y[self.labels], hard


def _layer(make: Any) -> Any:
    return lambda h, **options: make(**options, dtype="float64")(h)


def _einsum_dense(h: Any, units: int) -> Any:
    kept = "abc"[: len(h.shape) - 1]
    equation = f"{kept}x,xy->{kept}y"
    shape = (*h.shape[1:-1], units)
    return layers.EinsumDense(equation, shape, "tanh", "y", dtype="float64")(h)


def _attention(h: Any, num_heads: int) -> Any:
    return h + layers.MultiHeadAttention(num_heads, 2, dtype="float64")(h, h)


def _residual(h: Any, activation: str) -> Any:
    return h + layers.Dense(h.shape[-1], activation, dtype="float64")(h)


def _twice(h: Any, activation: str) -> Any:
    shared = layers.Dense(h.shape[-1], activation, dtype="float64")
    return shared(shared(h))


def _masked(h: Any) -> Any:
    masked = layers.Masking(dtype="float64")(h)
    return layers.LSTM(3, return_sequences=True, dtype="float64")(masked)


def _sizes(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.reshape(x, [tf.shape(x)[0], -1]), axis=1)


def _in_order(x: tf.Tensor, function: Any) -> tf.Tensor:
    """Sorts the examples, as code for sequences of several lengths does, and sorts them back."""
    order = tf.argsort(_sizes(x))
    return tf.gather(function(tf.gather(x, order)), tf.argsort(order))


# An example then depends on others, or on their number.
INTERACTIONS = {
    "in order": lambda x: _in_order(x, lambda rows: tf.cumsum(rows, axis=0)),
    "largest": lambda x: x / (1 + tf.reduce_max(tf.abs(x))),
    "mean": lambda x: x - tf.reduce_mean(x, axis=0),
    "moments": lambda x: tf.nn.batch_normalization(x, *tf.nn.moments(x, [0]), None, None, 1e-3),
    "number": lambda x: x * tf.cast(tf.shape(x)[0], x.dtype),
    "previous": lambda x: x + tf.roll(x, 1, axis=0),
    "products": lambda x: x * tf.reduce_sum(_sizes(x)),
    "sorted": lambda x: tf.sort(x, axis=0),
}


def _function(h: Any, function: Any) -> Any:
    return layers.Lambda(function, output_shape=h.shape[1:], dtype="float64")(h)


LAYERS = {
    "dense": _layer(layers.Dense),
    "einsum dense": _einsum_dense,
    "convolution": _layer(layers.Conv2D),
    "1D convolution": _layer(layers.Conv1D),
    "depthwise": _layer(layers.DepthwiseConv2D),
    "transposed": _layer(layers.Conv2DTranspose),
    "batch norm": _layer(layers.BatchNormalization),
    "layer norm": _layer(layers.LayerNormalization),
    "unit norm": _layer(layers.UnitNormalization),
    "prelu": _layer(layers.PReLU),
    "attention": _attention,
    "residual": _residual,
    "shared": _twice,
    "lstm": _layer(layers.LSTM),
    "reversed gru": _layer(layers.GRU),
    "permute": _layer(layers.Permute),
    "dropout": _layer(layers.Dropout),
    "masked": _masked,
    "in order": lambda h: _function(h, lambda x: _in_order(x, tf.tanh)),
    "interaction": lambda h, name: _function(h, INTERACTIONS[name]),
}


def _options(kind: str, rank: int) -> dict[str, st.SearchStrategy]:
    conv = {
        "kernel_size": st.integers(1, 3),
        "strides": st.integers(1, 2),
        "padding": st.just("same"),  # Others may leave nothing of few positions.
        "activation": ACTIVATIONS,
        "use_bias": st.booleans(),
    }
    return {
        "dense": {"units": SIZES, "activation": ACTIVATIONS, "use_bias": st.booleans()},
        "einsum dense": {"units": SIZES},
        "convolution": {"filters": SIZES, **conv},
        "1D convolution": {"filters": SIZES, **conv},
        "depthwise": {"depth_multiplier": st.integers(1, 2), **conv},
        "transposed": {"filters": SIZES, **conv},
        "batch norm": {"scale": st.booleans(), "center": st.booleans()},
        "attention": {"num_heads": st.integers(1, 2)},
        "residual": {"activation": ACTIVATIONS},
        "shared": {"activation": ACTIVATIONS},
        "lstm": {"units": SIZES, "return_sequences": st.just(True)},
        "reversed gru": {
            "units": SIZES,
            "return_sequences": st.just(True),
            "go_backwards": st.just(True),
        },
        "permute": {"dims": st.permutations(range(1, rank + 1))},
        "dropout": {"rate": st.just(0.3)},
        "interaction": {"name": st.sampled_from(sorted(INTERACTIONS))},
    }.get(kind, {})


EVERYWHERE = [
    *("dense", "einsum dense", "batch norm", "layer norm", "prelu", "residual", "shared"),
    "in order",
]
KINDS = {
    1: [*EVERYWHERE, "unit norm"],
    2: [*EVERYWHERE, "1D convolution", "attention", "lstm", "reversed gru", "permute", "masked"],
    3: [*EVERYWHERE, "convolution", "depthwise", "transposed"],
}


@st.composite
def cases(
    draw: st.DrawFn,
    counts: st.SearchStrategy = SIZES,
    also: str | None = None,
    positions: bool = False,
) -> Case:
    """Draws a classifier and examples.

    Args:
        draw: Given by hypothesis.
        counts: Of numbers of examples.
        also: The kind of one more layer.
        positions: Whether there may be a prediction at each position.
    """
    rank = draw(st.integers(1, 3))
    shape = tuple(draw(st.lists(SIZES, min_size=rank, max_size=rank)))
    kinds = draw(st.lists(st.sampled_from(KINDS[rank]), max_size=3 if also is None else 2))
    if also is not None:
        kinds.insert(draw(st.integers(0, len(kinds))), also)
    chosen = []
    for kind in kinds:
        options = _options(kind, rank)
        chosen.append((kind, {name: draw(values) for name, values in options.items()}))
    return Case(
        layers=tuple(chosen),
        shape=shape,
        classes=draw(SIZES),
        probabilities=draw(st.booleans()),
        positions=positions and draw(st.booleans()),
        labels=draw(st.sampled_from(["classes", "column", "one hot", "soft"])),
        count=draw(counts),
        seed=draw(st.integers(0, 2**16)),
    )
