"""A search whose trials only count, for tests/test_trial_queue.py to start as processes."""

import json
import pathlib
import sys
import time
import warnings

import optuna

from fisher_keras.experiments.search import trial_queue

STEPS = 3


def count(trial, directory, step_s):
    place = trial_queue.place_of(trial)
    value = trial.suggest_categorical("x", [10, 20, 30, 40, 50])
    with (directory / f"place_{place}").open("a") as file:
        print(f"place {place}", flush=True)
        for step in range(STEPS):
            time.sleep(step_s)
            trial.report(value, step)
            file.write(f"{step}\n")
            file.flush()
    return value


def main(directory, url, places, step_s=0.0, grace_s=60):
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trial_queue.HEARTBEAT_S, trial_queue.GRACE_S, trial_queue.POLL_S = 1, grace_s, 0.2
    pruner = optuna.pruners.NopPruner()
    study = trial_queue.open_study(url, "search", optuna.samplers.TPESampler(), pruner)
    trial_queue.work_through(
        study,
        places,
        lambda trial: count(trial, pathlib.Path(directory), step_s),
        lambda study, trial: print(f"finished {trial_queue.place_of(trial)}", flush=True),
    )


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
