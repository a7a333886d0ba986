"""`bin/status` on a folder in which each kind of run lies."""

import subprocess
import sys

import fake_experiment
import filelock
import pytest
from fake_experiment import fake_runs

from fisher_keras.experiments.runs.store import ExperimentStore


@pytest.fixture
def store(tmp_path):
    """Six runs: finished, running, failed, stopped, begun by nobody yet, only planned."""
    store = ExperimentStore(tmp_path / "experiment")
    runs = fake_runs(6)
    store.directory.mkdir()
    store.write_plan(runs)
    for run in runs[:5]:
        store.write_definition(run, fake_experiment.count)
    store.finish(runs[0], {"sum": 3}, 75.0)
    for run, line in (
        (runs[1], "epoch  3/20  loss 0.5\n"),
        (runs[2], "Traceback (most recent call last):\n  ...\nValueError: no luck\n"),
        (runs[3], "epoch  7/20  loss 0.4\n\n"),
    ):
        store.log(run).write_text(f"begun\n{line}")
    return store


EXPECTED = [
    "finished  size 0 seed 0",
    "running   size 0 seed 1",
    "failed    size 100 seed 0",
    "stopped   size 100 seed 1",
    "waiting   size 200 seed 0",
    "waiting   size 200 seed 1",
]


def test_each_run_has_its_state_and_its_log(store, run_command):
    runs = fake_runs(6)
    with filelock.FileLock(store.run_directory(runs[1]) / "lock"):
        status, output, errors = run_command("status", str(store.directory))
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    states = [line for line in lines if line.split()[0] in {e.split()[0] for e in EXPECTED}]
    assert [" ".join(line.split()[:5]) for line in states] == [
        " ".join(line.split()) for line in EXPECTED
    ]
    assert states[0].endswith("0:01:15")
    assert "epoch  3/20  loss 0.5 (0:00:0" in states[1]
    assert states[2].endswith("ValueError: no luck")
    assert states[3].endswith("epoch  7/20  loss 0.4")
    for run in runs[1:4]:
        assert f"          {store.log(run)}" in lines
    counts = "1 finished, 1 running, 1 failed, 1 stopped, 2 waiting"
    assert lines[-2:] == [f"{store.directory}: {counts}", "no command is at work"]


def test_the_command_at_work_is_named(store, run_command):
    with store.locked():
        _, output, _ = run_command("status", f"--folder={store.directory}")
    assert "\nat work: process " in output
    assert run_command("status", str(store.directory))[1].endswith("no command is at work\n")


def test_the_records_alone_are_enough(store, run_command, tmp_path):
    """As of an experiment in version control, whose runs' folders are not."""
    store.write_lines()
    alone = tmp_path / "alone"
    alone.mkdir()
    (store.directory / "runs.jsonl").rename(alone / "runs.jsonl")
    _, output, _ = run_command("status", str(alone))
    assert output == f"{alone}: 1 finished\nno command is at work\n"


def test_a_folder_without_an_experiment_is_refused(run_command, tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        status, _, errors = run_command("status", str(folder))
        assert status == 1
        assert errors == f"status: {folder} holds no experiment: expected a folder with runs/\n"
    assert run_command("status")[0] == 2


def test_status_does_not_wait_for_tensorflow(store):
    code = (
        "import sys; from fisher_keras.experiments.command_line.main import main\n"
        f"try: main(['status', {str(store.directory)!r}])\n"
        "except SystemExit as error: print(error.code or 0, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
