"""Experiments of runs that only count, each in a process of its own, and what becomes of them."""

import functools
import importlib.util
import json
import os
import pathlib
import random
import re
import signal
import time

import fake_experiment
import pytest
from fake_experiment import STEPS, fake_runs
from processes import Cluster, Processes, finish, run_processes, wait_until

from fisher_keras.experiments.runs import engine
from fisher_keras.experiments.runs.engine import EngineOptions, run_environments
from fisher_keras.experiments.runs.runner import print_plan, run_experiment
from fisher_keras.experiments.runs.store import ExperimentStore, Run

TESTS = pathlib.Path(__file__).parents[2]


@pytest.fixture
def processes(tmp_path, light_package):
    processes = Processes((light_package, TESTS), tmp_path)
    yield processes
    processes.end()
    wait_until(lambda: not run_processes(tmp_path), timeout=5)


@pytest.fixture
def start(tmp_path, processes):
    """Starts an experiment in the store `tmp_path / "store"`."""

    def start(num_runs, options=None, **behaviour):
        given = {"directory": str(tmp_path / "store"), "num_runs": num_runs, "options": options}
        script = str(TESTS / "fake_experiment.py")
        return processes.start(script, json.dumps(given | behaviour))

    return start


@pytest.fixture
def store(tmp_path):
    return ExperimentStore(tmp_path / "store")


@pytest.fixture
def finish_all(store, light_package, monkeypatch):
    """Executes what is left of an experiment in that store, from this process."""
    path = os.pathsep.join(map(str, (light_package, TESTS)))
    monkeypatch.setenv("PYTHONPATH", path)
    return functools.partial(fake_experiment.main, store.directory, options={"num_workers": 2})


def assert_finished(store, num_runs):
    """Asserts that each run was carried out once, without a step lost or repeated."""
    runs = fake_runs(num_runs)
    lines = store.lines.read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == [run.key for run in runs]
    for run in runs:
        directory = store.run_directory(run)
        steps = (directory / "steps").read_text().splitlines()
        assert steps == [str(step) for step in range(STEPS)]
        assert store.record(run).result["sum"] == 15
        files = {"definition.json", "git_revisions.json", "lock", "run.log", "record.json"}
        assert {path.name for path in directory.iterdir()} == {"in_use", "steps", *files}
    assert len(list(store.directory.glob("runs/*"))) == num_runs


def under_way(store, count):
    """Returns whether so many runs have begun to count."""
    return lambda: len(list(store.directory.glob("runs/*/in_use"))) >= count


# ------------------------------------------------------------------------------ kill tests


def test_each_run_is_carried_out_once_and_not_again(store, start):
    code, stdout, stderr = finish(start(5, {"num_workers": 2}))
    assert (code, stderr) == (0, "")
    assert_finished(store, 5)
    first, *lines = stdout.splitlines()
    assert first == "0 of 5 runs are finished."
    begun = [f"begun: {run.label} (log: {store.log(run)})" for run in fake_runs(5)]
    assert [line for line in lines if line.startswith("begun")] == begun
    assert lines[:2] == begun[:2]
    assert lines[2].startswith("run 1/5  size ")
    assert re.search(r"run 5/5  size \d+ seed \d  0:00:0\d, 0:00:00 left\n$", stdout)
    times = {path: path.stat().st_mtime_ns for path in store.directory.rglob("[!.]*")}
    assert finish(start(5)) == (0, "5 of 5 runs are finished.\n", "")
    assert {path: path.stat().st_mtime_ns for path in store.directory.rglob("[!.]*")} == times


def test_killed_commands_leave_no_process_and_lose_nothing(store, start, finish_all):
    moments = random.Random(7)
    for kills in range(3):
        process = start(12, {"num_workers": 2}, step_s=0.05)
        wait_until(under_way(store, 2 + 2 * kills))
        time.sleep(moments.uniform(0.0, 0.3))
        process.kill()
        process.wait()
        wait_until(lambda: not run_processes(store.directory), timeout=5)
    finish_all(12)
    assert_finished(store, 12)
    logs = "".join(path.read_text() for path in store.directory.glob("runs/*/run.log"))
    assert re.search("from step [1-5]", logs)


def test_a_killed_run_is_named_and_goes_on_with_the_next_command(store, start, finish_all):
    process = start(12, {"num_workers": 2}, step_s=0.05)
    moments = random.Random(8)
    for kills in range(2):
        wait_until(under_way(store, 3 + 4 * kills))
        time.sleep(moments.uniform(0.0, 0.1))
        wait_until(lambda: run_processes(store.directory))
        os.kill(run_processes(store.directory)[-1], signal.SIGKILL)
    code, stdout, stderr = finish(process)
    assert code == 1
    assert stdout.count("its process was ended by SIGKILL (see ") == 2
    assert "FailedRunsError: 2 runs failed: size " in stderr
    assert len(store.records()) == 10
    finish_all(12)
    assert_finished(store, 12)


def test_a_killed_worker_is_made_up_for(store, start, processes):
    cluster = Cluster(processes)
    workers = [cluster.start_worker(), cluster.start_worker()]
    process = start(12, {"scheduler": cluster.address}, step_s=0.05)
    moments = random.Random(9)
    for kills in range(2):
        wait_until(under_way(store, 3 + 4 * kills))
        time.sleep(moments.uniform(0.0, 0.3))
        workers[kills].kill()
        workers.append(cluster.start_worker())
    code, _, stderr = finish(process)
    assert (code, stderr) == (0, "")
    assert_finished(store, 12)


@pytest.mark.nightly
def test_a_killed_scheduler_ends_the_command_and_not_the_experiment(store, start, processes):
    cluster = Cluster(processes)
    workers = [cluster.start_worker(), cluster.start_worker()]
    process = start(6, {"scheduler": cluster.address}, step_s=0.2)
    wait_until(under_way(store, 3))
    cluster.scheduler.kill()
    code, _, stderr = finish(process)
    assert code == 1
    message = f"ConnectionError: the Dask scheduler at {cluster.address} is gone. Finished runs"
    assert message in stderr.splitlines()[-1]
    wait_until(lambda: not run_processes(store.directory), timeout=5)
    for worker in workers:
        worker.kill()  # One that has not met the scheduler yet waits for another.
    cluster.start_scheduler()
    cluster.start_worker()
    assert finish(start(6, {"scheduler": cluster.address}))[0] == 0
    assert_finished(store, 6)


def test_a_killed_command_leaves_no_process_at_the_workers(store, start, processes):
    cluster = Cluster(processes)
    cluster.start_worker()
    process = start(2, {"scheduler": cluster.address}, step_s=60)
    wait_until(under_way(store, 1))
    process.kill()
    wait_until(lambda: not run_processes(store.directory), timeout=30)  # Of the 60 of a step.


def test_ctrl_c_stops_the_runs_within_seconds(store, start):
    process = start(4, {"num_workers": 2}, step_s=60)
    wait_until(under_way(store, 2))
    os.killpg(process.pid, signal.SIGINT)  # As a terminal does.
    _, stdout, stderr = finish(process, timeout=30)  # Of the 60 of a step.
    assert stdout.endswith(
        "Stopped. 0 of 4 runs are finished. To continue, run the same command.\n"
    )
    assert stderr.count("Traceback") == 1
    assert stderr.endswith("\nKeyboardInterrupt\n")
    assert not run_processes(store.directory)


# --------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("accident", "error"),
    [
        ("raise", "ValueError: no luck"),
        ("die", "its process was ended by SIGKILL"),
    ],
)
def test_a_run_that_fails_is_named_and_stops_no_other(store, start, finish_all, accident, error):
    code, stdout, stderr = finish(start(4, accident=accident, victim="size 0 seed 1"))
    assert code == 1
    log = store.run_directory(fake_runs(4)[1]) / "run.log"
    failed = f"size 0 seed 1: {error} (see {log})"
    assert f"failed: {failed}\n" in stdout
    assert f"FailedRunsError: 1 runs failed: {failed}" in stderr
    assert log.read_text().startswith("from step 0\n")
    assert [record.key for record in store.records()] == [
        run.key for run in fake_runs(4) if run.label != "size 0 seed 1"
    ]
    finish_all(4)
    assert_finished(store, 4)
    assert "from step 3\n" in log.read_text()


def test_a_disk_that_fills_loses_nothing(store, start, finish_all):
    code, _, stderr = finish(start(4, accident="fill", victim="size 0 seed 1"))
    assert code == 1
    assert "1 runs failed: size 0 seed 1: OSError: [Errno 27] File too large" in stderr
    assert len(store.records()) == 3
    finish_all(4)
    assert_finished(store, 4)


def test_a_store_that_cannot_be_written_is_one_error(store, finish_all):
    store.directory.touch()
    with pytest.raises(FileExistsError):
        finish_all(4)


def test_a_record_cut_in_half_is_named_and_its_run_goes_on_once_it_is_removed(store, finish_all):
    finish_all(4)
    record = store.run_directory(fake_runs(4)[2]) / "record.json"
    record.write_text(record.read_text()[:100])
    store.lines.unlink()
    with pytest.raises(ValueError, match=f"^line 1 of {record} is not the record of a run"):
        finish_all(4)
    record.unlink()
    finish_all(4)
    assert_finished(store, 4)


def test_a_second_command_says_who_holds_the_folder(store, start, finish_all):
    process = start(2, step_s=60)
    wait_until(under_way(store, 1))
    holder = f"^{store.directory} is in use by process {process.pid} on "
    with pytest.raises(ValueError, match=holder):
        finish_all(2)


def test_a_second_process_for_a_run_waits_and_finds_the_record(store, processes):
    (run,) = fake_runs(1)
    run_it = ("-m", "fisher_keras.experiments.runs.process", str(store.run_directory(run)))
    store.write_definition(run, fake_experiment.count)
    for process in [processes.start(*run_it) for _ in range(3)]:
        assert finish(process) == (0, "", "")
    assert store.record(run).result["sum"] == 15
    assert (store.run_directory(run) / "run.log").read_text() == "from step 0\n"


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_VISIBLE_S", 0.0)
    monkeypatch.setattr(ExperimentStore, "write_definition", lambda *_: tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"not see .*elsewhere: --output_dir must be on"):
        run_experiment(fake_runs(1), never, ExperimentStore(tmp_path), EngineOptions())


def test_no_scheduler_at_the_address_is_one_error(store, monkeypatch):
    monkeypatch.setattr(engine, "_CONNECT_S", 0.5)
    options = EngineOptions(scheduler="tcp://127.0.0.1:1")
    with pytest.raises(OSError, match=r"no Dask scheduler at --scheduler=tcp://127\.0\.0\.1:1"):
        run_experiment(fake_runs(1), never, store, options)


def test_a_page_that_cannot_be_shown_is_one_error(store, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--dashboard needs another package: pip install bokeh"):
        run_experiment(fake_runs(1), never, store, EngineOptions(dashboard=True))


# ------------------------------------------------------------------- cores, GPUs, plan, arguments


def never(run, directory):
    raise AssertionError


def test_each_run_at_once_has_its_gpu_and_its_share_of_the_cores(store, start, monkeypatch):
    options = {"runs_per_gpu": 2}
    assert finish(start(8, options, gpus=["3", "GPU-x"], step_s=0.05))[0] == 0
    results = [record.result for record in store.records()]
    assert {result["gpu"] for result in results} == {"3", "GPU-x"}
    monkeypatch.setattr(engine, "cpu_count", lambda: 7)
    environments = run_environments(EngineOptions(runs_per_gpu=2), ["3", "GPU-x"])
    gpus = [environment["CUDA_VISIBLE_DEVICES"] for environment in environments]
    assert gpus == ["3", "GPU-x", "3", "GPU-x"]
    assert {environment["TF_NUM_INTRAOP_THREADS"] for environment in environments} == {"1"}
    assert {environment["TF_FORCE_GPU_ALLOW_GROWTH"] for environment in environments} == {"true"}
    (alone,) = run_environments(EngineOptions(num_workers=1), ["3", "GPU-x"])
    assert (alone["CUDA_VISIBLE_DEVICES"], alone["OMP_NUM_THREADS"]) == ("3", "7")
    (without,) = run_environments(EngineOptions(), [])
    assert "CUDA_VISIBLE_DEVICES" not in without
    with pytest.raises(ValueError, match="--num_workers=3 is more than --runs_per_gpu=1 on each"):
        run_environments(EngineOptions(num_workers=3), ["3", "GPU-x"])


def test_the_plan_tells_the_time_from_the_same_settings_then_any(store, capsys):
    def plan(num_workers=1):
        options = EngineOptions(num_workers=num_workers)
        print_plan(runs, store, options, (), True, None)
        return capsys.readouterr().out.splitlines()

    runs = fake_runs(5)  # Sizes 0, 0, 100, 100, 200.
    assert plan() == [
        "0 of 5 runs are finished; to carry out:",
        *(f"     unknown  {run.label}" for run in runs),
        "time left unknown, 1 at once.",
    ]
    assert not store.directory.exists()
    for run, seconds in ((runs[0], 100.0), (runs[2], 300.0), (Run("x", {}, 0, 1, "x"), 9e9)):
        store.write_definition(run, never)
        store.finish(run, {}, seconds)
    assert plan(num_workers=2) == [
        "2 of 5 runs are finished; to carry out:",
        "     0:01:40  size 0 seed 1",
        "     0:05:00  size 100 seed 1",
        "     0:03:20  size 200 seed 0",
        "0:05:00 left, 2 at once.",
    ]


def test_bad_arguments(store):
    with pytest.raises(ValueError, match="--num_workers must be a whole number, 1 or greater"):
        EngineOptions(num_workers=0)
    for name, value in (("num_workers", 1), ("runs_per_gpu", 2)):
        with pytest.raises(ValueError, match=f"--{name} has no effect with --scheduler"):
            EngineOptions(**{name: value}, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(ValueError, match="--runs_per_gpu has no effect without GPUs: give --num"):
        run_environments(EngineOptions(runs_per_gpu=2), [])
    with pytest.raises(ValueError, match="one is there twice"):
        run_experiment(fake_runs(2) + fake_runs(1), never, store, EngineOptions())
