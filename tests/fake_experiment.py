"""An experiment of runs that only count, for test_runner.py, which tells it how in JSON."""

import fcntl
import functools
import json
import os
import signal
import sys
import time

from fisher_keras.experiments.runs import runner
from fisher_keras.experiments.runs.store import ExperimentStore, Run

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
        steps = directory / "steps"
        done = len(steps.read_text().splitlines()) if steps.exists() else 0
        print(f"from step {done}")
        for step in range(done, STEPS):
            if run.label == victim and step == STEPS // 2:
                {"raise": fail, "die": die, "fill": fill}[accident](directory)
            time.sleep(step_s)
            with steps.open("a") as file:
                file.write(f"{step}\n")
    (directory / "last.keras").touch()
    return {"sum": sum(range(STEPS)), "seed": run.seed}


def fail(_):
    raise ValueError("no luck")


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def fill(_):
    import resource

    # From here on no file can grow: a full disk, as far as this process can see.
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))


def main(directory, num_runs, options, **behaviour):
    runner._POLL_S = 0.1
    runner.run_experiment(
        fake_runs(num_runs),
        functools.partial(count, **behaviour),
        ExperimentStore(directory),
        **options,
    )


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
