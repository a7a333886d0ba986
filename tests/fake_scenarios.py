"""Finished runs of scenarios that nobody trained, in stores as the scenarios leave them."""

import copy
import hashlib
import json

from fisher_keras.experiments.scenarios.runs import VARIABLES

TRAINING = {"arch": "resnet", "dataset": "cifar10", "epochs": 200, "batch_size": 128}
METRICS = {"names": ["log_determinant"], "num_samples": 100, "num_trials": 100}


def record(
    experiment,
    value,
    seed,
    test_error,
    metrics,
    train_loss=1e-3,
    train_error=0.0,
    **training,
):
    """A record: `metrics` has the mean of each; `training` has other settings than `TRAINING`."""
    settings = {**TRAINING, **training}
    if value is not None:  # None: the usual value, which records do not have.
        settings[VARIABLES[experiment]] = value
    config = {"training": settings, "metrics": {**METRICS, "names": list(metrics)}}
    definition = {
        "experiment": experiment,
        "recipe_version": 1,
        "config": copy.deepcopy(config),
        "seed": seed,
    }
    key = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:16]
    result = {
        "train": {"loss": train_loss, "error_percent": train_error, "num_images": 10_000},
        "test": {
            "loss": 0.5,
            "error_percent": test_error,
            "calibration_error": 0.04,
            "num_images": 10_000,
        },
        "metrics": {
            name: {"mean": mean, "std": 1.0, "standard_error": 0.1}
            for name, mean in metrics.items()
        },
    }
    return {"key": key, **definition, "wall_time_s": 1.0, "result": result}


def write_store(directory, records):
    """Writes the records as a store does that was put under version control."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(line) + "\n" for line in records)
    (directory / "runs.jsonl").write_text(lines)
    return directory
