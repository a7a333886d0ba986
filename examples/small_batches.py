"""The regularizer where it does not help: right labels and small batches."""

# %% [markdown]
# # Small batches and right labels
#
# This page shows a case in which the regularizer does not help: all labels are right, and the
# batches are small. Stochastic gradient descent (SGD) with small batches regularizes by itself. If
# you can train in this way, you do not need the regularizer.
#
# Run it with `python examples/small_batches.py`. It takes about a minute on one core, and there is
# nothing to download.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
from sklearn.datasets import load_digits

from fisher_keras import FisherRegularizedModel

SEEDS = range(8)
TRAIN_SIZE, BATCH_SIZE, EPOCHS = 500, 25, 15

# %% [markdown]
# ## Two trainings from each seed
#
# Each seed draws its own training images, initial weights and batches. Both trainings of a seed
# have the same of all these, the same learning rates and the same clipping. `strength=1` makes the
# regularizer as strong as SGD's own regularization.

# %%
digits = load_digits()
images = (digits.images / 16).astype("float32")
labels = keras.utils.to_categorical(digits.target)


def train(seed: int, regularized: bool) -> float:
    """Trains a network and returns its test error (%)."""
    rows = np.random.default_rng(seed).permutation(len(images))
    train, test = rows[:TRAIN_SIZE], rows[TRAIN_SIZE:]
    keras.utils.set_random_seed(seed)
    model = classifier = keras.Sequential(
        [
            keras.Input((8, 8)),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    clip = {"global_clipnorm": 1.0}
    if regularized:
        # This model clips by itself.
        model = FisherRegularizedModel(
            classifier, strength=1.0, num_sub_batches=5, clip_norm=1.0, seed=seed
        )
        clip = {}
    rate = keras.optimizers.schedules.CosineDecay(0.05, EPOCHS * TRAIN_SIZE // BATCH_SIZE)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9, **clip),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
    )
    keras.utils.set_random_seed(seed)  # The batches come in the same order, too.
    model.fit(images[train], labels[train], batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0)
    predicted = np.argmax(classifier(images[test]), axis=1)
    return 100 * np.mean(predicted != digits.target[test])


plain = np.array([train(seed, regularized=False) for seed in SEEDS])
regularized = np.array([train(seed, regularized=True) for seed in SEEDS])

# %% [markdown]
# ## Paired differences
#
# The two trainings of a seed form a pair. The mean of the eight differences has an interval of 95
# %, by Student's t distribution.

# %%
differences = regularized - plain
mean, error = differences.mean(), scipy.stats.sem(differences)
low, high = scipy.stats.t.interval(0.95, len(SEEDS) - 1, mean, error)
print(f"test error: plain {plain.mean():.1f} %, regularized {regularized.mean():.1f} %")
print(f"regularized - plain: {mean:.2f} points (95 % interval {low:.2f} to {high:.2f})")

# %%
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.plot([0, 1], [plain, regularized], "o-", color="0.5", markersize=5)
axes.set_xticks([0, 1], ["plain", "regularized"])
axes.set(xlim=(-0.3, 1.3), ylim=(0, 10), ylabel="test error (%)", title="a line for each seed")

# %% [markdown]
# ## What this shows
#
# The interval contains 0 and is narrow: with these batches, the regularizer changes the test error
# by a fraction of a point at most, in either direction. It makes each step two to three times as
# long. [Training with wrong labels](wrong_labels.md) is a case in which it helps, and [When not to
# use it](../docs/better_minima.md#when-not-to-use-it) names more that are like this one.
