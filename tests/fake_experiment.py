"""An experiment of runs that only count, for test_runner.py, which tells it how in JSON."""

import fcntl
import functools
import json
import os
import signal
import sys
import time

from fisher_keras.experiments.runs.store import Run

STEPS = 6


def fake_runs(count, **settings):
    return [
        Run(
            "fake",
            {"size": 100 * (i // 2), **settings},
            i % 2,
            1,
            f"size {100 * (i // 2)} seed {i % 2}",
        )
        for i in range(count)
    ]


def count(run, directory, step_s=0.0, accident=None, victim=None):
    """Counts to STEPS, from where an earlier call was cut; writes each step down once."""
    # The kernel says whether another process is at the same run.
    with (directory / "in_use").open("w") as in_use:
        try:
            fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (directory / "twice_at_once").touch()
        print(os.getpid(), file=in_use, flush=True)
        steps = directory / "steps"
        done = len(steps.read_text().splitlines()) if steps.exists() else 0
        print(f"from step {done}")
        for step in range(done, STEPS):
            if run.label == victim and step == STEPS // 2:
                {"raise": fail, "die": die, "fill": fill}[accident](directory)
            time.sleep(step_s)
            with steps.open("a") as file:
                file.write(f"{step}\n")
    return {
        "sum": sum(range(STEPS)),
        "seed": run.seed,
        "threads": os.environ.get("TF_NUM_INTRAOP_THREADS"),
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def fail(_):
    raise ValueError("no luck")


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def fill(_):
    import resource

    # From here on no file can grow: a full disk, as far as this process can see.
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))


def main(directory, num_runs, options=None, gpus=(), **behaviour):
    # Imported by this function: each of the runs' processes imports this module, too.
    import fake_experiment

    from fisher_keras.experiments.runs.engine import EngineOptions
    from fisher_keras.experiments.runs.runner import run_experiment
    from fisher_keras.experiments.runs.store import ExperimentStore

    run_experiment(
        fake_runs(num_runs),
        functools.partial(fake_experiment.count, **behaviour),
        ExperimentStore(directory),
        EngineOptions(**(options or {})),
        gpus=gpus,
    )


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
