"""The regularizer and the metrics for a Transformer, on sequences made by a rule."""

# %% [markdown]
# # A Transformer on sequences
#
# Nothing in the package is about images. Here a small Transformer (token and position embeddings,
# self-attention, layer normalization, dropout) learns a rule about sequences of tokens. It is
# trained with the regularizer, and then its minimum is evaluated.
#
# Run it with `python examples/transformer.py`. It takes half a minute on two cores, and there is
# nothing to download.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers

from fisher_keras import FisherRegularizedModel, evaluate_local_minimum

SEED = 0
NUM_TOKENS, LENGTH, NUM_CLASSES = 10, 16, 4

# %% [markdown]
# ## Sequences
#
# The tokens 0 to 3 stand for the classes, and the others mean nothing. The class of a sequence is
# the *first* token that stands for a class. A network must find such tokens and know where they
# are.

# %%
rng = np.random.default_rng(SEED)


def draw(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws sequences, shape (size, LENGTH), and their classes, shape (size,)."""
    x = rng.integers(NUM_TOKENS, size=(size, LENGTH), dtype="int32")
    x[:, -1] = rng.integers(NUM_CLASSES, size=size)  # So that each sequence has a class.
    first = (x < NUM_CLASSES).argmax(axis=1)
    return x, x[np.arange(size), first]


x_train, y_train = draw(400)
x_test, y_test = draw(2000)
print(f"{x_train[0]} is of class {y_train[0]}")

# %% [markdown]
# ## The Transformer
#
# It is an ordinary functional Keras model of one block. A custom layer adds the positions.


# %%
class TokensAndPositions(layers.Layer):
    """Adds up the embeddings of a token and of its position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = layers.Embedding(NUM_TOKENS, width)
        self.positions = layers.Embedding(LENGTH, width)

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Takes tokens, shape (N, LENGTH), to vectors, shape (N, LENGTH, width)."""
        return self.tokens(x) + self.positions(keras.ops.arange(LENGTH))


def new_transformer(width: int = 24) -> keras.Model:
    """Makes a Transformer that always has the same initial weights."""
    keras.utils.set_random_seed(SEED)
    tokens = keras.Input((LENGTH,), dtype="int32")
    x = TokensAndPositions(width)(tokens)
    attended = layers.MultiHeadAttention(num_heads=2, key_dim=width // 2, dropout=0.1)(x, x)
    x = layers.LayerNormalization()(x + attended)
    hidden = layers.Dense(2 * width, activation="gelu")(x)
    x = layers.LayerNormalization()(x + layers.Dropout(0.1)(layers.Dense(width)(hidden)))
    logits = layers.Dense(NUM_CLASSES)(layers.GlobalAveragePooling1D()(x))
    return keras.Model(tokens, logits)


# %% [markdown]
# ## Training
#
# Dropout hits a sub-batch in the same places at $w$ and at $w - \alpha g_i$, so that the
# difference of the two gradients is the regularizer's and not the dropout's. With Adam, the
# strength is given as `beta`, because `strength` is relative to SGD. With hard labels, the
# training loss has no minimum. Therefore the labels are smoothed.

# %%
transformer = new_transformer()
model = FisherRegularizedModel(transformer, beta=10.0, num_sub_batches=5, seed=SEED)
model.compile(
    keras.optimizers.Adam(0.003),
    keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
)
labels = keras.utils.to_categorical(y_train, NUM_CLASSES)
history = model.fit(x_train, labels, batch_size=50, epochs=40, verbose=0).history
print(f"training loss {history['loss'][-1]:.4f}")

# %%
figure, (top, bottom) = plt.subplots(2, sharex=True, figsize=(6, 5), layout="constrained")
epochs = np.arange(1, len(history["loss"]) + 1)
top.plot(epochs, history["loss"])
top.set(ylabel="training loss (nats)")
bottom.semilogy(epochs, history["fisher_trace"])
bottom.set(xlabel="epoch", ylabel="trace of the Fisher information")

# %% [markdown]
# Smoothed labels have an entropy, which is 0.35 nats here. The training loss cannot become
# smaller. The regularizer makes the trace of the Fisher information small.
#
# ## The minimum
#
# The weights of embeddings, attention and normalizations are all in $\xi = J J^T$, and the
# gradient of each example is exact. With `label_smoothing`, the report compares the training loss
# with the smallest loss that the smoothed labels allow.

# %%
report = evaluate_local_minimum(
    transformer,
    (x_train, y_train),
    num_trials=5,
    seed=SEED,
    test_data=(x_test, y_test),
    label_smoothing=0.1,
    progress=False,
)
print(report)

# %%
axes = plt.figure(figsize=(6, 3.5), layout="constrained").subplots()
report.plot_spectrum(axes)

# %% [markdown]
# A single $\hat\gamma$ (`log_determinant`) means nothing. It is for comparisons:
# [Which of my networks generalizes best?](../docs/comparing_minima.md) explains them.
# [Training with wrong labels](wrong_labels.md) and [small batches](small_batches.md) compare plain
# and regularized training with several seeds.
