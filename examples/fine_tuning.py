"""The metrics for a frozen backbone, its new head, and what is thawed later."""

# %% [markdown]
# # Fine-tuning a frozen backbone
#
# A backbone is trained on one task. Then it is used for another task, for which there are few
# examples: first frozen, with a new head, and then thawed. The metrics are computed for the
# weights that are trainable at that moment. This example shows what this means for
# $\hat\gamma$, and how you can still compare two ways of fine-tuning.
#
# Run it with `python examples/fine_tuning.py`. It takes half a minute on two cores, and downloads
# nothing.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

from fisher_keras import evaluate_local_minimum

SEED = 0

# %% [markdown]
# ## Two tasks
#
# The digits 0 to 4 are the first task, with all of their images. The digits 5 to 9 are the second,
# with 100 images to train on.

# %%
digits = load_digits()
images = (digits.images[..., np.newaxis] / 16).astype("float32")
rows = np.random.default_rng(SEED).permutation(len(images))
images, labels = images[rows], digits.target[rows]
first, second = labels < 5, labels >= 5
x_train, y_train = images[second][:100], labels[second][:100] - 5
x_test, y_test = images[second][100:], labels[second][100:] - 5
print(f"{first.sum()} images for the backbone; {len(x_train)} to fine-tune, {len(x_test)} to test")

# %% [markdown]
# ## The backbone
#
# Like most backbones, it has batch normalization. A frozen layer of that kind normalizes with the
# statistics that it already has, also in training. It stays frozen when the rest is thawed below,
# because 100 images are too few for statistics of their own.

# %%
keras.utils.set_random_seed(SEED)
backbone = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        layers.Conv2D(16, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.MaxPooling2D(),
        layers.Conv2D(32, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.Flatten(),
    ],
    name="backbone",
)
pretrained = keras.Sequential([backbone, layers.Dense(5)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
pretrained.compile(keras.optimizers.Adam(0.003), loss)
pretrained.fit(images[first], labels[first], batch_size=64, epochs=5, verbose=0)


def new_model() -> keras.Model:
    """Puts a new head on a copy of the backbone, as the first task left it, frozen."""
    keras.utils.set_random_seed(SEED)
    copy = keras.models.clone_model(backbone)
    copy.set_weights(backbone.get_weights())
    copy.trainable = False
    return keras.Sequential([copy, layers.Dense(5)])


def thaw(model: keras.Model) -> None:
    """Makes the backbone trainable, all but its batch normalizations."""
    model.get_layer("backbone").trainable = True
    for layer in model.get_layer("backbone").layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False


# %% [markdown]
# ## The head alone
#
# The labels are smoothed. Without that, the training loss has no minimum.

# %%
one_hot = keras.utils.to_categorical(y_train, 5)


def fine_tune(model: keras.Model, learning_rate: float, epochs: int) -> None:
    """Trains what is trainable."""
    keras.utils.set_random_seed(SEED)
    model.compile(
        keras.optimizers.Adam(learning_rate),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
    )
    model.fit(x_train, one_hot, batch_size=25, epochs=epochs, verbose=0)


def evaluate(model: keras.Model):  # noqa: ANN201
    """Evaluates the minimum with respect to what is trainable."""
    return evaluate_local_minimum(
        model,
        (x_train, y_train),
        num_samples=80,
        num_trials=10,
        seed=SEED,
        metrics=("log_determinant", "log_determinant_cosines", "trace"),
        test_data=(x_test, y_test),
        label_smoothing=0.1,
        progress=False,
    )


models = {"frozen": new_model(), "thawed": new_model()}
for model in models.values():
    fine_tune(model, learning_rate=0.01, epochs=60)
print(evaluate(models["frozen"]))

# %% [markdown]
# This $\hat\gamma$ belongs to $W$ = 2,565 weights, those of the head. The weights of the backbone
# would add a matrix without negative eigenvalues to $\xi$, and $\ln|\xi|$ would be larger.
# Therefore, do not compare a value for the head with a value for the whole network.
#
# ## Thawed
#
# The second model is now trained further, with all of its weights and a small learning rate.

# %%
thaw(models["thawed"])
fine_tune(models["thawed"], learning_rate=0.001, epochs=60)

# %% [markdown]
# ## Comparing the two
#
# To compare the two, evaluate both for the same weights. You may change after the training whether
# a layer is trainable: `evaluate_local_minimum` uses what is set when it is called.

# %%
reports = {}
for name, model in models.items():
    model.get_layer("backbone").trainable = False
    reports[name, "head"] = evaluate(model)
    thaw(model)
    reports[name, "all"] = evaluate(model)
print(f"{'':8} {'weights':8} {'W':>5} {'gamma-hat':>10} {'train loss':>11} {'test error %':>13}")
for (name, weights), report in reports.items():
    print(
        f"{name:8} {weights:8} {report.num_parameters:5} "
        f"{report.metrics['log_determinant'].mean:10.1f} {report.train.loss:11.4f} "
        f"{100 * report.test.error:13.2f}"
    )

# %%
axes = plt.figure(figsize=(6, 3.5), layout="constrained").subplots()
for report in reports.values():
    report.plot_spectrum(axes)
axes.legend(axes.get_lines(), [", ".join(key) for key in reports])

# %% [markdown]
# The frozen model has reached a minimum for the weights of its head alone. For all weights
# together, it is not at a minimum. So look at the training losses first: two networks can be
# compared by $\hat\gamma$ if their losses are close to each other, see
# [Which of my networks generalizes best?](../docs/comparing_minima.md).
