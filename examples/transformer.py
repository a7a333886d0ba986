"""The metrics and the regularizer for a Transformer, on sequences made by a rule."""

# %% [markdown]
# # A Transformer on sequences
#
# Nothing in the package is about images. Here a small Transformer (token and position embeddings,
# self-attention, layer normalization, dropout) learns a rule about sequences of tokens. It is
# trained twice from the same weights, with and without the regularizer; then the two minima are
# compared.
#
# Run it with `python examples/transformer.py`: half a minute on two cores, and nothing to
# download.

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
# The tokens 0 to 3 are the classes; the others mean nothing. A sequence is of the class of the
# *first* token that is one: a network must find such tokens, and know where they are.

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
# An ordinary functional Keras model of one block. Positions are counted in a layer of its own.


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
# A sub-batch is dropped out in the same places at $w$ and at $w - \alpha g_i$, so that the
# difference of the two is the regularizer's and not the dropout's. The labels are smoothed: with
# hard labels the training loss has no minimum, and what one compares then is how far training
# happened to go.

# %%
transformers = {"plain": new_transformer(), "regularized": new_transformer()}
trained = {
    "plain": transformers["plain"],
    "regularized": FisherRegularizedModel(
        transformers["regularized"], beta=10.0, num_sub_batches=5, seed=SEED
    ),
}
histories = {}
smoothed = 0.9 * keras.utils.to_categorical(y_train, NUM_CLASSES) + 0.1 / NUM_CLASSES
for name, model in trained.items():
    model.compile(
        keras.optimizers.Adam(0.003), keras.losses.CategoricalCrossentropy(from_logits=True)
    )
    keras.utils.set_random_seed(SEED)  # The batches come in the same order, too.
    histories[name] = model.fit(x_train, smoothed, batch_size=50, epochs=60, verbose=0).history
    print(f"{name}: training loss {histories[name]['loss'][-1]:.4f}")

# %%
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, history in histories.items():
    axes.plot(np.arange(1, len(history["loss"]) + 1), history["loss"], label=name)
axes.set(xlabel="epoch", ylabel="training loss (nats)")
axes.legend()

# %% [markdown]
# Smoothed labels have an entropy, 0.35 nats here: less the training loss cannot be.
#
# ## The two minima
#
# Embeddings, attention, normalizations: all of their weights are in $\xi = J J^T$, and the
# gradients of each example are exact. The labels are given as they were trained on, so that the
# report counts the training loss over the least that they allow.

# %%
reports = {
    name: evaluate_local_minimum(
        transformer,
        (x_train, smoothed),
        num_trials=10,
        seed=SEED,
        test_data=(x_test, y_test),
        progress=False,
    )
    for name, transformer in transformers.items()
}
for name, report in reports.items():
    print(f"--- {name}\n{report}\n")

# %%
axes = plt.figure(figsize=(6, 3.5), layout="constrained").subplots()
for report in reports.values():
    report.plot_spectrum(axes)
axes.legend(axes.get_lines(), reports)

# %% [markdown]
# One pair of trainings shows how it is done, and decides nothing about which of the two is better:
# [Which of my networks generalizes best?](../docs/comparing_minima.md) says what does.
