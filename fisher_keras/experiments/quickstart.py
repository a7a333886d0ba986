"""Training with and without the regularizer, side by side, in minutes on two cores.

A narrow plain CNN learns a few of scikit-learn's handwritten digits, from several seeds, with and
without the regularizer. `bin/quickstart` installs the package and runs this module.
"""

import dataclasses
import json
import math
import pathlib
import statistics
import time
from collections.abc import Sequence

import keras
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from fisher_keras.atomic import replacing
from fisher_keras.datasets import (
    ImageDataset,
    channel_statistics,
    load_dataset,
    subset,
    training_pipeline,
)
from fisher_keras.experiments.training.provenance import provenance
from fisher_keras.models import build_model
from fisher_keras.models.recipes import (
    RECIPES,
    RegularizerSettings,
    build_optimizer,
    learning_rate_at,
)
from fisher_keras.regularizer.model import FisherRegularizedModel

# Algorithm 1 clips the gradient, too: "clipped" is the baseline with only that, so that what the
# regularizer itself does can be told apart.
METHODS = ("baseline", "clipped", "regularized")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the result of a run, beside method, seed and data.

    Attributes:
        width: factor on the CNN's numbers of filters.
        train_size: training images, drawn at random for each seed.
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate: the initial one; it falls as in the paper's recipe for the CNN.
        regularizer: hyper-parameters of Algorithm 1.
    """

    width: float = 0.25
    train_size: int = 400
    epochs: int = 40
    batch_size: int = 50
    # Half the recipe's: there, or with fewer images, the baseline got stuck from some seeds.
    learning_rate: float = 0.005
    regularizer: RegularizerSettings = dataclasses.field(default_factory=RegularizerSettings)


def compare(settings: Settings, seeds: int, store: pathlib.Path) -> list[dict]:
    """Trains each method from each seed, except for the runs that the store already has.

    Args:
        settings: of the training.
        seeds: runs of each method. A seed gives both methods the same training images, first
            weights and batches.
        store: file of finished runs, one JSON line a run; made if it is not there.

    Returns:
        The runs: each its key (`run_key`) and what `train` returns.

    Raises:
        OSError: if the store cannot be read or written.
        ValueError: if a setting cannot be used.
    """
    dataset = load_dataset("digits")
    runs = [json.loads(line) for line in store.read_text().splitlines()] if store.exists() else []
    keys = [
        run_key(settings, dataset, method, seed) for seed in range(seeds) for method in METHODS
    ]
    missing = [key for key in keys if not _find(runs, key)]
    print(f"{len(missing)} runs to train; {len(keys) - len(missing)} are in {store}.", flush=True)
    start = time.monotonic()
    for done, key in enumerate(missing, start=1):
        run = key | train(settings, dataset, key["method"], key["seed"])
        runs.append(run)
        with replacing(store) as part:
            part.write_text("".join(json.dumps(run) + "\n" for run in runs))
        left = (time.monotonic() - start) / done * (len(missing) - done)
        print(
            f"[{done}/{len(missing)}] seed {run['seed']}, {run['method']}: "
            f"test error {run['test_error'][-1]:.2f} % after {run['seconds']:.0f} s; "
            f"about {left:.0f} s left",
            flush=True,
        )
    return [_find(runs, key) for key in keys]


def run_key(settings: Settings, dataset: ImageDataset, method: str, seed: int) -> dict:
    """Returns what decides the result of a run, as JSON has it."""
    decisive = dataclasses.asdict(settings)
    if method == "baseline":
        del decisive["regularizer"]
    elif method == "clipped":
        decisive["regularizer"] = {"clip_norm": settings.regularizer.clip_norm}
    return {"method": method, "seed": seed, "settings": decisive, "data": dataset.fingerprint}


def train(settings: Settings, dataset: ImageDataset, method: str, seed: int) -> dict:
    """Trains one network.

    Args:
        settings: of the training.
        dataset: to draw training images from, and to test on.
        method: one of `METHODS`.
        seed: of the training images, the first weights and the batches.

    Returns:
        `train_loss` (mean cross-entropy) and `test_error` (%), lists with a number for each epoch,
        `seconds`, and what `provenance` tells.
    """
    start = time.monotonic()
    images, labels, _, _ = subset(
        dataset.train_images, dataset.train_labels, settings.train_size, seed
    )
    mean, std = channel_statistics(images)
    batches = training_pipeline(
        images,
        labels,
        batch_size=settings.batch_size,
        augmentation="no-aug",
        mean=mean,
        std=std,
        seed=seed,
    )
    keras.utils.set_random_seed(seed)
    network = build_model("cnn", dataset.num_classes, dataset.image_shape, width=settings.width)
    recipe = RECIPES["cnn"]
    optimizer = build_optimizer(recipe, settings.learning_rate)
    model = network
    if method == "clipped":
        optimizer.global_clipnorm = settings.regularizer.clip_norm
    elif method == "regularized":
        options = dataclasses.asdict(settings.regularizer)
        model = FisherRegularizedModel(network, **options, seed=seed)
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    curves = _LearningCurves(
        network,
        train=((images - mean) / std, labels),
        test=((dataset.test_images - mean) / std, dataset.test_labels),
    )
    schedule = keras.callbacks.LearningRateScheduler(
        lambda epoch, _: learning_rate_at(recipe, epoch, settings.epochs, settings.learning_rate)
    )
    model.fit(
        batches,
        epochs=settings.epochs,
        steps_per_epoch=math.ceil(len(images) / settings.batch_size),
        shuffle=False,  # The batches are shuffled.
        callbacks=[schedule, curves],
        verbose=0,
    )
    return {
        "train_loss": curves.train_loss,
        "test_error": curves.test_error,
        "seconds": time.monotonic() - start,
        **provenance(),
    }


class _LearningCurves(keras.callbacks.Callback):
    """After each epoch: training loss and test error, by the same measure for both methods.

    The loss that Keras logs has the weight penalties in it and is taken while the weights move.
    """

    def __init__(
        self,
        network: keras.Model,
        train: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
    ) -> None:
        super().__init__()
        self.network = network
        self.train = train
        self.test = test
        self.train_loss = []
        self.test_error = []

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        images, labels = self.train
        losses = keras.losses.sparse_categorical_crossentropy(
            labels, self.network.predict_on_batch(images), from_logits=True
        )
        self.train_loss.append(float(np.mean(losses)))
        images, labels = self.test
        predictions = np.argmax(self.network.predict_on_batch(images), axis=-1)
        self.test_error.append(100 * float(np.mean(predictions != labels)))


def summarize(runs: Sequence[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """Returns what the last epoch left: its mean and sample standard deviation over the seeds.

    Args:
        runs: of each method from at least two seeds, as `compare` returns them.

    Returns:
        For each method and each of `test_error` and `train_loss`: `mean` and `std`.
    """
    summary = {}
    for method in METHODS:
        summary[method] = {}
        for name in ("test_error", "train_loss"):
            finals = [run[name][-1] for run in runs if run["method"] == method]
            mean, std = statistics.mean(finals), statistics.stdev(finals)
            summary[method][name] = {"mean": mean, "std": std}
    return summary


def format_table(summary: dict) -> str:
    """Returns the summary (see `summarize`) as a table of mean ± standard deviation."""
    lines = [f"{'':<12}{'test error (%)':>18}{'training loss':>20}"]
    for method, values in summary.items():
        error, loss = (
            f"{values[name]['mean']:.{digits}f} ± {values[name]['std']:.{digits}f}"
            for name, digits in (("test_error", 2), ("train_loss", 4))
        )
        lines.append(f"{method:<12}{error:>18}{loss:>20}")
    return "\n".join(lines)


def plot_learning_curves(runs: Sequence[dict]) -> Figure:
    """Draws training loss and test error against epochs: mean over seeds, and their range."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss_axes, error_axes = figure.subplots(1, 2)
    for axes, name, title in (
        (loss_axes, "train_loss", "training loss (cross-entropy)"),
        (error_axes, "test_error", "test error (%)"),
    ):
        for method in METHODS:
            curves = np.array([run[name] for run in runs if run["method"] == method])
            epochs = np.arange(1, curves.shape[1] + 1)
            (line,) = axes.plot(epochs, curves.mean(axis=0), label=method)
            axes.fill_between(
                epochs,
                curves.min(axis=0),
                curves.max(axis=0),
                color=line.get_color(),
                alpha=0.2,
                linewidth=0,
            )
        axes.set(xlabel="epoch", ylabel=title, yscale="log")
        axes.grid(alpha=0.3)
    error_axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    error_axes.yaxis.set_major_formatter("{x:g}")
    error_axes.legend(title=f"mean and range of {len(curves)} seeds")
    return figure


def report(settings: Settings, seeds: int, folder: pathlib.Path) -> None:
    """Compares the methods, prints the table, and saves results and learning curves.

    Args:
        settings: of the training.
        seeds: runs of each method, at least two.
        folder: for the runs, `results.json`, `learning_curves.png` and `learning_curves.pdf`.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if a setting cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = compare(settings, seeds, folder / "runs.jsonl")
    summary = summarize(runs)
    results = {"settings": dataclasses.asdict(settings), "seeds": seeds} | summary
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    figure = plot_learning_curves(runs)
    for suffix in ("png", "pdf"):
        figure.savefig(folder / f"learning_curves.{suffix}", dpi=150)
    print(
        f"\nTrained on {settings.train_size} handwritten digits for {settings.epochs} epochs: "
        f"mean ± standard deviation of {seeds} seeds\n\n{format_table(summary)}\n\n"
        "clipped: the baseline with the regularized method's gradient clipping alone.\n"
        "A small demonstration, from which little follows: bin/train_cifar trains the paper's "
        "networks.\n"
        f"Learning curves and results are in {folder}."
    )


GROUP = "comparison"


def define_flags() -> None:
    """Defines the flags: not on import, since other scripts have flags of the same names."""
    usual = Settings()
    group = {"module_name": GROUP}
    flags.DEFINE_integer("seeds", 4, "Runs of each method.", lower_bound=2, **group)
    flags.DEFINE_integer("epochs", usual.epochs, "Of a run.", lower_bound=1, **group)
    flags.DEFINE_integer("train_size", usual.train_size, "Training images.", **group)
    flags.DEFINE_float("width", usual.width, "Factor on the CNN's filters.", **group)
    for name, text in (
        ("alpha", "Length of the step along a sub-batch's gradient."),
        ("beta", "Strength of the regularizer."),
        ("clip_norm", "Largest norm of a regularized gradient, tau."),
    ):
        flags.DEFINE_float(name, getattr(usual.regularizer, name), text, **group)
    flags.DEFINE_integer(
        "num_sub_batches", usual.regularizer.num_sub_batches, "Sub-batches of a batch, M.", **group
    )
    flags.DEFINE_string("output_dir", "results/quickstart", "Folder of the results.", **group)


def main() -> None:
    """Reports on the comparison that the flags ask for."""
    values = flags.FLAGS
    settings = Settings(
        width=values.width,
        train_size=values.train_size,
        epochs=values.epochs,
        regularizer=RegularizerSettings(
            alpha=values.alpha,
            beta=values.beta,
            num_sub_batches=values.num_sub_batches,
            clip_norm=values.clip_norm,
        ),
    )
    report(settings, values.seeds, pathlib.Path(values.output_dir))


def _find(runs: Sequence[dict], key: dict) -> dict | None:
    """Returns the run with this key."""
    return next((run for run in runs if key.items() <= run.items()), None)
