"""Watching gamma-hat during training, in TensorBoard."""

# %% [markdown]
# # Watching gamma-hat in TensorBoard
#
# The callback `FisherMetrics` evaluates the metrics of the current weights while `fit` runs, and
# adds them to the logs. With `log_dir` it also writes them for TensorBoard, and a histogram of the
# spectrum of $\xi$ for every evaluation.
#
# Run it with `python examples/watch_training.py`. It takes half a minute on two cores, and writes
# its logs into the folder `watch_training/` of the working directory. It needs the package
# `tensorboard`, which is part of `pip install 'fisher_keras[experiments]'`.

# %%
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fisher_keras import FisherMetrics

SEED = 0
LOGS = pathlib.Path("watch_training")

# %% [markdown]
# ## A network and data

# %%
digits = load_digits()
images = (digits.images[..., np.newaxis] / 16).astype("float32")
rows = np.random.default_rng(SEED).permutation(len(images))
train, validation = rows[:500], rows[500:1000]
labels = keras.utils.to_categorical(digits.target, 10)
# With label smoothing, a label is 0.91 for its class and 0.01 for the others. The least value of
# the loss is the entropy of that.
least_loss = -(0.91 * np.log(0.91) + 9 * 0.01 * np.log(0.01))

keras.utils.set_random_seed(SEED)
classifier = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.Dense(10),
    ]
)

# %% [markdown]
# ## Training
#
# `every=4` evaluates after the epochs 1, 4, 8, 12 and so on. All evaluations use the same two
# samples (`num_trials`) of 100 images. So the curves show changes of the network, and not of the
# samples.
#
# In the epochs between, the metrics in the logs are NaN. Keras' own callback for TensorBoard
# writes these values, too, and TensorBoard draws no line through them. The folder `log_dir`
# contains only the epochs with an evaluation.

# %%
classifier.compile(
    keras.optimizers.SGD(0.05, momentum=0.9),
    keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
    metrics=["accuracy"],
)
fisher = FisherMetrics(
    (images[train], labels[train]),
    every=4,
    metrics=("log_determinant", "log_squared_norms", "log_determinant_cosines"),
    num_trials=2,
    log_dir=LOGS / "fisher",
)
history = classifier.fit(
    images[train],
    labels[train],
    validation_data=(images[validation], labels[validation]),
    batch_size=50,
    epochs=60,
    callbacks=[fisher, keras.callbacks.TensorBoard(LOGS)],
    verbose=0,
).history
print(f"training loss {history['loss'][-1]:.3f}, accuracy {history['accuracy'][-1]:.3f}")

# %% [markdown]
# ## Watching
#
# Start TensorBoard in a second shell, during the training or later:
#
# ```bash
# tensorboard --logdir watch_training
# ```
#
# The page "Time series" shows `epoch_loss`, `fisher_log_determinant` with its two parts, and the
# spectrum, `fisher_log10_spectrum`. A program can read the same values:

# %%
events = EventAccumulator(str(LOGS / "fisher"), {"tensors": 0}).Reload()
print(*sorted(events.Tags()["tensors"]))
written = {
    event.step + 1: float(tf.make_ndarray(event.tensor_proto))
    for event in events.Tensors("fisher_log_determinant")
}
print(f"{len(written)} evaluations; the last, after epoch {max(written)}: {written[60]:.1f}")

# %%
figure, (top, bottom) = plt.subplots(2, sharex=True, figsize=(6, 5.5), layout="constrained")
epochs = np.arange(1, len(history["loss"]) + 1)
evaluated = ~np.isnan(history["log_determinant"])
for name in ("log_determinant", "log_squared_norms", "log_determinant_cosines"):
    top.plot(epochs[evaluated], np.array(history[name])[evaluated], "o-", markersize=3, label=name)
top.legend()
bottom.semilogy(epochs, np.array(history["loss"]) - least_loss)
bottom.set(xlabel="epoch", ylabel="training loss over its least (nats)")

# %% [markdown]
# ## Reading the curves
#
# $\ln|\xi|$ is the sum of two parts. `log_squared_norms` measures the lengths of the gradients: it
# follows the training loss, and falls as long as the training goes on. `log_determinant_cosines`
# measures how different the directions of the gradients are, whatever their lengths.
#
# While a network is still learning, the first part says little more than the loss does. The metric
# compares *minima*. Wait until the curve has settled, and compare with other networks only then
# (see [Which of my networks generalizes best?](../docs/comparing_minima.md)).
