import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from fisher_keras.experiments.runs import claim as claim_module
from fisher_keras.experiments.runs.claim import Claims
from fisher_keras.experiments.runs.store import ExperimentStore, Run

CONFIG = {"arch": "resnet", "batch_size": 128, "depths": [20, 32], "l2_penalty": None}


def make_run(seed=0, **config):
    return Run("batch_size", CONFIG | config, seed, 1, f"seed {seed}")


def finish(store, run, result=None):
    with store.claim(run, pytest.fail) as claim:
        store.finish(run, claim, result or {"error": 1.5}, 2.5)


def claims_in(directory):
    return list(directory.glob(".claim_*"))


# ------------------------------------------------------------------------------------------ key


def test_the_key_is_the_hash_of_the_definition_with_sorted_names():
    text = (
        '{"config": {"arch": "resnet", "batch_size": 128, "depths": [20, 32], '
        '"l2_penalty": null}, "experiment": "batch_size", "recipe_version": 1, "seed": 0}'
    )
    run = Run("batch_size", dict(reversed(CONFIG.items())), 0, 1, "any")
    assert run.key == hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    "change",
    [
        {"experiment": "confusion"},
        {"seed": 1},
        {"recipe_version": 2},
        *({"config": CONFIG | {name: 1}} for name in CONFIG),
        {"config": CONFIG | {"more": None}},
        {"config": CONFIG | {"depths": [32, 20]}},
    ],
)
def test_the_key_changes_with_each_part_of_the_definition(change):
    assert dataclasses.replace(make_run(), **change).key != make_run().key


def test_the_label_does_not_define_a_run():
    assert dataclasses.replace(make_run(), label="other").key == make_run().key


@pytest.mark.parametrize("value", [np.float32(1), float("nan"), pathlib.Path("x"), {1, 2}])
def test_settings_that_are_not_json_are_an_error(value):
    with pytest.raises(ValueError, match="the settings of seed 0 must be JSON"):
        make_run(beta=value)


# -------------------------------------------------------------------------------------- records


def test_a_record_is_one_line_beside_the_files_of_its_run(tmp_path):
    store, run = ExperimentStore(tmp_path), make_run()
    assert store.record(run) is None
    assert store.records() == []
    with store.claim(run, pytest.fail) as claim:
        (store.run_directory(run) / "last.keras").touch()
        store.finish(run, claim, {"error": 1.5}, 2.5)
    expected = {
        "key": run.key,
        "experiment": "batch_size",
        "recipe_version": 1,
        "config": CONFIG,
        "seed": 0,
        "wall_time_s": 2.5,
        "result": {"error": 1.5},
    }
    assert store.record(run) == expected
    assert store.records() == [expected]
    files = {path.name: path for path in store.run_directory(run).iterdir()}
    assert files.keys() == {"last.keras", "record.json"}
    assert files["record.json"].read_text() == json.dumps(expected) + "\n"


def test_the_lines_are_in_an_order_that_the_runs_alone_decide(tmp_path):
    runs = [make_run(seed, batch_size=size) for size in (1, 2) for seed in (0, 1, 2, 10)]
    for name, order in (("a", runs), ("b", runs[::-1])):
        store = ExperimentStore(tmp_path / name)
        for run in order:
            finish(store, run)
            store.write_lines()
        assert [record["key"] for record in store.records()] == [run.key for run in runs]
    assert (tmp_path / "a/runs.jsonl").read_bytes() == (tmp_path / "b/runs.jsonl").read_bytes()
    lines = (tmp_path / "a/runs.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == store.records()


def test_a_run_whose_line_is_there_counts_without_its_directory(tmp_path):
    here, there = ExperimentStore(tmp_path / "here"), ExperimentStore(tmp_path / "there")
    finish(here, make_run(0))
    here.write_lines()
    finish(there, make_run(1))
    (tmp_path / "there/runs.jsonl").write_bytes((tmp_path / "here/runs.jsonl").read_bytes())
    there.write_lines()
    assert [record["seed"] for record in there.records()] == [0, 1]
    assert len((tmp_path / "there/runs.jsonl").read_text().splitlines()) == 2


def test_an_older_state_that_another_process_writes_meanwhile_is_mended(tmp_path, monkeypatch):
    store = ExperimentStore(tmp_path)
    finish(store, make_run(0))
    store.write_lines()
    old = store.lines.read_bytes()
    finish(store, make_run(1))
    replace, late = os.replace, [lambda: store.lines.write_bytes(old)]

    def replaced_by_another(*paths):
        replace(*paths)
        if late:
            late.pop()()

    monkeypatch.setattr(os, "replace", replaced_by_another)
    store.write_lines()
    assert len(store.lines.read_text().splitlines()) == 2


@pytest.mark.parametrize("text", ["{", "[]\n", '{"key": "a"}\n'])
def test_a_broken_line_is_named(tmp_path, text):
    (tmp_path / "runs.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"line 1 of .*runs\.jsonl is not the record of a run"):
        ExperimentStore(tmp_path).records()


@pytest.mark.parametrize("result", [{"gamma": float("-inf")}, {"gamma": np.float32(1)}])
def test_a_result_that_is_not_json_is_an_error(tmp_path, result):
    store = ExperimentStore(tmp_path)
    with pytest.raises(ValueError, match="the result of seed 0 is not JSON"):
        finish(store, make_run(), result)
    assert store.record(make_run()) is None


# ------------------------------------------------------------------------------------ full disk


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def no_file_grows():
    """Lets no write succeed. It must end before pytest itself writes, to what may be a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["write", "fsync", "replace"])
def full_disk(request, monkeypatch):
    """Makes the disk full, as it is seen by a write, by the end of it, or by a rename."""

    @contextlib.contextmanager
    def patched():
        with monkeypatch.context() as patch:
            patch.setattr(os, request.param, no_space)
            yield

    return no_file_grows if request.param == "write" else patched


def test_a_full_disk_loses_no_record_and_makes_none(tmp_path, full_disk):
    store = ExperimentStore(tmp_path)
    finish(store, make_run(0))
    store.write_lines()
    before = store.records()
    with store.claim(make_run(1), pytest.fail) as claim, full_disk():
        with pytest.raises(OSError, match=r"No space left|File too large"):
            store.finish(make_run(1), claim, {"error": 1.5}, 2.5)
        store.lines.unlink()
        with pytest.raises(OSError, match=r"No space left|File too large"):
            store.write_lines()
    assert store.records() == before
    assert not list(tmp_path.rglob(".part*"))


def test_a_claim_on_a_full_disk_leaves_nothing(tmp_path):
    store = ExperimentStore(tmp_path)
    with no_file_grows(), pytest.raises(OSError, match="File too large"):
        store.claim(make_run(), pytest.fail)
    assert not list(store.run_directory(make_run()).iterdir())
    finish(store, make_run())


# --------------------------------------------------------------------------------------- claims


def test_a_run_is_claimed_once_and_given_back(tmp_path):
    mine, other = ExperimentStore(tmp_path), ExperimentStore(tmp_path)
    with mine.claim(make_run(), pytest.fail):
        assert other.claim(make_run(), pytest.fail) is None
        assert mine.claim(make_run(), pytest.fail) is None
        other.claim(make_run(1), pytest.fail).release()
    finish(other, make_run())
    assert mine.claim(make_run(), pytest.fail) is None


@pytest.fixture
def dead_claim(tmp_path):
    """The claim of a process that was killed."""
    script = (
        "import pathlib, sys, time\n"
        "sys.path[:0] = [sys.argv[2]]\n"
        "from claim import Claims\n"
        "held = Claims().take(pathlib.Path(sys.argv[1]), print)\n"
        "print(held.is_held(), flush=True)\n"
        "time.sleep(60)\n"
    )
    # The module alone, without its package, which would load TensorFlow.
    module_directory = pathlib.Path(claim_module.__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), str(module_directory)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "True\n"
    assert Claims().take(tmp_path, pytest.fail) is None
    process.kill()
    process.communicate()
    (path,) = claims_in(tmp_path)
    return path


def test_a_dead_process_gives_its_run_back(tmp_path, dead_claim):
    assert json.loads(dead_claim.read_text())["pid"] > 0
    with Claims().take(tmp_path, pytest.fail):
        assert not dead_claim.exists()
    assert not claims_in(tmp_path)


def test_a_dead_process_whose_number_another_has_gives_its_run_back(tmp_path, dead_claim):
    holder = json.loads(dead_claim.read_text())
    dead_claim.write_text(json.dumps(holder | {"pid": os.getpid()}))
    assert Claims().take(tmp_path, pytest.fail)


def test_another_machines_run_is_given_back_when_its_heartbeat_stops(
    tmp_path, dead_claim, monkeypatch
):
    dead_claim = dead_claim.rename(tmp_path / ".claim_another-machine_1")
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    claims = Claims()
    os.utime(dead_claim, (5.0, 5.0))  # The other machine's clock is decades behind.
    assert claims.take(tmp_path, pytest.fail) is None
    for heartbeat in range(3):
        now += claim_module.EXPIRE_S - 1
        os.utime(dead_claim, (6.0 + heartbeat, 6.0 + heartbeat))
        assert claims.take(tmp_path, pytest.fail) is None
    now += claim_module.EXPIRE_S - 1
    assert claims.take(tmp_path, pytest.fail) is None
    now += 1
    with claims.take(tmp_path, pytest.fail):
        assert not dead_claim.exists()


def test_another_machines_claim_that_is_just_being_written_is_respected(tmp_path, monkeypatch):
    (tmp_path / ".claim_another-machine_1").touch()
    claims = Claims()
    assert claims.take(tmp_path, pytest.fail) is None
    monkeypatch.setattr(claim_module, "EXPIRE_S", 0.0)  # Its maker died just then.
    assert claims.take(tmp_path, pytest.fail)


@pytest.mark.parametrize("still_held", [True, False])
def test_who_was_taken_for_dead_before_it_had_its_lock_steps_back(
    tmp_path, monkeypatch, still_held
):
    lock, others = fcntl.flock, []

    def lock_late(file, operation):
        monkeypatch.setattr(fcntl, "flock", lock)
        others.append(Claims().take(tmp_path, pytest.fail))
        if not still_held:
            others[0].release()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    assert Claims().take(tmp_path, pytest.fail) is None
    assert others[0].is_held() == still_held


def test_where_the_file_system_has_no_locks_heartbeats_tell(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(claim_module, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(claim_module, "EXPIRE_S", 1.0)
    claims = Claims()
    with Claims().take(tmp_path, pytest.fail):
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            assert claims.take(tmp_path, pytest.fail) is None
            time.sleep(0.1)
    assert claims.take(tmp_path, pytest.fail)


def test_who_lost_its_claim_is_told_and_writes_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr(claim_module, "HEARTBEAT_S", 0.01)
    store, lost = ExperimentStore(tmp_path), threading.Event()
    with store.claim(make_run(), lost.set) as claim:
        (path,) = claims_in(store.run_directory(make_run()))
        path.unlink()
        assert lost.wait(10)
        with pytest.raises(RuntimeError, match="seed 0 is carried out by another process now"):
            store.finish(make_run(), claim, {}, 0.0)
    assert store.record(make_run()) is None


def test_giving_back_is_not_losing(tmp_path, monkeypatch):
    monkeypatch.setattr(claim_module, "HEARTBEAT_S", 0.0)
    lost = threading.Event()
    for _ in range(100):
        Claims().take(tmp_path, lost.set).release()
    assert not lost.is_set()


def test_of_many_that_find_a_dead_claim_at_once_never_two_win(tmp_path, dead_claim):
    start, count = threading.Barrier(4), threading.Lock()
    holders, most, wins = 0, 0, 0

    def contend():
        nonlocal holders, most, wins
        claims = Claims()
        start.wait()
        for _ in range(400):
            claim = claims.take(tmp_path, pytest.fail)
            if claim is None:
                continue
            with count:
                holders += 1
                most = max(most, holders)
                wins += 1
                dies = wins % 2
            time.sleep(0.0005)
            with count:
                holders -= 1
            if dies:  # As at the end of a process: the file stays, its lock does not.
                claim._released.set()
                claim._file.close()
            else:
                claim.release()

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert wins > 10
