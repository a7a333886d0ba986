"""A run of a search: one network trained, and its errors on the validation split."""

import pathlib
from typing import Any

from fisher_keras.experiments.runs.store import Run
from fisher_keras.experiments.runs.trained_run import training_of, training_settings
from fisher_keras.experiments.training.arch import network_settings
from fisher_keras.experiments.training.config import TrainingConfig, resolve
from fisher_keras.experiments.training.run_files import RunFiles
from fisher_keras.experiments.training.train import train
from fisher_keras.experiments.training.training_callbacks import TrainingDivergedError

EXPERIMENT = "tune_regularizer"
# To be raised when the same settings no longer give the same networks.
RECIPE_VERSION = 1


def trial_run(training: TrainingConfig, fingerprint: str) -> Run:
    """Returns the run that trains a network of a search.

    Args:
        training: How the network is trained; where the data and the output are does not count.
        fingerprint: Of the data: others under the same name are refused.

    Returns:
        The run.
    """
    training = resolve(training)
    config = {
        "training": training_settings(training),
        "until_epoch": training.epochs,  # All of them: it stands here for the runs' keys.
        "data": fingerprint,
        **network_settings(training.arch),
    }
    label = f"beta {training.beta:g}, M {training.num_sub_batches}, tau {training.clip_norm:g}"
    return Run(EXPERIMENT, config, training.seed, RECIPE_VERSION, label)


def execute(
    run: Run, directory: pathlib.Path, data_dir: str | None, download: bool
) -> dict[str, Any]:
    """Trains the network of a run, from where an earlier call ended.

    Args:
        run: Made by `trial_run`.
        directory: Of the run, in a search's folder. The network's files are in
            `trials/<combination>` there.
        data_dir: Where the data set is, see `load_dataset`.
        download: Whether it may be downloaded.

    Returns:
        The result for the store: `validation_error_percent` and `validation_cross_entropy` (nats)
        after each epoch, the `seconds` of all of them, and the message of `diverged` if it did.

    Raises:
        ValueError: If the data or a setting cannot be used.
        OSError: If data or output cannot be read or written.
    """
    name = "beta{beta:g}_M{num_sub_batches}_tau{clip_norm:g}".format(**run.config["training"])
    output_dir = directory.parents[1] / "trials" / name
    training, data = training_of(run, output_dir, data_dir, download)
    if data.describe()["fingerprint"] != run.config["data"]:
        raise ValueError(f"the data in --data_dir={data_dir} are not those of the search")
    ending = {}
    try:
        train(training, data=data)
    except TrainingDivergedError as error:
        # A result and no failure: a failed run would be tried again, only to diverge again.
        ending["diverged"] = str(error)
    history = RunFiles(output_dir).read_history()
    seconds = sum(history.get("seconds", []))
    return {
        "validation_error_percent": list(map(_error_percent, history.get("val_accuracy", []))),
        "validation_cross_entropy": history.get("val_cross_entropy", []),
        "seconds": seconds,
        "wall_time_s": seconds,
        **ending,
    }


def _error_percent(accuracy: float) -> float:
    return round(100 * (1 - accuracy), 4)  # The accuracy is a float32.
