"""Networks of the quickstart, as runs of an experiment store."""

import dataclasses

from fisher_keras.experiments.command_line.flags import check_options, option
from fisher_keras.experiments.runs.store import Run

EXPERIMENT = "quickstart"
METHODS = ("plain", "sam", "fisher")
# rho of SAM and beta of the regularizer; the package's docstring says how they were chosen.
STRENGTHS = {"plain": None, "sam": 0.28, "fisher": 1400.0}
RECIPE_VERSION = 1  # To be raised when the same settings no longer give the same networks.


@dataclasses.dataclass(frozen=True)
class Settings:
    """Size of the quickstart.

    Attributes:
        train_size: Training images, drawn at random for each seed.
        wrong_labels: Those of them that get random labels when the methods are compared.
        other_wrong_labels: Further numbers, at which plain networks are trained for the metric.
        other_seeds: Plain networks at each of these numbers.
        steps: Training steps, each on all training images at once.
        num_samples: N', images in a sample of gamma-hat.
        num_trials: T, samples of gamma-hat.
    """

    seeds: int = option(8, "Networks that each method trains.", group="quickstart", least=2)
    output_dir: str = option(
        "results/quickstart", "Folder of the networks and the results.", group="quickstart"
    )
    train_size: int = 200
    wrong_labels: int = 60
    other_wrong_labels: tuple[int, ...] = (0, 30, 90, 120)
    other_seeds: int = 4
    steps: int = 300
    num_samples: int = 50
    num_trials: int = 20

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
            ValueError: If a value cannot be used.
        """
        check_options(self)


def quickstart_runs(settings: Settings) -> list[Run]:
    """Returns the runs, all methods of a seed before the next seed.

    Args:
        settings: Their number and size.

    Returns:
        A run for each method and seed, then one for each further number of wrong labels and seed.
    """
    compared = [
        _run(settings, method, settings.wrong_labels, seed)
        for seed in range(settings.seeds)
        for method in METHODS
    ]
    others = [
        _run(settings, "plain", wrong_labels, seed)
        for seed in range(settings.other_seeds)
        for wrong_labels in settings.other_wrong_labels
    ]
    return compared + others


def _run(settings: Settings, method: str, wrong_labels: int, seed: int) -> Run:
    shared = ("train_size", "steps", "num_samples", "num_trials")
    config = {
        "method": method,
        "strength": STRENGTHS[method],
        "wrong_labels": wrong_labels,
        **{name: getattr(settings, name) for name in shared},
    }
    label = f"seed {seed}, {wrong_labels} wrong labels, {method}"
    return Run(EXPERIMENT, config, seed, RECIPE_VERSION, label)
