"""Which networks the quickstart trains, and how."""

import dataclasses
import hashlib
import json

from fisher_keras.experiments.command_line.flags import option
from fisher_keras.experiments.training.config import TrainingConfig, resolve
from fisher_keras.models import RegularizerSettings

# Algorithm 1 clips the gradient, too: "clipped" is the baseline with only that, so that what the
# regularizer itself does can be told apart.
METHODS = ("baseline", "clipped", "regularized")
# Section 4: without it no minimum exists.
LABEL_SMOOTHING = 0.1
_NOT_OF_THE_NETWORK = ("data_dir", "download", "output_dir", "resume")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the quickstart can be told; the fields' texts are those of --help.

    A seed gives all networks the same training images, and those of one half the same first
    weights.

    Attributes:
        confusion_sizes: Further images, trained on with random labels, in the second half.
        num_samples: N', images a trial of gamma-hat.
        num_trials: T.
    """

    seeds: int = option(
        4, "Networks of each method, for the regularizer.", group="quickstart", least=2
    )
    minima_seeds: int = option(
        3, "Networks of each number of random labels, for the metric.", group="quickstart", least=2
    )
    train_size: int = option(
        400, "Training images, drawn at random for each seed.", group="quickstart", least=1
    )
    epochs: int = option(40, "Passes over the training images.", group="quickstart", least=1)
    output_dir: str = option(
        "results/quickstart", "Folder of the networks and the results.", group="quickstart"
    )
    confusion_sizes: tuple[int, ...] = (0, 100, 200)
    num_samples: int = 50
    num_trials: int = 20


@dataclasses.dataclass(frozen=True)
class Network:
    """A network to train.

    Attributes:
        group: One of `METHODS`, or the size of its confusion set.
        training: How it is trained; the folder is not in it.
        epoch_cost: What an epoch takes, in those of the baseline: for the time left.
    """

    group: str | int
    training: TrainingConfig
    epoch_cost: float = 1.0

    @property
    def label(self) -> str:
        """What messages call it."""
        kind = self.group if self.group in METHODS else f"{self.group} random labels"
        return f"seed {self.training.seed}, {kind}"

    @property
    def name(self) -> str:
        """The name of its folder: with other settings it is another one."""
        settings = dataclasses.asdict(resolve(self.training))
        decisive = {name: settings[name] for name in settings if name not in _NOT_OF_THE_NETWORK}
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
        kind = self.group if self.group in METHODS else f"confusion{self.group}"
        return f"{kind}_seed{self.training.seed}_{digest}"


def networks(settings: Settings) -> list[Network]:
    """Returns the networks of both halves, all of a seed before the next.

    Args:
        settings: How many, and how large.

    Returns:
        For each seed one of each method, then one of each size of the confusion set.
    """
    wanted = []
    for seed in range(max(settings.seeds, settings.minima_seeds)):
        if seed < settings.seeds:
            wanted += [_of_method(settings, method, seed) for method in METHODS]
        if seed < settings.minima_seeds:
            wanted += [_with_confusion(settings, size, seed) for size in settings.confusion_sizes]
    return wanted


def _of_method(settings: Settings, method: str, seed: int) -> Network:
    regularizer = RegularizerSettings()
    options = {
        "baseline": {},
        "clipped": {"clip_norm": regularizer.clip_norm},
        "regularized": {"regularize": True, **dataclasses.asdict(regularizer)},
    }
    training = TrainingConfig(
        arch="cnn",
        width=0.25,
        # Half the recipe's: there, or with fewer images, the baseline got stuck from some seeds.
        learning_rate=0.005,
        **_common(settings, seed),
        **options[method],
    )
    return Network(method, training, epoch_cost=3.0 if method == "regularized" else 1.0)


def _with_confusion(settings: Settings, size: int, seed: int) -> Network:
    training = TrainingConfig(
        arch="resnet",
        depth=8,
        width=8,
        label_smoothing=LABEL_SMOOTHING,
        confusion_size=size,
        **_common(settings, seed),
    )
    return Network(size, training, epoch_cost=1.5)


def _common(settings: Settings, seed: int) -> dict:
    return {
        "dataset": "digits",
        "augmentation": "no-aug",
        "train_size": settings.train_size,
        "epochs": settings.epochs,
        "batch_size": 50,
        "seed": seed,
    }
