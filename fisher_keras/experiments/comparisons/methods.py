"""The regularizer beside plain, clipped, ghost-normalized and sharpness-aware training.

A batch of B images is split into M = B / 16 sub-batches. Gradients are shared in most arms of the
regularizer, so that batch normalization takes its moments from sub-batches: the control for that
is ghost. Large batches have less of the implicit regularizer of SGD: there the explicit one has
something to give back.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from fisher_keras.experiments.comparisons.arms import (
    ALPHA,
    ARMS,
    CONTROLS,
    OTHER_NETWORKS,
    TUNED,
    Arm,
)
from fisher_keras.experiments.comparisons.common import (
    CALIBRATION_ERROR,
    CROSS_ENTROPY,
    ERROR,
    GAMMA_HAT,
    LOG_DET_MARGINS,
    TRAIN_ERROR,
    Column,
    Group,
    grouped,
    make_table,
    metric,
    num_flagged,
    result_of,
)
from fisher_keras.experiments.comparisons.table_options import MethodsOptions
from fisher_keras.experiments.names import ARCHITECTURES
from fisher_keras.experiments.runs.experiment import preset_of
from fisher_keras.experiments.runs.presets import LAPTOP_NETWORKS, LAPTOP_TRAINING, Preset
from fisher_keras.experiments.runs.store import Run, kind
from fisher_keras.experiments.runs.trained_network import (
    TrainedNetwork,
    common_metrics,
    excess_losses,
)
from fisher_keras.experiments.runs.trained_run import MetricSettings, trained_run
from fisher_keras.experiments.training.arch import recipe_of
from fisher_keras.experiments.training.config import TrainingConfig, resolve

EXPERIMENT = "methods"
SUB_BATCH_SIZE = 16
# Of fewer validation images, the error is uncertain by more than 1.6 points.
_MIN_VALIDATION = 1000

_PAPER = Preset(
    about="the ResNet-20 and recipe of the paper's Table 1, at two batch sizes.",
    values=(128, 1024),
    num_seeds=5,
    training={"arch": "resnet"},
    metrics=MetricSettings(("log_determinant", "trace"), normalize_logits=0.04),
)
PRESETS = {
    "paper": _PAPER,
    "laptop": _PAPER.replaced(
        LAPTOP_TRAINING
        | LAPTOP_NETWORKS["resnet"]
        | {"width": 8, "epochs": 200, "validation_size": 50},
        {"num_trials": 20},
        about="a ResNet-8 of half the filters on 1,000 images, for 200 epochs and without "
        "augmentation; 20 trials.",
        values=(64, 256),
        # At batches of 64 and 256, the CNN does not fit the images in so few steps.
        networks={"cnn": LAPTOP_NETWORKS["cnn"] | {"epochs": 150}},
    ),
    "smoke": _PAPER.smoke(
        {"depth": 8, "width": 4, "dataset": "digits", "train_size": 64}, values=(32,)
    ),
}


def named_runs(preset: Preset, arms: str = "usual") -> list[tuple[str, Run]]:
    """Returns the runs with the names of their arms, a seed of all arms before the next seed.

    Args:
        preset: The size; its values are batch sizes.
        arms: "usual"; "further" for all `ARMS`; the name of one of `OTHER_NETWORKS`; or "all" for
            all `ARMS`, and those of the other networks.
    """
    named = {}
    for seed in preset.seeds:
        for batch_size in preset.values:
            for name, training in _trainings(preset, arms, batch_size, seed):
                label = f"batch {training.batch_size} {name}"
                if _network(training) != preset.training["arch"]:
                    label = f"{_network(training)} {label}"
                run = trained_run(EXPERIMENT, training, preset.metrics, label)
                # Arms with a batch size of their own are the same at each of the preset's.
                named.setdefault(run.key, (name, run))
    return list(named.values())


def options_runs(options: MethodsOptions) -> list[tuple[str, Run]]:
    """Returns the runs that were asked for, each with the name of its arm.

    Raises:
        ValueError: If the preset has no such batch size, arm, or other network.
    """
    preset = preset_of(PRESETS, options)
    if options.batch_size is not None:
        if options.batch_size not in preset.values:
            raise ValueError(
                f"--batch_size must be one of the preset's, {', '.join(map(str, preset.values))}, "
                f"got {options.batch_size}"
            )
        preset = preset.replaced(values=(options.batch_size,))
    named = named_runs(preset, options.arms)
    if not named:  # That network itself, or one that has its own activation.
        raise ValueError(f"--arms={options.arms} is not for --arch={options.arch}: leave one out")
    for arm in options.only:
        if all(name != arm for name, _ in named):
            raise ValueError(f"--arms={options.arms} has no arm {arm!r}: add --arms=further")
    return [(name, run) for name, run in named if name in (options.only or ARMS)]


def _trainings(
    preset: Preset, arms: str, batch_size: int, seed: int
) -> list[tuple[str, TrainingConfig]]:
    shared = {**preset.training, "batch_size": batch_size, "seed": seed}
    trainings = [
        (name, shared)
        for name, arm in ARMS.items()
        if arms in ("further", "all") or (arms == "usual" and arm.usual)
    ]
    for name in _others(shared, arms):
        network = OTHER_NETWORKS[name]
        settings = {**shared, **network.training, **preset.networks.get(name, {})}
        trainings += [(arm, settings) for arm in network.arms]
    return [(name, _training(ARMS[name], settings)) for name, settings in trainings]


def _others(shared: Mapping[str, object], arms: str) -> list[str]:
    """Returns the names of the other networks that have such arms beside the shared settings."""
    return [
        name
        for name, network in OTHER_NETWORKS.items()
        if arms in ("all", name)
        and any(shared.get(field) != value for field, value in network.training.items())
        # Another network than the package's own has its own activation.
        and network.training.get("arch", shared["arch"]) in ARCHITECTURES
    ]


def _network(training: TrainingConfig) -> str:
    """Returns the name of a network in labels and in the table."""
    return " ".join(filter(None, (training.arch, training.activation)))


def _training(arm: Arm, shared: Mapping[str, object]) -> TrainingConfig:
    settings = {**shared, **arm.training}
    if "target_error" in settings:  # Such an arm has an end of its own.
        settings.pop("target_loss", None)
    plain = resolve(TrainingConfig(**shared))
    # At least two: with one, ghost batch normalization would be the ordinary one.
    num_sub_batches = max(2, plain.batch_size // SUB_BATCH_SIZE)
    if arm.sub_batches:
        settings[arm.sub_batches] = num_sub_batches
    if arm.parity:
        momentum = recipe_of(plain.arch).momentum
        parity = plain.learning_rate / (2 * ALPHA * num_sub_batches * (1 - momentum))
        # It is a part of the run's key, which the last bits of a division must not change.
        settings["beta"] = float(f"{arm.parity * parity:.3g}")
    return TrainingConfig(**settings)


def make_methods_table(options: MethodsOptions) -> None:
    """Trains the networks that are not there yet, prints the table and writes it.

    Args:
        options: Of the experiment.

    Raises:
        ValueError: If an option or the data cannot be used.
        OSError: If the data or the store cannot be read or written.
        FailedRunsError: If runs failed; all others are finished.
    """
    preset = preset_of(PRESETS, options)
    arms = {kind(run): (name, run) for name, run in named_runs(preset, "all")}
    make_table(
        [run for _, run in options_runs(options)],
        functools.partial(methods_table, arms={key: name for key, (name, _) in arms.items()}),
        "methods",
        preset,
        options,
        "compare_methods",
        num_names=3,
        others=[run for _, run in arms.values()],
    )


def methods_table(
    networks: Sequence[TrainedNetwork], arms: Mapping[tuple, str]
) -> list[list[str]]:
    """Returns the table of the arms: test error, differences of pairs, and the minima.

    Args:
        networks: Of the finished runs of `named_runs`.
        arms: The name of each run's arm, by the run's `kind`.

    Returns:
        Rows of cells, the header first. A difference is that of the test error to a control of
        the same network, batch size and seed, with the 95 % interval of Student's t.
    """
    groups = grouped(
        networks, lambda n: (_network(n.training), n.training.batch_size, arms[kind(n.record)])
    )
    header = ["network", "batch", "method", "runs", ERROR.title]
    header += [f"less {one}" for one in CONTROLS]
    columns = _columns(networks)
    rows = [[*header, *(column.title for column in columns), "flagged"]]
    order = list(ARMS)
    for place in sorted({key[:2] for key in groups}, key=lambda k: (k[0] == "cnn", k)):
        here = {key[2]: group for key, group in groups.items() if key[:2] == place}
        here = {name: here[name] for name in sorted(here, key=order.index)}
        for family in TUNED:
            best = _best_by_validation({name: here[name] for name in family if name in here})
            if best:
                here[f"best by validation: {best}"] = here[best]
        rows += [[*map(str, place), name, *_cells(name, here, columns)] for name in here]
    return rows


def _cells(name: str, groups: Mapping[str, Group], columns: Sequence[Column]) -> list[str]:
    group = groups[name]
    flagged = num_flagged(group, groups.get(CONTROLS[0], {}))
    return [
        str(len(group)),
        ERROR.mean(group),
        *("–" if name == c else ERROR.difference(group, groups.get(c, {})) for c in CONTROLS),
        *(column.mean(group) for column in columns),
        str(flagged or ""),
    ]


def _best_by_validation(groups: Mapping[str, Group]) -> str | None:
    """Returns the arm with the least mean validation error, over the seeds that all arms have.

    None without a choice, such a seed, or errors of enough images.
    """
    parts = [network.validation for group in groups.values() for network in group.values()]
    if len(groups) < 2 or any(p is None or p.num_images < _MIN_VALIDATION for p in parts):
        return None
    # A seed draws the images, too: arms of other seeds have other validation images.
    seeds = set.intersection(*map(set, groups.values()))
    error = result_of("validation", "error_percent")
    means = {n: np.mean(error([group[seed] for seed in seeds])) for n, group in groups.items()}
    return min(means, key=means.get) if seeds else None


def _log_trace(networks: Sequence[TrainedNetwork]) -> list[float]:
    return np.log(metric("trace")(networks)).tolist()


def _columns(networks: Sequence[TrainedNetwork]) -> tuple[Column, ...]:
    """Returns the columns of the table, as far as all networks have them."""
    # Runs do not compute it themselves: complete_metrics adds it to their records.
    has_margins = "log_determinant_margins" in common_metrics(networks)
    return (*_COLUMNS, LOG_DET_MARGINS) if has_margins else _COLUMNS


_COLUMNS = (
    CROSS_ENTROPY,
    CALIBRATION_ERROR,
    TRAIN_ERROR,
    Column("excess train loss", 4, excess_losses),
    Column("ln trace", 2, _log_trace),
    GAMMA_HAT,
    Column("normalized", 1, metric("log_determinant", normalized=True)),
)
