import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import pathlib
import resource

import numpy as np
import pytest

from fisher_keras.experiments.runs.store import ExperimentStore, Record, Run

CONFIG = {"arch": "resnet", "batch_size": 128, "depths": [20, 32], "l2_penalty": None}


def make_run(seed=0, **config):
    return Run("batch_size", CONFIG | config, seed, 1, f"seed {seed}")


def execute(run, directory):
    raise AssertionError


def finish(store, run, result=None):
    store.write_definition(run, execute)
    store.finish(run, result or {"error": 1.5}, 2.5)


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
    finish(store, run)
    expected = {
        "key": run.key,
        "experiment": "batch_size",
        "recipe_version": 1,
        "config": CONFIG,
        "seed": 0,
        "wall_time_s": 2.5,
        "result": {"error": 1.5},
    }
    assert store.record(run) == Record(**expected)
    assert store.records() == [Record(**expected)]
    files = {path.name: path for path in store.run_directory(run).iterdir()}
    assert files.keys() == {"definition.json", "record.json"}
    assert files["record.json"].read_text() == json.dumps(expected) + "\n"


def test_the_lines_are_in_an_order_that_the_runs_alone_decide(tmp_path):
    runs = [make_run(seed, batch_size=size) for size in (1, 2) for seed in (0, 1, 2, 10)]
    for name, order in (("a", runs), ("b", runs[::-1])):
        store = ExperimentStore(tmp_path / name)
        for run in order:
            finish(store, run)
            store.write_lines()
        assert [record.key for record in store.records()] == [run.key for run in runs]
    assert (tmp_path / "a/runs.jsonl").read_bytes() == (tmp_path / "b/runs.jsonl").read_bytes()
    lines = (tmp_path / "a/runs.jsonl").read_text().splitlines()
    assert [Record(**json.loads(line)) for line in lines] == store.records()


def test_a_run_whose_line_is_there_counts_without_its_directory(tmp_path):
    here, there = ExperimentStore(tmp_path / "here"), ExperimentStore(tmp_path / "there")
    finish(here, make_run(0))
    here.write_lines()
    finish(there, make_run(1))
    (tmp_path / "there/runs.jsonl").write_bytes((tmp_path / "here/runs.jsonl").read_bytes())
    there.write_lines()
    assert [record.seed for record in there.records()] == [0, 1]
    assert len((tmp_path / "there/runs.jsonl").read_text().splitlines()) == 2


def test_the_definition_names_the_function_and_where_the_run_is_carried_out(tmp_path):
    run = make_run()
    with_options = functools.partial(execute, data_dir="/data")
    directory = ExperimentStore(tmp_path).write_definition(run, with_options)
    definition = json.loads((directory / "definition.json").read_text())
    assert definition.pop("function") == f"{__name__}:execute"
    assert definition.pop("options") == {"data_dir": "/data"}
    assert Run(**definition) == run
    assert directory.name == f"seed_0_{Run(**definition).key}"


def test_a_run_is_found_by_its_key_alone(tmp_path):
    run, store = make_run(), ExperimentStore(tmp_path)
    old = tmp_path / "runs" / run.key  # As older versions named it.
    assert store.begun(run.key) is None
    old.mkdir(parents=True)
    assert store.run_directory(run) == old
    old.rename(tmp_path / "runs" / f"another_label_{run.key}")
    finish(store, run)
    assert [path.name for path in tmp_path.glob("runs/*")] == [f"another_label_{run.key}"]
    assert store.record(run).key == run.key


def test_one_command_at_a_time_works_on_a_store(tmp_path):
    mine, other = ExperimentStore(tmp_path / "new"), ExperimentStore(tmp_path / "new")
    in_use = pytest.raises(ValueError, match=f"in use by process {os.getpid()} on .* since ")
    with mine.locked(), in_use, other.locked():
        pass
    with other.locked():
        pass


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
    store.write_definition(make_run(1), execute)
    with full_disk():
        with pytest.raises(OSError, match=r"No space left|File too large"):
            store.finish(make_run(1), {"error": 1.5}, 2.5)
        store.lines.unlink()
        with pytest.raises(OSError, match=r"No space left|File too large"):
            store.write_lines()
    assert store.records() == before
    assert not list(tmp_path.rglob(".part*"))
