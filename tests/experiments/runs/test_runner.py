"""Experiments of runs that only count, carried out by processes of their own."""

import itertools
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from fake_experiment import STEPS, fake_runs
from processes import TIMEOUT, finish

from fisher_keras.experiments.runs.runner import parse_shard, run_experiment
from fisher_keras.experiments.runs.store import ExperimentStore, Run

TESTS = pathlib.Path(__file__).parents[2]


@pytest.fixture
def start(tmp_path, light_package):
    """Starts an experiment in the store `tmp_path`; ends what is left of it after the test."""
    processes = []

    def start(num_runs, options=None, **behaviour):
        given = {"directory": str(tmp_path), "num_runs": num_runs, "options": options or {}}
        process = subprocess.Popen(
            [sys.executable, str(TESTS / "fake_experiment.py"), json.dumps(given | behaviour)],
            env=os.environ | {"PYTHONPATH": str(light_package)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def assert_finished(directory, num_runs):
    """Asserts that each run was carried out once, without a step lost or repeated."""
    runs = fake_runs(num_runs)
    lines = (directory / "runs.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == [run.key for run in runs]
    store = ExperimentStore(directory)
    for run in runs:
        run_directory = store.run_directory(run)
        steps = (run_directory / "steps").read_text().splitlines()
        assert steps == [str(step) for step in range(STEPS)]
        assert store.record(run)["result"] == {"sum": 15, "seed": run.seed}
        names = {path.name for path in run_directory.iterdir()}
        assert names == {"in_use", "steps", "last.keras", "record.json"}
    assert len(list((directory / "runs").glob("*/record.json"))) == num_runs


def wait_until(condition):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def processes_of(directory):
    """Returns the numbers of the processes that have files of the store open."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cwd"):
        try:
            files = [os.readlink(file) for file in (path.parent / "fd").iterdir()]
        except OSError:
            continue
        if any(file.startswith(str(directory)) for file in files):
            found.append(path.parent.name)
    return found


# -------------------------------------------------------------------------------- carrying out


def test_each_run_is_carried_out_once_and_not_again(tmp_path, start):
    code, stdout, stderr = finish(start(5, {"num_workers": 2}))
    assert (code, stderr) == (0, "")
    assert_finished(tmp_path, 5)
    assert stdout.startswith("0 of 5 runs are finished.\nrun 1/5  size ")
    assert re.search(r"run 5/5  size \d+ seed \d  0:00:00, 0:00:00 left\n$", stdout)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert finish(start(5)) == (0, "5 of 5 runs are finished.\n", "")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


def test_killed_three_times_it_ends_with_the_runs_it_needs(tmp_path, start):
    moments = random.Random(7)
    for _ in range(3):
        process = start(6, {"num_workers": 2}, step_s=0.1)
        wait_until(lambda: processes_of(tmp_path))
        time.sleep(moments.uniform(0.0, 0.4))
        process.kill()
        process.wait()
    assert finish(start(6, {"num_workers": 2}))[0] == 0
    assert_finished(tmp_path, 6)
    logs = "".join(path.read_text() for path in tmp_path.glob("runs/*.log"))
    assert re.search("from step [1-5]", logs)


def test_the_workers_of_a_killed_experiment_end(tmp_path, start):
    process = start(4, {"num_workers": 2}, step_s=60)
    wait_until(lambda: len(list(tmp_path.glob("runs/*/in_use"))) == 2)
    process.kill()
    process.wait()
    wait_until(lambda: not processes_of(tmp_path))


def test_four_experiments_at_once_on_one_folder(tmp_path, start):
    processes = [start(12, {"num_workers": 1 + i % 2}, step_s=0.02) for i in range(4)]
    wait_until(lambda: processes_of(tmp_path))
    time.sleep(0.2)
    processes[0].kill()
    for process in processes[1:]:
        code, stdout, stderr = finish(process)
        assert (code, stderr) == (0, "")
        assert "\nrun 12/12  " in stdout
    assert_finished(tmp_path, 12)


def test_a_run_that_is_claimed_elsewhere_is_waited_for(tmp_path, start):
    store, run = ExperimentStore(tmp_path), fake_runs(2)[0]
    with store.claim(run, pytest.fail):
        process = start(2)
        lines = [process.stdout.readline() for _ in range(3)]
    assert lines[1].startswith("run 1/2  size 0 seed 1")
    assert lines[2] == "Waiting for runs that other processes carry out: 1.\n"
    assert finish(process)[0] == 0
    assert_finished(tmp_path, 2)


def test_ctrl_c_stops_the_workers_and_says_how_to_go_on(tmp_path, start):
    process = start(4, {"num_workers": 2}, step_s=0.5)
    wait_until(lambda: len(list(tmp_path.glob("runs/*/steps"))) == 2)
    os.killpg(process.pid, signal.SIGINT)  # As a terminal does: all processes get it.
    _, stdout, stderr = finish(process)
    assert "Stopped, 0 of 4 runs are finished: the same command goes on.\n" in stdout
    assert stderr.count("Traceback") == 1
    assert stderr.endswith("\nKeyboardInterrupt\n")
    assert not list(tmp_path.rglob(".claim_*"))
    assert not processes_of(tmp_path)
    assert finish(start(4))[0] == 0
    assert_finished(tmp_path, 4)


@pytest.mark.parametrize(
    ("accident", "error"),
    [
        ("raise", "ValueError: no luck"),
        ("die", "its process ended with exit code -9"),
    ],
)
def test_a_run_that_fails_is_named_and_stops_no_other(tmp_path, start, accident, error):
    code, stdout, stderr = finish(start(4, accident=accident, victim="size 0 seed 1"))
    assert code == 1
    log = ExperimentStore(tmp_path).log(fake_runs(4)[1])
    failed = f"size 0 seed 1: {error} (see {log})"
    assert f"failed: {failed}\n" in stdout
    assert f"FailedRunsError: 1 of 4 runs failed: {failed}" in stderr
    assert log.read_text().startswith("from step 0\n")
    assert [record["key"] for record in ExperimentStore(tmp_path).records()] == [
        run.key for run in fake_runs(4) if run.label != "size 0 seed 1"
    ]
    assert finish(start(4))[0] == 0
    assert_finished(tmp_path, 4)
    assert "from step 3\n" in log.read_text()


def test_a_disk_that_fills_loses_nothing(tmp_path, start):
    code, _, stderr = finish(start(4, accident="fill", victim="size 0 seed 1"))
    assert code == 1
    assert "FailedRunsError: 3 of 4 runs failed: size 0 seed 1: OSError: [Errno 27]" in stderr
    assert [r["key"] for r in ExperimentStore(tmp_path).records()] == [fake_runs(1)[0].key]
    assert finish(start(4))[0] == 0
    assert_finished(tmp_path, 4)


# ------------------------------------------------------------------------ shards, plan, arguments


def never(run, directory):
    raise AssertionError


def test_shards_cover_all_runs_and_share_none(tmp_path):
    runs = fake_runs(11)
    store = ExperimentStore(tmp_path)
    for run in runs:
        with store.claim(run, pytest.fail) as claim:
            store.finish(run, claim, {}, 1.0)
    for count in (1, 2, 3, 11, 12):
        shards = [
            [record["key"] for record in run_experiment(runs, never, store, shard=(i, count))]
            for i in range(1, count + 1)
        ]
        assert sorted(itertools.chain(*shards)) == sorted(run.key for run in runs)
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert [record["key"] for record in run_experiment(runs, never, store)] == [
        run.key for run in runs
    ]


def test_the_plan_tells_the_time_from_the_same_settings_then_any_then_the_estimate(
    tmp_path, capsys
):
    store = ExperimentStore(tmp_path)

    def plan(**options):
        run_experiment(runs, never, store, dry_run=True, **options)
        return capsys.readouterr().out.splitlines()

    runs = fake_runs(5)  # Sizes 0, 0, 100, 100, 200.
    assert plan() == [
        "0 of 5 runs are finished; to carry out:",
        *(f"     unknown  {run.label}" for run in runs),
        "time left unknown with --num_workers=1.",
    ]
    assert plan(run_estimate_s=60)[-1] == "0:05:00 left with --num_workers=1."
    assert not list(tmp_path.iterdir())
    for run, seconds in ((runs[0], 100.0), (runs[2], 300.0), (Run("x", {}, 0, 1, "x"), 9e9)):
        with store.claim(run, pytest.fail) as claim:
            store.finish(run, claim, {}, seconds)
    assert plan(run_estimate_s=1, num_workers=2) == [
        "2 of 5 runs are finished; to carry out:",
        "     0:01:40  size 0 seed 1",
        "     0:05:00  size 100 seed 1",
        "     0:03:20  size 200 seed 0",
        "0:05:00 left with --num_workers=2.",
    ]


def test_parse_shard():
    assert parse_shard("2/4") == (2, 4)
    for text in ("", "3", "0/4", "5/4", "1/0", "a/b", "-1/4", "1/2/3", "1.0/2"):
        with pytest.raises(ValueError, match="--shard must be i/n with i from 1 to n"):
            parse_shard(text)


@pytest.mark.parametrize(
    ("runs", "options", "message"),
    [
        (fake_runs(2), {"num_workers": 0}, "--num_workers must be at least 1, got 0"),
        (fake_runs(2), {"shard": (3, 2)}, "--shard must be i/n"),
        (fake_runs(2) + fake_runs(1), {}, "one is there twice"),
    ],
)
def test_bad_arguments(tmp_path, runs, options, message):
    with pytest.raises(ValueError, match=message):
        run_experiment(runs, never, ExperimentStore(tmp_path), **options)
