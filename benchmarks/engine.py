#!/usr/bin/env python3
"""Overhead of the engine of the experiments: twelve runs on two workers, against the ideal.

The runs of one kind sleep; those of the other multiply matrices with as many threads as the engine
gives them, the same work in each. Ideal is what the runs themselves take, shared by the workers.
"""

import functools
import os
import pathlib
import statistics
import tempfile
import time

import engine_work
from absl import app, flags

from fisher_keras.experiments.runs.engine import EngineOptions
from fisher_keras.experiments.runs.runner import run_experiment
from fisher_keras.experiments.runs.store import ExperimentStore, Run


def measure(work: functools.partial, num_runs: int, num_workers: int) -> tuple[float, float]:
    """Carries out runs.

    Args:
        work: what each run does.
        num_runs: how many there are.
        num_workers: how many at once.

    Returns:
        The seconds of all, and the mean of the seconds that a run itself took.
    """
    runs = [Run("engine", {}, seed, 1, f"run {seed}") for seed in range(num_runs)]
    with tempfile.TemporaryDirectory() as directory:
        store, start = ExperimentStore(directory), time.monotonic()
        run_experiment(runs, work, store, EngineOptions(num_workers=num_workers))
        wall = time.monotonic() - start
        return wall, statistics.fmean(record.wall_time_s for record in store.records())


def _main(_: list[str]) -> None:
    # So that the processes of the runs find engine_work.
    paths = (str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    values = flags.FLAGS
    work = functools.partial(getattr(engine_work, values.work), amount=values.amount)
    _, alone = measure(work, 1, 1)
    wall, beside = measure(work, values.num_runs, values.num_workers)
    ideal = beside * values.num_runs / values.num_workers
    print(
        f"\n{values.num_runs} runs, {values.num_workers} at once: {wall:.1f} s, ideal "
        f"{ideal:.1f} s: {(wall - ideal) * values.num_workers / values.num_runs:.2f} s a run more"
    )
    print(f"one run: alone {alone:.2f} s, beside others {beside:.2f} s")


if __name__ == "__main__":
    flags.DEFINE_enum("work", "sleep", ["sleep", "compute"], "What a run does.")
    flags.DEFINE_float("amount", 10.0, "Seconds of sleep, or number of products.")
    flags.DEFINE_integer("num_runs", 12, "Runs.", lower_bound=1)
    flags.DEFINE_integer("num_workers", 2, "Runs at once.", lower_bound=1)
    app.run(_main)
