"""From a custom model and custom data to a trained network, its report and a bound."""

# %% [markdown]
# # Your own model, your own data
#
# You have a Keras classifier and labelled examples. This page trains the classifier with the
# regularizer, watches the metric during training, evaluates the minimum, and computes the bound of
# the paper's Theorem 1.
#
# Run it with `python examples/own_model_and_data.py`, or open it as a notebook: VS Code, and
# Jupyter with Jupytext, read its `# %%` cells. It takes about half a minute on two cores. It
# writes its figures and its report into the folder `own_model_and_data/` of the current directory.
#
# For your own case, replace the code under "Data" and "Model". The rest can stay.

# %%
import pathlib

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from fisher_keras import FisherRegularizedModel
from fisher_keras.bound import extrapolate_log_determinant, generalization_bound
from fisher_keras.callbacks import FisherMetrics
from fisher_keras.metrics import evaluate_local_minimum

SEED = 0
BATCH_SIZE, EPOCHS = 50, 80
OUTPUT = pathlib.Path("own_model_and_data")
OUTPUT.mkdir(exist_ok=True)

# %% [markdown]
# ## 1. Data
#
# You need a pair of arrays: the inputs, with one example in each row, and the classes, which are
# whole numbers from 0 or one-hot rows. Here the inputs are 1,797 handwritten digits of 8x8 pixels,
# which come with scikit-learn. 500 of them are for training, and the others are for the test.

# %%
digits = load_digits()
images = (digits.images[..., np.newaxis] / 16).astype("float32")
labels = keras.utils.to_categorical(digits.target)
order = np.random.default_rng(SEED).permutation(len(images))
x_train, y_train = images[order[:500]], labels[order[:500]]
x_test, y_test = images[order[500:]], labels[order[500:]]
print(f"{len(x_train)} images of shape {x_train.shape[1:]} to train, {len(x_test)} to test")

# %% [markdown]
# ## 2. Model
#
# Any Keras model with one output for each class will do: Sequential, functional, or a subclass as
# here. It may end in logits or in a softmax layer. The metrics are computed from the logits,
# because the probabilities of a network that is very sure of itself round to exactly 1.


# %%
class Classifier(keras.Model):
    """Two convolutions and two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution1 = keras.layers.Conv2D(16, 3, padding="same", activation="relu")
        self.convolution2 = keras.layers.Conv2D(16, 3, padding="same", activation="relu")
        self.pooling = keras.layers.MaxPooling2D()
        self.flatten = keras.layers.Flatten()
        self.hidden = keras.layers.Dense(32, activation="relu")
        self.logits = keras.layers.Dense(10)

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Takes images, shape (N, 8, 8, 1), to logits, shape (N, 10)."""
        x = self.pooling(self.convolution1(x))
        x = self.convolution2(x)
        return self.logits(self.hidden(self.flatten(x)))


keras.utils.set_random_seed(SEED)
classifier = Classifier()

# %% [markdown]
# ## 3. Training
#
# `FisherRegularizedModel` wraps the classifier for training. It adds an estimate of the trace of
# the Fisher information to the loss, and a step takes two to three gradients instead of one. After
# training, the classifier is an ordinary Keras model as before, and you do not need the wrapper
# any more. The labels are smoothed, because with hard labels the loss has no minimum.
#
# The callback `FisherMetrics` computes the metric during training and adds it to the logs.
# `History`, `CSVLogger` and `TensorBoard` then show it beside the loss.

# %%
model = FisherRegularizedModel(classifier, strength=0.25, num_sub_batches=5, seed=SEED)
rate = keras.optimizers.schedules.CosineDecay(0.05, EPOCHS * len(x_train) // BATCH_SIZE)
model.compile(
    keras.optimizers.SGD(rate, momentum=0.9),
    keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
)
watch = FisherMetrics((x_train, y_train), every=5, metrics=("log_determinant",))
history = model.fit(
    x_train, y_train, batch_size=BATCH_SIZE, epochs=EPOCHS, callbacks=[watch], verbose=0
).history
print(f"training loss {history['loss'][-1]:.4f}")

# %%
figure, (loss_axes, metric_axes) = plt.subplots(
    2, sharex=True, figsize=(6, 5), layout="constrained"
)
epochs = np.arange(1, len(history["loss"]) + 1)
metric = np.array(history["log_determinant"])  # NaN between two evaluations
measured = ~np.isnan(metric)
loss_axes.plot(epochs, history["loss"])
loss_axes.set(ylabel="training loss (nats)")
metric_axes.plot(epochs[measured], metric[measured], "o-")
metric_axes.set(xlabel="epoch", ylabel=r"$\ln\,\det\,\xi$ of one sample of 100 images")
figure.savefig(OUTPUT / "training.png", dpi=150)

# %% [markdown]
# While the network is still learning, the metric says little more than the loss. The metric is for
# *minima*, and you compare them after training.
#
# ## 4. Evaluating the minimum
#
# `evaluate_local_minimum` draws `num_trials` samples of `num_samples` training images each. For
# each sample it computes $\ln\det\xi$, where $\xi = J J^T$ and the rows of $J$ are the gradients
# of the losses of single images. The mean is the paper's $\hat\gamma$. Among comparable networks,
# the one with the lowest value should generalize best. The other metrics come from the same
# matrices.
#
# Give it the training data without augmentation. If the network is not at a minimum such as the
# metric assumes, the report has a note that says so. For a large network, also give `trials_path`:
# an evaluation that was interrupted then continues with the samples that are left.

# %%
report = evaluate_local_minimum(
    classifier,
    (x_train, y_train),
    num_samples=100,
    num_trials=10,
    seed=SEED,
    test_data=(x_test, y_test),
    label_smoothing=0.1,
    progress=False,
)
print(report)
(OUTPUT / "report.json").write_text(report.to_json())

# %% [markdown]
# ## 5. The spectrum
#
# The log-determinant is the sum of the logarithms of all eigenvalues of $\xi$, so that the whole
# curve counts. The trace and the spectral radius depend on its left end only.

# %%
axes = plt.figure(figsize=(6, 4), layout="constrained").subplots()
report.plot_spectrum(axes)
axes.figure.savefig(OUTPUT / "spectrum.png", dpi=150)

# %% [markdown]
# ## 6. A generalization bound
#
# Theorem 1 of the paper bounds the expected loss in a neighborhood of the minimum.
# `extrapolate_log_determinant` estimates $\gamma$ of all W eigenvalues from $\hat\gamma$ of N'
# images (Equation 5). You choose the volume V of the neighborhood. It must be the same for all
# minima that you compare; here V = 1.

# %%
gamma = extrapolate_log_determinant(
    report.metrics["log_determinant"].mean, report.num_parameters, num_samples=100
)
bound = generalization_bound(
    report.train.loss, gamma, report.num_parameters, len(x_train), delta=0.05, log_volume=0.0
)
print(f"bound {bound:.4f}, test loss {report.test.loss:.4f}")

# %% [markdown]
# Do not read this as a guarantee for your network. The theorem that the bound rests on needs a
# loss between 0 and 1, and a cross-entropy may be larger. It also needs a prior that does not
# depend on the training set, and this one does. With 500 images, much of the bound is the term $2
# \sqrt{\ln(2N/\delta) / (N - 1)}$, which is the same for every network.
#
# ## Where to go from here
#
# - A single $\hat\gamma$ means nothing. [Which of my networks generalizes
#   best?](../docs/comparing_minima.md) explains which comparisons are valid.
# - [Train for better minima](../docs/better_minima.md) explains how to choose `strength`,
#   `num_sub_batches` and `clip_norm`. [Training with wrong labels](wrong_labels.md) and [small
#   batches](small_batches.md) compare plain and regularized training with several seeds.
# - `fisher-keras evaluate` compares saved models from the shell.
