"""What the package does for a model and data of one's own, step by step."""

# %% [markdown]
# # Your own model, your own data
#
# You have a Keras classifier and labelled examples. This notebook trains the classifier twice
# from the same initial weights, with and without the Fisher regularizer, and then asks of the two
# local minima what the paper *Information-Theoretic Local Minima Characterization and
# Regularization* asks: which one should generalize better?
#
# Open it as a notebook (VS Code and Jupyter with Jupytext understand its `# %%` cells), or run
# it: `python examples/own_model_and_data.py`. It takes about half a minute on two cores, and
# writes its figures and reports into `own_model_and_data/`, in the directory where it is run.
#
# For your own case, replace the code under "Data" and "Model"; the rest can stay.

# %%
import math
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
OUTPUT = pathlib.Path("own_model_and_data")
OUTPUT.mkdir(exist_ok=True)

# %% [markdown]
# ## 1. Data
#
# All that is needed is a pair of arrays: inputs with one example a row, and the class of each, a
# whole number from 0. Here these are 1,797 handwritten digits that come with scikit-learn, 8x8
# pixels each. We train on 500 of them and keep the others for the test.

# %%
digits = load_digits()
images = (digits.images[..., np.newaxis] / 16).astype("float32")
labels = digits.target
order = np.random.default_rng(SEED).permutation(len(images))
x_train, y_train = images[order[:500]], labels[order[:500]]
x_test, y_test = images[order[500:]], labels[order[500:]]
print(f"{len(x_train)} images of shape {x_train.shape[1:]} to train, {len(x_test)} to test")

# %% [markdown]
# ## 2. Model
#
# Any Keras model with one output for each class will do: Sequential, functional, or a subclass as
# here. It may end in logits or in a softmax layer. Logits are what the metrics are computed from:
# the probabilities of a network that is very sure of itself round to exactly 1.


# %%
class Classifier(keras.Model):
    """Two convolutions and two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution1 = keras.layers.Conv2D(8, 3, padding="same", activation="relu")
        self.convolution2 = keras.layers.Conv2D(16, 3, padding="same", activation="relu")
        self.pooling = keras.layers.MaxPooling2D()
        self.flatten = keras.layers.Flatten()
        self.hidden = keras.layers.Dense(32, activation="relu")
        self.logits = keras.layers.Dense(10)

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Takes images, shape (N, 8, 8, 1), to logits, shape (N, 10)."""
        x = self.pooling(self.convolution1(x))
        x = self.pooling(self.convolution2(x))
        return self.logits(self.hidden(self.flatten(x)))


def new_classifier() -> Classifier:
    """Makes a classifier that always has the same initial weights."""
    keras.utils.set_random_seed(SEED)
    classifier = Classifier()
    classifier(x_train[:1])
    return classifier


# %% [markdown]
# ## 3. Training, with and without the regularizer
#
# `FisherRegularizedModel` wraps the classifier for training. It adds `beta` times an estimate of
# the trace of the Fisher information to the loss; a step costs about three gradients instead of
# one. After training, the classifier itself is an ordinary Keras model as before, and the wrapper
# can be forgotten.
#
# The callback `FisherMetrics` watches the metric during training. It adds it to the logs, so that
# History, CSVLogger and TensorBoard show it beside the loss.

# %%
classifiers = {"plain": new_classifier(), "regularized": new_classifier()}
trained = {
    "plain": classifiers["plain"],
    "regularized": FisherRegularizedModel(classifiers["regularized"], beta=10.0, seed=SEED),
}
histories = {}
for name, model in trained.items():
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    keras.utils.set_random_seed(SEED)  # The batches come in the same order, too.
    watch = FisherMetrics((x_train, y_train), every=5, metrics=("log_determinant",))
    histories[name] = model.fit(
        x_train, y_train, batch_size=50, epochs=40, callbacks=[watch], verbose=0
    ).history
    print(f"{name}: training loss {histories[name]['loss'][-1]:.2g}")

# %%
figure, (loss_axes, metric_axes) = plt.subplots(
    2, sharex=True, figsize=(6, 5.5), layout="constrained"
)
for name, history in histories.items():
    epochs = np.arange(1, len(history["loss"]) + 1)
    metric = np.array(history["log_determinant"])  # NaN between two evaluations
    measured = ~np.isnan(metric)
    loss_axes.semilogy(epochs, history["loss"], label=name)
    metric_axes.plot(epochs[measured], metric[measured], "o-", label=name)
loss_axes.set(ylabel="training loss (nats)")
metric_axes.set(xlabel="epoch", ylabel=r"$\ln|\xi|$ of one sample of 100 images")
metric_axes.legend()
figure.savefig(OUTPUT / "training.png", dpi=150)

# %% [markdown]
# The metric falls as the loss does: the Fisher information consists of the gradients of the
# losses, and near a minimum these vanish. So while the networks are still learning, the lower
# curve says little more than the upper one. The metric is for *minima*, compared with each other
# once training is over.
#
# ## 4. Measuring the two minima
#
# `evaluate_local_minimum` draws `num_trials` (T) samples of `num_samples` (N') training images,
# and takes $\ln|\xi|$, $\xi = J J^T$, of the loss gradients J of each. Their mean is the paper's
# $\hat\gamma$; lower is better. The other metrics come from the same matrices.
#
# Give it the training data without augmentation. A report says where its assumptions, a training
# error of 0 and a training loss near 0, do not hold: heed such a note. For a large network, give
# a `trials_path`, too: then an evaluation that was stopped goes on where it was.

# %%
reports = {
    name: evaluate_local_minimum(
        classifier,
        (x_train, y_train),
        num_samples=100,
        num_trials=20,
        seed=SEED,
        test_data=(x_test, y_test),
        progress=False,
    )
    for name, classifier in classifiers.items()
}
for name, report in reports.items():
    print(f"--- {name}\n{report}\n")
    (OUTPUT / f"report_{name}.json").write_text(report.to_json())

# %% [markdown]
# ## 5. The spectrum
#
# The log-determinant is the sum of the logarithms of all eigenvalues of $\xi$, so the whole curve
# counts. The trace and the spectral radius are about its left end alone.

# %%
axes = plt.figure(figsize=(6, 4), layout="constrained").subplots()
for report in reports.values():
    report.plot_spectrum(axes)
axes.legend(axes.get_lines(), reports)
axes.figure.savefig(OUTPUT / "spectrum.png", dpi=150)

# %% [markdown]
# ## 6. Comparing
#
# Two things make a comparison fair.
#
# - **The same loss.** If all losses were half as large, $\hat\gamma$ would be lower by
#   $2 N' \ln 2 \approx 139$, and nothing about the minimum would be better. Compare at similar
#   training loss or, as the paper does for its Table 2, with normalized logits:
#   `normalize_logits=0.04` divides each logit vector by 0.04 times its norm.
# - **The same samples.** With the same seed and the same data, trial t has the same images for
#   both. Differences trial by trial are less noisy than the two means.

# %%
normalized = {
    name: evaluate_local_minimum(
        classifier,
        (x_train, y_train),
        num_trials=20,
        seed=SEED,
        metrics=("log_determinant",),
        normalize_logits=0.04,
        progress=False,
    )
    for name, classifier in classifiers.items()
}
print(f"{'':12} {'gamma-hat':>10} {'normalized':>11} {'train loss':>11} {'test error %':>13}")
for name, report in reports.items():
    print(
        f"{name:12} {report.metrics['log_determinant'].mean:10.1f} "
        f"{normalized[name].metrics['log_determinant'].mean:11.1f} "
        f"{report.train.loss:11.2g} {100 * report.test.error:13.2f}"
    )
for title, evaluations in (("gamma-hat", reports), ("normalized", normalized)):
    values = {
        name: np.array([trial.metrics["log_determinant"] for trial in report.trials])
        for name, report in evaluations.items()
    }
    difference = values["regularized"] - values["plain"]
    error = difference.std(ddof=1) / math.sqrt(len(difference))
    print(f"{title}: regularized - plain = {difference.mean():.1f} ± {error:.1f}")

# %% [markdown]
# The error behind ± is about which images were sampled, and about nothing else. It does **not**
# say what another random initialization would have given. Change `SEED` at the top and see:
# $\hat\gamma$ changes by more than that, and so does the test error, of which one image in the
# test set is 0.08 %. One pair of trainings decides nothing. For a conclusion, train each method
# from several seeds and compare the means with their deviations, as `bin/quickstart` does.
#
# ## 7. A generalization bound
#
# Theorem 1 of the paper bounds the expected loss in a neighborhood of the minimum.
# `extrapolate_log_determinant` takes $\hat\gamma$ of N' images to $\gamma$ of all W eigenvalues
# (Equation 5). The volume V of the neighborhood is ours to choose, the same for all minima that
# are compared; here V = 1.

# %%
bounds = {}
for name, report in reports.items():
    gamma = extrapolate_log_determinant(
        report.metrics["log_determinant"].mean, report.num_parameters, num_samples=100
    )
    bounds[name] = generalization_bound(
        report.train.loss, gamma, report.num_parameters, len(x_train), delta=0.05, log_volume=0.0
    )
    print(f"{name}: bound {bounds[name]:.4f}, test loss {report.test.loss:.4f}")

# %% [markdown]
# Do not read this as a guarantee for your network. The theorem that the bound rests on asks for a
# loss between 0 and 1, which cross-entropy may exceed, and for a prior that does not depend on the
# training set, which this one does. With 500 images, nearly all of it is the term
# $2 \sqrt{\ln(2N/\delta) / (N - 1)}$, the same for every network: at minima as deep as these the
# bound hardly tells them apart, and $\hat\gamma$ does.
#
# ## Where to go from here
#
# - The regularizer's `beta`, `num_sub_batches` and `clip_norm` are to be tuned for a new problem,
#   on validation data. If training gets stuck, `beta` is too large.
# - `bin/evaluate_metrics` compares saved models from the shell.
# - `fisher_keras.fisher.loss_gradient_gram` gives the matrix itself, for metrics of your own.
